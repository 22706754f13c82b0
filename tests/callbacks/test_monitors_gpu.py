"""Monitors on a GPU: between measured steps nothing waits for it, and nothing is changed."""

import contextlib

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from tests.callbacks.between_steps import Between, monitors
from tests.toys import Classifier, Manual, loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Precision 16-mixed is not supported by the model summary"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]
QUIET = dict.fromkeys(
    ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)


class Noted(Callback):
    """Notes losses on the device."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs:
            self.losses.append(outputs["loss"])


def fitted(module, callbacks, **settings):
    seed_everything(1, verbose=False)
    noted = Noted()
    trainer = Trainer(
        devices=1,
        logger=False,
        callbacks=[*callbacks, noted],
        **{"accelerator": "gpu", "max_epochs": 4, **QUIET, **settings},
    )
    trainer.fit(module(), loader(samples=96), loader())
    return trainer, torch.stack(noted.losses).tolist() if noted.losses else []


@contextlib.contextmanager
def cuda_raises():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("module", [Classifier, Manual])
def test_no_step_in_between_waits_for_the_device(module, precision, monkeypatch):
    between = Between(cuda_raises)
    between.watch(monkeypatch)
    fitted(module, [*monitors(1000), between], precision=precision, **between.settings)
    assert between.calls > 150


@pytest.mark.parametrize("module", [Classifier, Manual])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_fit_is_the_same_bit_for_bit(module, precision):
    plain, plain_losses = fitted(module, [], precision=precision)
    seen, losses = fitted(module, monitors(1), precision=precision)
    assert plain_losses == losses
    states = plain.lightning_module.state_dict(), seen.lightning_module.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert {k: float(v) for k, v in plain.callback_metrics.items()} == {
        k: float(v) for k, v in seen.callback_metrics.items()
    }


def test_a_measured_step_is_the_same_as_on_the_host():
    """Ratios and activations agree with those of a CPU, to rounding."""
    results = []
    for accelerator in ("gpu", "cpu"):
        callbacks = monitors(1)
        fitted(Classifier, callbacks, accelerator=accelerator)
        results.append((callbacks[0].result, callbacks[1].result))
    (ratios, layers), (host_ratios, host_layers) = results
    torch.testing.assert_close(
        torch.tensor(ratios.log10_ratios), torch.tensor(host_ratios.log10_ratios),
        rtol=1e-2, atol=1e-2, equal_nan=True,
    )  # fmt: skip
    for layer, host in zip(layers.layers, host_layers.layers, strict=True):
        torch.testing.assert_close(
            torch.tensor(layer.std), torch.tensor(host.std), rtol=1e-2, atol=1e-3
        )
