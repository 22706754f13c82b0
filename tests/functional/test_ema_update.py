import importlib.util
import pathlib

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_tuning.functional import ema_update
from lightning_tuning.functional.ema import ema_decay
from lightning_tuning.functional.ema_update import (
    averaging_dtype,
    group_tensors,
    update_average,
)


def averages_of(sequences, decays, dtype=None):
    """Return the averages after all updates; the first of each sequence begins its average."""
    weights = [values[0].clone() for values in sequences]
    average = [w.to(averaging_dtype(w.dtype), copy=True) for w in weights]
    groups = group_tensors(average, weights)
    for step, decay in enumerate(decays, 1):
        for weight, values in zip(weights, sequences, strict=True):
            weight.copy_(values[step])
        update_average(groups, decay)
    return average


def recursion(values, decays):
    average = values[0].to(torch.complex128 if values[0].is_complex() else torch.float64)
    for value, decay in zip(values[1:], decays, strict=True):
        average = decay * average + (1 - decay) * value
    return average


def random_weights(steps=20, shape=(3, 4), dtype=torch.float32):
    return [torch.randn(shape, dtype=torch.float32).to(dtype) for _ in range(steps + 1)]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_constant_weights_stay(decay):
    weights = [torch.full((2, 3), 1.7)] * 11
    [average] = averages_of([weights], [decay] * 10)
    assert torch.equal(average, weights[0])


def test_a_ramp_has_a_closed_form():
    """Weights 0, 1, 2, ...: the average lags by d / (1 - d) (1 - d^t)."""
    decay, steps = 0.9, 30
    ramp = [torch.full((2,), float(step), dtype=torch.float64) for step in range(steps + 1)]
    [average] = averages_of([ramp], [decay] * steps)
    lag = decay / (1 - decay) * (1 - decay**steps)
    torch.testing.assert_close(average, torch.full((2,), steps - lag, dtype=torch.float64))


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64],
)
@pytest.mark.parametrize("warmup", [True, False])
def test_random_weights_follow_the_recursion(dtype, warmup):
    decays = [ema_decay(step, decay=0.97, warmup=warmup) for step in range(1, 21)]
    sequence = random_weights(dtype=dtype)
    [average] = averages_of([sequence], decays)
    expected = recursion([w.to(average.dtype) for w in sequence], decays)
    torch.testing.assert_close(average, expected.to(average.dtype), rtol=1e-5, atol=1e-6)


def test_torch_agrees():
    module = nn.Linear(3, 4)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    sequences = [random_weights(shape=p.shape) for p in module.parameters()]
    for step in range(21):
        with torch.no_grad():
            for parameter, values in zip(module.parameters(), sequences, strict=True):
                parameter.copy_(values[step])
        averaged.update_parameters(module)
    ours = averages_of(sequences, [0.95] * 20)
    for mine, theirs in zip(ours, averaged.module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach())


def test_ema_pytorch_agrees():
    peer = pytest.importorskip("ema_pytorch")
    module = nn.Linear(3, 4)
    ema = peer.EMA(module, beta=0.95, update_after_step=0, update_every=1, min_value=0.95)
    assert_follows(module, ema.update, lambda: ema.ema_model)


def test_timm_agrees():
    module = nn.Linear(3, 4)
    ema = timm_model_ema().ModelEmaV3(module, decay=0.95, foreach=True)
    ema.module.load_state_dict(module.state_dict())
    steps = iter(range(1, 100))
    assert_follows(module, lambda: ema.update(module, step=next(steps)), lambda: ema.module)


def timm_model_ema():
    """Load timm's file by itself: the package needs torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed")
    path = pathlib.Path(spec.origin).parent / "utils" / "model_ema.py"
    spec = importlib.util.spec_from_file_location("timm_model_ema", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_follows(module, update, averaged):
    """Compare with a peer; both begin with the weights of the first update."""
    sequences = [random_weights(shape=p.shape) for p in module.parameters()]
    for step in range(21):
        with torch.no_grad():
            for parameter, values in zip(module.parameters(), sequences, strict=True):
                parameter.copy_(values[step])
        update()
    ours = averages_of(sequences, [0.95] * 20)
    for mine, theirs in zip(ours, averaged().parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach())


def test_low_precision_moves_at_a_slow_decay():
    weights = [torch.ones(4, dtype=torch.bfloat16)] + [torch.zeros(4, dtype=torch.bfloat16)] * 100
    [average] = averages_of([weights], [0.9999] * 100)
    torch.testing.assert_close(average, torch.full((4,), 0.9999**100))
    stuck = torch.ones(4, dtype=torch.bfloat16)
    stuck.lerp_(weights[1], 1 - 0.9999)
    assert torch.equal(stuck, weights[0])


def test_chunks_change_nothing(monkeypatch):
    sequences = [random_weights(shape=s, dtype=torch.bfloat16) for s in [(7,), (3, 5), (), (2, 9)]]
    whole = averages_of(sequences, [0.9] * 20)
    monkeypatch.setattr(ema_update, "_CHUNK", 10)
    for mine, theirs in zip(averages_of(sequences, [0.9] * 20), whole, strict=True):
        assert torch.equal(mine, theirs)


def test_the_room_for_conversion_is_bounded(monkeypatch):
    monkeypatch.setattr(ema_update, "_CHUNK", 10)
    weights = [torch.zeros(n, dtype=torch.bfloat16) for n in (4, 4, 4, 12, 1)]
    groups = group_tensors([w.float() for w in weights], weights)
    rooms = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for g in groups
        for t in g.converted
    }
    assert list(rooms.values()) == [12 * 4]


def test_kinds_of_tensors_are_grouped_and_all_updated():
    weights = [
        torch.ones(2),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.ones(2, 3, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last),
        torch.ones(4, dtype=torch.float64),
        torch.ones((), dtype=torch.complex64),
        torch.ones(6)[::2],
        torch.ones(0),
    ]
    average = [torch.zeros_like(w, dtype=averaging_dtype(w.dtype)) for w in weights]
    groups = group_tensors(average, weights)
    assert len(groups) == 4
    update_average(groups, 0.25)
    for a in average:
        torch.testing.assert_close(a, torch.full_like(a, 0.75))


def test_several_updates_at_once():
    """With constant weights, n updates of d are one of d ** n."""
    values = [torch.zeros(3)] + [torch.ones(3)] * 12
    each = averages_of([values], [0.9] * 12)
    every_third = averages_of([values[::3]], [0.9**3] * 4)
    torch.testing.assert_close(each, every_third)


def test_a_decay_that_only_the_device_knows():
    sequences = [random_weights(), random_weights(dtype=torch.bfloat16)]
    decays = [0.9, 1.0, 0.0, 0.5]
    known = averages_of(sequences, decays)
    unknown = averages_of(sequences, [torch.tensor(d, dtype=torch.float64) for d in decays])
    for mine, theirs in zip(unknown, known, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_gradient_is_kept():
    weights = [nn.Parameter(torch.ones(2))]
    average = [torch.zeros(2)]
    update_average(group_tensors(average, weights), 0.5)
    assert not average[0].requires_grad
