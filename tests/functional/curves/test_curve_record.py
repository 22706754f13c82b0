"""The record of any length: its means against NumPy's."""

import json

import numpy as np
import pytest

from lightning_tuning.functional.curves.curve_record import CurveRecord


def test_a_short_fit_is_kept_as_it_is():
    record = CurveRecord()
    record.extend([3, 4], [2.0, 1.0], [0.1, 0.2])
    assert (record.steps, record.values, record.highs) == ((3, 4), (2.0, 1.0), (2.0, 1.0))
    assert record.rates == (0.1, 0.2)
    assert record.width == 1


def test_a_long_fit_is_kept_as_means():
    values = np.random.default_rng(1).normal(size=64_000)
    record = CurveRecord()
    record.extend(range(64_000), values, np.arange(64_000.0))
    blocks = values[: len(record.values) * record.width].reshape(-1, record.width)
    assert 500 <= len(record.values) < 1000
    assert record.values == pytest.approx(blocks.mean(1))
    assert record.highs == pytest.approx(blocks.max(1))
    assert record.steps[0] == record.width - 1
    assert record.count == 64_000


def test_it_does_not_matter_in_how_many_parts_a_curve_comes():
    values = np.random.default_rng(2).normal(size=5000)
    whole, parts = CurveRecord(), CurveRecord()
    whole.extend(range(5000), values, values)
    for start in range(0, 5000, 7):
        end = min(start + 7, 5000)
        parts.extend(range(start, end), values[start:end], values[start:end])
    assert (whole.values, whole.highs) == (parts.values, parts.highs)


def test_it_goes_on_after_an_interruption():
    first, whole = CurveRecord(), CurveRecord()
    first.extend(range(10), np.arange(10.0), [0.1] * 10)
    again = CurveRecord.of(
        first.steps, first.values, first.rates, first.highs, width=first.width, count=first.count
    )
    again.extend(range(10, 20), np.arange(10.0), [0.1] * 10)
    whole.extend(range(20), [*range(10), *range(10)], [0.1] * 20)
    assert (again.steps, again.values, again.count) == (whole.steps, whole.values, 20)


def test_what_is_no_number_is_counted_and_left_out():
    record = CurveRecord()
    record.extend(range(4), [1.0, float("nan"), 2.0, float("inf")], [0.1] * 4)
    assert record.values == (1.0, 2.0)
    assert (record.non_finite, record.first_non_finite) == (2, 3)


def test_the_first_loss_is_known_however_many_steps_a_point_holds():
    record = CurveRecord()
    record.extend([0, 1], [2.0, 8000.0], [0.1] * 2)
    record.extend(range(2, 3000), np.ones(2998), [0.1] * 2998)
    assert record.values[0] > 1000
    assert record.first == 2.0
    unknown = CurveRecord()
    unknown.extend([0, 1], [float("nan"), 2.0], [0.1] * 2)
    assert unknown.first is None


@pytest.mark.parametrize("end", [3000, 3001, 3003])
def test_a_point_that_was_not_complete_is_gone_on_with(end):
    values = np.random.default_rng(3).normal(size=3100)
    first, whole = CurveRecord(), CurveRecord()
    whole.extend(range(3100), values, values)
    first.extend(range(end), values[:end], values[:end])
    again = CurveRecord.of(
        first.steps,
        first.values,
        first.rates,
        first.highs,
        width=first.width,
        count=first.count,
        unfinished=json.loads(json.dumps(first.unfinished)),
    )
    again.extend(range(end, 3100), values[end:], values[end:])
    assert (again.steps, again.values, again.highs) == (whole.steps, whole.values, whole.highs)
    assert again.unfinished == whole.unfinished
