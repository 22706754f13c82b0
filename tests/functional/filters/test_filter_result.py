import dataclasses
import json
import math

import numpy as np
import pytest

from lightning_tuning import FilterResult

SHAPE = (4, 1, 5, 5)


def read(count, first=None):
    result = FilterResult(layer="net.0", shape=SHAPE)
    for step in range(count):
        filters = np.ones(SHAPE) * (step + 1) if first is None or step else first
        result = result.with_reading(10 * step, filters, moved=float(step))
    return result


def test_each_reading_has_its_numbers():
    result = read(3, first=np.zeros(SHAPE))
    assert result.steps == (0, 10, 20)
    assert math.isnan(result.smoothness[0])
    assert result.smoothness[1:] == (1.0, 1.0)
    assert result.moved == (0.0, 1.0, 2.0)
    assert result.scale == 4.0  # 2 at the first that is not zero, then doubled


def test_it_keeps_few_pictures_the_first_and_the_latest_among_them():
    for count in (8, 9, 50, 333):
        result = read(count)
        assert len(result.filters) == len(result.filter_steps) <= 8
        assert result.filter_steps[0] == 0
        assert result.filter_steps[-1] == 10 * (count - 1)
        assert list(result.filter_steps) == sorted(set(result.filter_steps))
        assert all(
            (f == s / 10 + 1).all()
            for f, s in zip(result.filters, result.filter_steps, strict=True)
        )
        assert len(result.steps) == count


def test_it_is_drawn_with_one_scale():
    result = read(5)
    figure = result.plot()
    assert len(figure.axes) == 6
    assert figure.axes[0].images[0].get_array().shape == result.image().shape
    first, last = (axes.images[0].get_array()[100, 100, 0] for axes in figure.axes[:5:4])
    assert first < last  # 1 and 5, where 8 is white
    assert figure.axes[5].lines[0].get_xdata().tolist() == [0, 10, 20, 30, 40]


def test_it_is_frozen_and_its_numbers_are_json():
    result = read(2, first=np.zeros(SHAPE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.scale = 1.0
    written = json.loads(result.to_json())
    assert written["smoothness"] == [None, 1.0]
    assert written["layer"] == "net.0"
    assert written["shape"] == list(SHAPE)
    assert "filters" not in written
