"""What is computed of a tensor: against closed forms, NumPy, and what must not change it."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_tuning.functional.activations.activation_stats import (
    ACTIVATIONS,
    SAMPLE,
    loudness,
    moments,
    sample,
    saturated,
    stride,
)


@pytest.mark.parametrize(
    "shape", [(7,), (64, 512), (32, 16, 20, 20), (3, 8191), (1, 1), (2**10, 2**10)]
)
def test_a_sample_meets_all_features(shape):
    tensor = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    found = sample(tensor)
    step = stride(tensor.numel())
    assert len(found) <= SAMPLE
    assert torch.equal(found, tensor.flatten()[::step].float())
    if len(found) > 2 * shape[-1]:
        assert len(set((found.long() % shape[-1]).tolist())) == shape[-1]


def test_a_sample_is_a_copy_of_any_layout_and_type():
    plain = torch.randn(4, 6, 5, 5)
    for tensor in (plain, plain.to(memory_format=torch.channels_last), plain.transpose(0, 1)):
        found = sample(tensor)
        assert sorted(found.tolist()) == sorted(plain.flatten().tolist())
        own = tensor.clone()
        found = sample(own)
        before = found.clone()
        own.zero_()
        assert torch.equal(found, before)
    assert sample(plain.half()).dtype == torch.float32
    assert sample(torch.randn(50000)[10:]).numel() <= SAMPLE


def test_moments_are_those_of_numpy():
    values = torch.randn(33, 65).bfloat16()
    found = [float(v) for v in moments(values)]
    plain = values.float().numpy().astype(np.float64)
    expected = [plain.sum(), np.linalg.norm(plain), plain.min(), plain.max()]
    assert found == pytest.approx(expected, rel=1e-5)
    assert math.isnan(float(moments(torch.tensor([1.0, math.nan]))[2]))


@pytest.mark.parametrize(("shape", "dim"), [((9, 6), -1), ((9, 6, 4, 4), 1), ((9, 4, 6), -1)])
def test_a_silent_relu_unit_is_known_by_its_channel(shape, dim):
    outputs = F.relu(torch.randn(shape) + 2)
    outputs.select(dim, 3).zero_()
    loud = loudness(outputs, ACTIVATIONS["relu"], dim)
    assert (loud <= 0).tolist() == [unit == 3 for unit in range(6)]
    assert torch.equal(loud > 0, loudness(outputs * 1e-20, ACTIVATIONS["relu"], dim) > 0)


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_a_smooth_unit_is_silent_where_it_is_next_to_nothing(name):
    inputs = torch.randn(64, 5)
    inputs[:, 2] -= 20
    outputs = getattr(F, name)(inputs)
    assert (loudness(outputs, ACTIVATIONS[name], -1) <= 0).tolist() == [0, 0, 1, 0, 0]
    # a small scale is no silence
    faint = getattr(F, name)(torch.randn(64, 5) * 1e-6)
    assert (loudness(faint, ACTIVATIONS[name], -1) > 0).all()


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softsign", "elu", "selu", "hardtanh"])
def test_saturated_is_where_the_slope_is_next_to_zero(name):
    inputs = torch.linspace(-300, 300, 60001, dtype=torch.float64, requires_grad=True)
    outputs = getattr(torch, name, None) or getattr(F, name)
    values = outputs(inputs)
    (slopes,) = torch.autograd.grad(values.sum(), inputs)
    share = int(saturated(values.detach(), ACTIVATIONS[name])) / len(inputs)
    flat = (slopes < 0.021 * slopes.max()).double().mean()
    assert share == pytest.approx(float(flat), abs=0.32 if name == "softsign" else 0.01)
