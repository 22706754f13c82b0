"""The way of weights on an accelerator whose average lies on the host, walked on the CPU."""

import threading

import pytest
import torch

from lightning_tuning import EMAWeights
from lightning_tuning._trainer.averaging import average_track, exchange
from lightning_tuning._trainer.averaging.host_average import HostAverage
from tests.callbacks.ema_reference import Recursion, differing, fit, weights_of
from tests.callbacks.test_ema_overflow import Overflows, fp16
from tests.toys import Classifier, Manual


@pytest.fixture
def _far(monkeypatch):
    """Let the callback take the host for another device."""
    monkeypatch.setattr(average_track, "any", lambda _: True, raising=False)
    monkeypatch.setattr(exchange, "_can_point", lambda *_: False)


@pytest.mark.usefixtures("_far")
@pytest.mark.parametrize("settings", [{}, {"every_n_steps": 3}, {"buffers": "average"}])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("module", [Classifier, Manual])
def test_recursion_and_training(module, settings, precision):
    ema = EMAWeights(0.8, device="cpu", after_fit="raw", **settings)
    recursion = Recursion(ema, every=ema.every_n_steps)
    fit(one := module(), ema, recursion, precision=precision)
    assert recursion.compared > 10
    assert recursion.judged > 1
    fit(other := module(), precision=precision)
    assert not differing(weights_of(one), weights_of(other))


@pytest.mark.usefixtures("_far")
def test_overflows():
    ema = EMAWeights(0.8, device="cpu")
    recursion = Recursion(ema)
    fit(Overflows(0, 3, 4), ema, recursion, plugins=fp16())
    assert recursion.compared > 10


@pytest.mark.usefixtures("_far")
def test_threads_end_with_the_fit():
    before = threading.active_count()
    fit(Classifier(), EMAWeights(0.8, device="cpu"))
    assert threading.active_count() == before

    class Breaks(Classifier):
        def validation_step(self, batch, batch_idx):
            if self.trainer.global_step > 6:
                raise RuntimeError("broken here")

    with pytest.raises(RuntimeError, match="broken here"):
        fit(Breaks(), EMAWeights(0.8, device="cpu"))
    assert threading.active_count() == before


@pytest.mark.usefixtures("_far")
def test_error_on_the_way_in_leaves_no_mixture(monkeypatch):
    """Out of memory in the middle of an exchange."""
    original, calls = exchange._put, []

    def put(tensor, value):
        calls.append(tensor)
        if len(calls) == 3:
            raise MemoryError("no room")
        return original(tensor, value)

    module, ema = Classifier(), EMAWeights(0.8)
    raw = []
    module.on_train_epoch_end = lambda: None
    module.on_train_batch_end = lambda *_: raw.append(weights_of(module))
    monkeypatch.setattr(exchange, "_put", put)
    with pytest.raises(MemoryError):
        fit(module, ema)
    assert not differing(weights_of(module), raw[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_host_average_is_the_average(dtype):
    weights = [torch.randn(5, 3).to(dtype), torch.randn(()).to(dtype)]
    precise = torch.float32 if dtype is torch.bfloat16 else dtype
    average = [torch.zeros_like(w, dtype=precise) for w in weights]
    host = HostAverage(average, weights)
    for decay in (0.0, 0.5, torch.tensor(0.25, dtype=torch.float64)):
        host.before_step()
        host.update(decay)
    host.close()
    for value, weight in zip(average, weights, strict=True):
        torch.testing.assert_close(value, weight.to(precise))


def test_error_of_the_thread_is_heard():
    host = HostAverage([torch.zeros(3)], [torch.ones(3)])
    host._groups = [None]
    host.update(0.5)
    with pytest.raises(AttributeError):
        host.wait()
    host.close()
