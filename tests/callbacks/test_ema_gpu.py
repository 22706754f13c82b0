"""EMAWeights on a GPU: nothing waits for it, one extra copy, the host's average is its own."""

import gc

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_tuning import EMAWeights
from lightning_tuning._trainer.averaging.averages import Averages
from tests.callbacks.ema_reference import Recursion, differing, fit, weights_of
from tests.toys import Classifier, Manual, loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Precision 16-mixed is not supported by the model summary"),
    # CUDA's own words the first time that its debug mode is used
    pytest.mark.filterwarnings("ignore:.*eterministic:UserWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def fused(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


class Overflows(Classifier):
    """Gradients of some batches are infinite."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        # no comparison on the device
        return loss * float("inf") if self.trainer.fit_loop.total_batch_idx in {0, 3, 8} else loss


class Wide(Classifier):
    """100 MB, so that a copy to the host takes as long as a step."""

    def __init__(self, optimizer=None):
        super().__init__(optimizer)
        self.net = nn.Sequential(nn.Linear(6, 2_500_000), nn.ReLU(), nn.Linear(2_500_000, 3))


class Recurrent(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.LSTM(6, 3, num_layers=2, bidirectional=True)

    def forward(self, inputs):
        return self.net(inputs[None])[0][0]


def on_gpu(module, *callbacks, **settings):
    return fit(module, *callbacks, **{"accelerator": "gpu", **settings})


def refuse_waiting(monkeypatch):
    """Let CUDA raise where the callback's own work in a step waits for the device."""
    counts = {"calls": 0}

    def watched(original):
        def run(*args, **kwargs):
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                counts["calls"] += 1
                return original(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode(before)

        return run

    for name in ("_after_step", "before_step"):
        monkeypatch.setattr(Averages, name, watched(getattr(Averages, name)))
    for name in ("on_train_batch_start", "on_before_optimizer_step"):
        monkeypatch.setattr(EMAWeights, name, watched(getattr(EMAWeights, name)))
    return counts


SETTINGS = [
    {},
    {"every_n_steps": 2},
    {"buffers": "average"},
    {"half_life": "8 samples"},
    {"update_after_step": 2},
    {"device": "cpu"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "16-mixed"])
def test_no_step_waits_for_the_device(settings, precision, monkeypatch):
    # the scaler of an optimizer that is not fused reads on the host whether it overflowed: its own
    counts = refuse_waiting(monkeypatch)
    on_gpu(Classifier(adamw), EMAWeights(**settings), precision=precision)
    assert counts["calls"] > 24


@pytest.mark.parametrize("settings", SETTINGS[:-1], ids=str)
def test_no_step_that_may_overflow_waits(settings, monkeypatch):
    counts = refuse_waiting(monkeypatch)
    on_gpu(Overflows(fused), EMAWeights(**settings), precision="16-mixed")
    assert counts["calls"] > 24


def test_no_step_by_hand_waits(monkeypatch):
    counts = refuse_waiting(monkeypatch)
    on_gpu(Manual(), EMAWeights())
    assert counts["calls"] > 24


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("optimizer", [adamw, fused])
def test_recursion_and_training(optimizer, precision, device):
    """Weights, judged ones too; validation and exchanges leave training bit for bit as it is."""
    ema = EMAWeights(0.8, device=device, after_fit="raw")
    # averages on the host are computed there, of the very same weights
    recursion = Recursion(ema)
    on_gpu(
        one := Overflows(optimizer)
        if "16-m" in precision and precision[0] == "1"
        else Classifier(optimizer),
        ema,
        recursion,
        precision=precision,
    )
    assert recursion.compared > 10
    assert recursion.judged > 1
    on_gpu(other := type(one)(optimizer), precision=precision)
    assert not differing(weights_of(one), weights_of(other))


@pytest.mark.parametrize("optimizer", [adamw, fused])
@pytest.mark.parametrize("every", [1, 3])
def test_average_on_the_host_is_that_on_the_device(optimizer, every):
    averages = []
    for device in (None, "cpu"):
        ema = EMAWeights(0.8, device=device, every_n_steps=every)
        on_gpu(module := Classifier(optimizer), ema, max_epochs=4)
        averages.append({name: value.cpu() for name, value in ema.average.items()})
        assert not differing(
            {name: value.cpu() for name, value in weights_of(module).items()}, averages[-1]
        )
    torch.testing.assert_close(*averages, rtol=1e-5, atol=1e-6)


class ClipsAfterBatch(Callback):
    """Gives the weights other memory between a step and the next."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        for p in pl_module.parameters():
            p.data = p.data.clamp(-1e-3, 1e-3)


def test_copy_to_the_host_is_of_the_weights_after_the_step():
    """The memory that is being copied must not be given to others meanwhile."""
    averages = []
    for device in (None, "cpu"):
        ema = EMAWeights(0.8, device=device)
        module = Wide(lambda p: torch.optim.SGD(p, lr=0.1))
        on_gpu(module, ema, ClipsAfterBatch(), limit_val_batches=0)
        averages.append({name: value.cpu() for name, value in ema.average.items()})
        del module
    torch.testing.assert_close(*averages, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", [None, "cpu"])
def test_recurrent_layers_stay_in_one_piece(device):
    """cuDNN warns of weights that are not, and a warning is an error here."""
    ema = EMAWeights(0.8, device=device, after_fit="raw")
    recursion = Recursion(ema)
    trainer = on_gpu(one := Recurrent(), ema, recursion)
    on_gpu(other := Recurrent())
    assert not differing(weights_of(one), weights_of(other))
    assert recursion.judged > 1
    trainer.validate(one, loader(8), verbose=False)
    trainer.predict(one, loader(8))


class Measure(Callback):
    """Bytes on the device after a step and in validation, without gradients."""

    def __init__(self):
        self.bytes = {}

    def note(self, name):
        gc.collect()
        torch.cuda.synchronize()
        self.bytes[name] = torch.cuda.memory_allocated()

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.zero_grad(set_to_none=True)
        self.note("step")

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if not trainer.sanity_checking:
            self.note("validation")

    def on_validation_end(self, trainer, pl_module):
        self.note("after validation")

    def on_fit_end(self, trainer, pl_module):
        self.note("after the fit")


def measure(*callbacks):
    gc.collect()
    before = torch.cuda.memory_allocated()
    measured, module = Measure(), Wide(lambda p: torch.optim.SGD(p, lr=0.1))
    on_gpu(module, *callbacks, measured)
    size = sum(p.nbytes for p in module.parameters())
    return {name: (value - before) / size for name, value in measured.bytes.items()}


@pytest.mark.parametrize("device", [None, "cpu"])
def test_memory(device):
    measure()  # what the libraries keep from their first use on
    plain = measure()
    found = measure(EMAWeights(0.9, device=device))
    copies = 0 if device == "cpu" else 1
    expected = {
        "step": copies,
        "validation": copies,
        "after validation": copies,
        "after the fit": 0,
    }
    extra = {name: found[name] - plain[name] for name in plain}
    assert extra == {name: pytest.approx(value, abs=0.02) for name, value in expected.items()}


@pytest.mark.parametrize("device", [None, "cpu"])
def test_resume(device):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.fit_loop.total_batch_idx + 1 == 6:
                trainer.save_checkpoint("saved.ckpt")

    def end(*callbacks, **settings):
        module = Overflows(fused)
        ema = EMAWeights(0.8, device=device)
        on_gpu(module, ema, *callbacks, precision="16-mixed", max_epochs=3, **settings)
        return weights_of(module)

    assert not differing(end(Save()), end(ckpt_path="saved.ckpt"))
