"""Measured steps, and what is kept of them."""

import json
import math

import numpy as np
import pytest
import torch

from lightning_tuning.functional.activations.activation_histograms import FACTS, histograms
from lightning_tuning.functional.activations.activation_result import ActivationRecord
from lightning_tuning.functional.activations.activation_step import (
    ActivationStep,
    LayerStep,
    Sampled,
    WeightStep,
    moments_of,
)


def sampled(values, bins=16):
    return Sampled.from_rows(histograms([values], bins).numpy())[0]


def step(number, loss=1.0, **fields):
    values = torch.randn(100, generator=torch.Generator().manual_seed(number))
    layer = LayerStep(name="fc", kind="weight", activations=sampled(values), **fields)
    weight = WeightStep(name="fc.weight", norm=0.5, gradients=sampled(values))
    return ActivationStep(step=number, layers=(layer,), weights=(weight,), loss=loss)


def test_moments_of_parts_are_those_of_all():
    parts = [np.random.default_rng(k).normal(3, 2, size) for k, size in enumerate((5, 70, 1))]
    sums, norms = [p.sum() for p in parts], [np.linalg.norm(p) for p in parts]
    whole = np.concatenate(parts)
    assert moments_of(76, sums, norms) == pytest.approx((whole.mean(), whole.std()))
    assert moments_of(4, [8.0], [4.0]) == (2.0, 0.0)
    mean, std = moments_of(2, [math.inf], [math.inf])
    assert math.isinf(mean)
    assert math.isnan(std)


def test_a_histogram_for_loggers_has_the_sample_moments():
    values = torch.randn(1000) * 3 + 1
    found = sampled(values, 64).histogram()
    assert found.num == sum(found.counts) == 1000
    assert found.sum == pytest.approx(float(values.sum()), rel=1e-4)
    assert found.sum_squares == pytest.approx(float(values.square().sum()), rel=1e-4)
    assert (found.min, found.max) == (float(values.min()), float(values.max()))
    limits = np.array(found.limits)
    assert (np.diff(limits) > 0).all()
    assert limits[-1] >= found.max
    below = [(values <= limit).sum().item() for limit in limits]
    assert np.abs(np.cumsum(found.counts) - below).max() <= 2
    assert sampled(torch.full((4,), math.nan)).histogram() is None


@pytest.mark.parametrize(
    "values", [torch.randn(500), torch.randn(500).relu(), torch.full((9,), 2.0)]
)
def test_a_histogram_for_loggers_has_no_empty_bins_at_its_ends(values):
    whole = sampled(values, 64)
    found = whole.histogram()
    assert min(found.counts[0], found.counts[-1]) > 0
    assert [c for c in found.counts if c] == [c for c in whole.counts if c]
    # as TensorBoard reads them: the first bin begins at the least value
    assert found.min <= found.limits[0]
    edges = [-np.inf, *found.limits]
    counts, _ = np.histogram(values.double().numpy(), edges)
    assert np.abs(np.cumsum(counts) - np.cumsum(found.counts)).max() <= 2
    assert len(found.counts) < 40


def test_a_long_fit_keeps_the_first_the_latest_and_evenly_spread_steps():
    record = ActivationRecord(every_n_steps=1)
    for number in range(1001):
        record.add(step(number))
    kept = [s.step for s in record.steps()]
    assert kept[0] == 0
    assert kept[-1] == 1000
    assert 100 < len(kept) <= 301
    assert set(np.diff(kept[:-1])) == {4}
    result = record.result()
    assert result.measured == 1001
    assert result.layers[0].steps == tuple(kept)


def test_a_result_is_plain_json():
    record = ActivationRecord(every_n_steps=5)
    record.add(step(0, mean=math.nan, std=1.5, input_rms=0.5))
    record.add(step(5, std=math.inf))
    read = json.loads(record.result().to_json())
    assert read["every_n_steps"] == 5
    [layer] = read["layers"]
    assert layer["std"] == [1.5, None]
    assert layer["mean"] == [None, None]
    assert layer["dead"] == [None, None]
    assert sum(layer["counts"][0]) == 100
    assert len(layer["counts"]) == 2
    assert layer["gradient_counts"] == [[], []]
    assert read["weight_gradients"] == [{"name": "fc.weight", "steps": [0, 5], "norm": [0.5, 0.5]}]
    assert FACTS == 5
