"""The figure of all layers: every value is drawn where it lies."""

import numpy as np
import pytest
import torch

from lightning_tuning.functional.activations.activation_histograms import histograms
from lightning_tuning.functional.activations.activation_result import ActivationRecord
from lightning_tuning.functional.activations.activation_step import (
    ActivationStep,
    LayerStep,
    Sampled,
)
from lightning_tuning.plot_activations import heat, plot_activations


def result(layers=1, steps=30, *, grow=1.0, broken=()):
    record = ActivationRecord(every_n_steps=1)
    for step in range(steps):
        rows = []
        for number in range(layers):
            values = torch.randn(2000) * grow**step
            if step in broken:
                values[:] = torch.nan
            sampled = Sampled.from_rows(histograms([values], 64).numpy())[0]
            dead = number / layers
            rows.append(
                LayerStep(name=f"fc{number}", kind="relu", activations=sampled, dead=dead, std=1.0)
            )
        record.add(ActivationStep(step=step, layers=tuple(rows), weights=(), loss=1.0))
    return record.result()


def test_columns_of_different_scale_share_one_axis():
    [layer] = result(grow=1.2).layers
    shares, steps, unit, end = heat(layer)
    assert shares.shape == (64, 30)
    assert steps.tolist() == list(range(30))
    assert np.nansum(shares, axis=0) == pytest.approx(np.ones(30), abs=0.01)
    edges = np.linspace(-end, end, 65)
    middles = (edges[1:] + edges[:-1]) / 2
    sizes = unit * np.expm1(np.abs(middles))
    found = np.sqrt((shares * sizes[:, None] ** 2).sum(0))
    assert found == pytest.approx(1.2 ** np.arange(30), rel=0.2)


def test_a_column_that_is_not_finite_is_nan():
    [layer] = result(broken=(3,)).layers
    shares = heat(layer)[0]
    assert np.isnan(shares[:, 3]).all()
    assert not np.isnan(shares[:, 4]).any()


@pytest.mark.parametrize("layers", [1, 4, 100])
def test_every_layer_has_a_picture(layers):
    figure = plot_activations(result(layers, steps=6))
    assert len(figure.axes) == layers
    titles = [axes.get_title() for axes in figure.axes]
    assert all(title.startswith(f"fc{number}") for number, title in enumerate(titles))
    assert titles[-1].endswith(f"dead {(layers - 1) / layers:.0%}")
    assert all(axes.images for axes in figure.axes)
