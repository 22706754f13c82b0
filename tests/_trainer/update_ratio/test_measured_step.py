import math

import pytest
import torch
from torch import nn

from lightning_tuning._trainer.update_ratio.measured_step import MeasuredStep
from lightning_tuning._trainer.update_ratio.update_norms import (
    copies,
    gradient_norms,
    norms,
    stacked,
    subtract_,
)


def measured(optimizer, *, by_row=(), scale=None, found_inf=None, clip=None):
    """One step as the monitor sees it."""
    step = MeasuredStep(
        optimizer, wanted=lambda p: True, by_row=lambda p: any(p is one for one in by_row)
    )
    step.copy_weights()
    step.read_gradients(before_clipping=True, scale=scale)
    if clip is not None:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
    if found_inf is None:
        optimizer.step()
    step.finish(found_inf)
    return step.read(step.on_device(lambda squares: squares).tolist())


OPTIMIZERS = [
    lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda ps: torch.optim.AdamW(ps, lr=0.01),
    lambda ps: torch.optim.Adam(ps, lr=0.01, fused=True),
    lambda ps: torch.optim.RMSprop(ps, lr=0.01, foreach=True),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_norms_are_those_of_torch(make, dtype):
    if dtype.is_complex and make is OPTIMIZERS[2]:
        pytest.skip("no fused Adam for complex numbers")
    parameters = [nn.Parameter(torch.randn(n, 3, dtype=dtype)) for n in (2, 5)]
    unused = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = make([*parameters, unused])
    sum((p.abs() ** 2).sum() for p in parameters).backward()
    before = [p.detach().clone() for p in parameters]
    gradients = [p.grad.clone() for p in parameters]
    found = measured(optimizer)
    assert set(found.tensors) == set(parameters)
    for p, old, gradient in zip(parameters, before, gradients, strict=True):
        wide = torch.complex128 if dtype.is_complex else torch.float64
        rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
        tensor = found.tensors[p]
        change = (p.detach() - old).to(wide)
        for value, reference in (
            (tensor.weight, old),
            (tensor.update, change),
            (tensor.gradient, gradient),
        ):
            assert value == pytest.approx(float(reference.to(wide).norm()), rel=rtol)


def test_a_step_of_plain_gradient_descent_in_closed_form():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.tensor([6.0, 8.0])
    found = measured(optimizer, clip=1.0)
    assert found.tensors[weight].weight == pytest.approx(5)
    assert found.tensors[weight].update == pytest.approx(0.1)
    assert found.tensors[weight].gradient == pytest.approx(10)
    assert found.before_clipping == pytest.approx(10)
    assert found.after_clipping == pytest.approx(1)
    assert found.rates == (0.1,)


def test_scaling_the_weights_and_the_step_changes_no_ratio():
    ratios = []
    for factor in (1.0, 1e-3, 1e4):
        torch.manual_seed(0)
        weight = nn.Parameter(factor * torch.randn(4, 4))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        weight.grad = factor * torch.randn(4, 4)
        tensor = measured(optimizer).tensors[weight]
        ratios.append(tensor.update / tensor.weight)
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-3)


@pytest.mark.parametrize("sparse", [True, False])
def test_of_embeddings_only_the_rows_with_a_gradient_count(sparse):
    embedding = nn.Embedding(1000, 4, sparse=sparse)
    make = torch.optim.SparseAdam if sparse else torch.optim.Adam
    optimizer = make([embedding.weight], lr=0.01)
    rows = torch.tensor([7, 3, 7, 7, 900])
    (embedding(rows) * torch.arange(5.0)[:, None]).sum().backward()
    dense = embedding.weight.grad.to_dense()
    before = embedding.weight.detach().clone()
    found = measured(optimizer, by_row=[embedding.weight]).tensors[embedding.weight]
    used = torch.tensor([3, 7, 900])
    change = (embedding.weight.detach() - before)[used]
    assert found.weight == pytest.approx(float(before[used].norm()), rel=1e-5)
    assert found.update == pytest.approx(float(change.norm()), rel=1e-5)
    assert found.gradient == pytest.approx(float(dense.norm()), rel=1e-5)


def test_a_sparse_gradient_without_rows():
    embedding = nn.Embedding(10, 4, sparse=True)
    embedding(torch.zeros(0, dtype=torch.long)).sum().backward()
    found = measured(torch.optim.SGD([embedding.weight], lr=0.1)).tensors[embedding.weight]
    assert (found.weight, found.update, found.gradient) == (0, 0, 0)


def test_a_step_that_a_fused_optimizer_skipped_is_none():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = 1024 * torch.ones(3)
    scale = torch.tensor(1024.0)
    skipped = measured(optimizer, scale=scale, found_inf=torch.tensor(1.0))
    assert not skipped.taken
    assert skipped.before_clipping == pytest.approx(3**0.5)
    assert measured(optimizer, scale=scale, found_inf=torch.tensor(0.0)).taken


def test_a_rate_that_changes_after_the_step():
    weight = nn.Parameter(torch.ones(3))
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([weight], lr=rate)
    weight.grad = torch.ones(3)
    step = MeasuredStep(optimizer, wanted=lambda p: True, by_row=lambda p: False)
    step.copy_weights()
    optimizer.step()
    step.finish(None)
    rate.fill_(0.2)
    found = step.read(step.on_device(lambda squares: squares).tolist())
    assert found.rates == pytest.approx((0.1,))
    # nobody saw the gradient before clipping
    assert math.isnan(found.before_clipping)
    assert found.after_clipping == pytest.approx(3**0.5)


def test_norms_of_a_mixed_list():
    tensors = [torch.randn(3, dtype=torch.float64), torch.zeros(0), torch.ones(4).bfloat16()]
    expected = [float(t.double().norm()) for t in tensors]
    assert stacked(norms(tensors), torch.device("cpu")).tolist() == pytest.approx(expected)
    kept = copies(tensors)
    subtract_(kept, tensors)
    assert not any(t.any() for t in kept)
    assert gradient_norms([]) == []


def test_what_was_found_stays_on_the_device_of_a_part_that_is_frozen_later():
    """As a GAN freezes its discriminator for the generator's turn."""
    weight = nn.Parameter(torch.empty(3, 2, device="meta"))
    weight.grad = torch.empty_like(weight)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    step = MeasuredStep(optimizer, wanted=lambda _: True, by_row=lambda _: False)
    step.copy_weights()
    step.read_gradients(before_clipping=True)
    optimizer.step()
    step.finish(None)
    weight.requires_grad_(False)
    found = step.on_device(lambda squares: squares)
    assert found.device.type == "meta"
    assert found.shape == (4,)


def test_nothing_is_changed():
    torch.manual_seed(0)
    left = []
    for watched in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        net(torch.randn(3, 4)).square().sum().backward()
        measured(optimizer) if watched else optimizer.step()
        left.append([*net.parameters(), *(p.grad for p in net.parameters()), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))
