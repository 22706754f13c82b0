"""EMAWeights under a gradient scaler: steps that overflow don't count, whoever knows of them."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from lightning_tuning import EMAWeights
from tests.callbacks.ema_reference import differing, fit, weights_of
from tests.toys import Classifier


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def fused_adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


class Overflows(Classifier):
    def __init__(self, *batches, optimizer=fused_adam):
        super().__init__(optimizer)
        self.batches = batches

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return (
            loss * float("inf") if self.trainer.fit_loop.total_batch_idx in self.batches else loss
        )


def fp16():
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))


class Save(Callback):
    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint(f"{self.batches}.ckpt")


def average_of(module, **settings):
    ema = EMAWeights(**{"decay": 0.8, "after_fit": "raw", **settings})
    fit(module, ema, plugins=fp16())
    return ema.average


@pytest.mark.parametrize("optimizer", [adam, fused_adam])
def test_average_of_steps_that_all_overflow_is_the_weights(optimizer):
    module = Overflows(*range(12), optimizer=optimizer)
    first = weights_of(module)
    ema = EMAWeights(0.8)
    fit(module, ema, plugins=fp16())
    assert not differing(first, weights_of(module))


def test_first_step_that_counts_begins_the_average_however_seldom_it_moves():
    """The first step overflows, as with torch's own initial scale: the average must not stay."""
    module = Overflows(0)
    first = weights_of(module)
    average = average_of(module, every_n_steps=50)
    assert all(not torch.equal(first[name], value) for name, value in average.items())


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "settings",
    [{}, {"half_life": "12 samples"}, {"half_life": 3}, {"half_life": "0.5 epochs"}],
    ids=["decay", "samples", "steps", "epochs"],
)
def test_fused_and_other_optimizers_average_alike(settings):
    if "half_life" in settings:
        settings = settings | {"decay": 0.999, "warmup": False}
    one = average_of(Overflows(2, 3, 7), **settings)
    assert_same(one, average_of(Overflows(2, 3, 7, optimizer=adam), **settings))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("optimizer", [adam, fused_adam])
@pytest.mark.parametrize("overflows", [(), (0, 2), (1, 7, 8)])
def test_resume_after_overflows(every, optimizer, overflows):
    settings = {"every_n_steps": every, "after_fit": "ema"}

    def run(*callbacks, **others):
        module, ema = Overflows(*overflows, optimizer=optimizer), EMAWeights(0.8, **settings)
        fit(module, ema, *callbacks, plugins=fp16(), max_epochs=3, **others)
        return weights_of(module)

    whole = run(Save(6))
    again = run(ckpt_path="6.ckpt")
    assert not differing(whole, again)


def test_step_that_overflows_moves_nothing():
    class Compare(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = ema.average

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            moved.append(bool(differing(self.before, ema.average)) if self.before else None)

    ema, moved = EMAWeights(0.8), []
    fit(Overflows(2, 3, 7), ema, Compare(), plugins=fp16())
    assert moved == [None, True, False, False, True, True, True, False, True, True, True, True]
