"""The rate that is recorded is the one that the optimizer stepped with."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_tuning.callbacks.loss_curve_diagnosis import LossCurveDiagnosis
from tests.test_contract import fit, trainer_for
from tests.toys import Classifier, Manual


class StepsWith(torch.optim.SGD):
    """Notes the rates that it steps with."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, lr=lr)
        self.used = []

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        self.used.append(max(float(group["lr"]) for group in self.param_groups))
        return loss


class Own(Classifier):
    """Trains with optimizers that a function makes of the parameters."""

    def __init__(self, make=StepsWith):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


class Halves(Callback):
    """Sets the rate in a hook of its own, just before the step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] / 2


def recorded(module, *others, **settings):
    callback = LossCurveDiagnosis()
    trainer = trainer_for(callback, *others, **settings)
    fit(trainer, module)
    return callback.result.curves.rates, trainer


def test_whoever_sets_it_when():
    rates, trainer = recorded(Own(), Halves())
    [optimizer] = trainer.optimizers
    assert rates == tuple(optimizer.used)
    assert rates == pytest.approx([0.1 / 2**step for step in range(1, 13)])


def test_a_step_of_several_batches_has_its_own():
    rates, trainer = recorded(Own(), Halves(), accumulate_grad_batches=2)
    assert rates == tuple(trainer.optimizers[0].used)
    assert len(rates) == 6


def test_optimizers_that_are_replaced_on_the_way_are_followed():
    class Replaces(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:
                self.old = trainer.optimizers[0]
                trainer.strategy.optimizers = [StepsWith(pl_module.parameters(), lr=0.03)]

    replaces = Replaces()
    rates, trainer = recorded(Own(), replaces, Halves())
    # seen at the end of the epoch's first batch
    assert rates[:6] == tuple(replaces.old.used)
    assert rates[7:] == tuple(trainer.optimizers[0].used[1:])
    assert not replaces.old._optimizer_step_post_hooks


@pytest.mark.parametrize("module", [Own, Manual])
@pytest.mark.parametrize("stop", [None, RuntimeError, KeyboardInterrupt])
def test_no_hook_stays_behind(module, stop):
    class Stops(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert all(o._optimizer_step_post_hooks for o in trainer.optimizers)
            self.optimizers = trainer.optimizers
            if stop is not None and trainer.current_epoch:
                raise stop

    stops = Stops()
    if stop is None:
        recorded(module(), stops)
    else:
        with pytest.raises((RuntimeError, SystemExit)):
            recorded(module(), stops)
    assert stops.optimizers
    assert not any(o._optimizer_step_post_hooks for o in stops.optimizers)


class Wrapper:
    """An optimizer inside of what is none of torch's, as some strategies have it."""

    def __init__(self, inner):
        self.inner = inner
        self.param_groups, self.state = inner.param_groups, inner.state

    def step(self):
        self.inner.step()
        self.param_groups[0]["lr"] *= 0.5


class Wraps(Callback):
    def on_train_start(self, trainer, pl_module):
        trainer.strategy._optimizers = [Wrapper(o) for o in trainer.optimizers]


class StepsItself(Own):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        [optimizer] = self.trainer.optimizers
        loss = super().training_step(batch, batch_idx)
        optimizer.inner.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


def test_one_that_takes_no_hooks_is_read_before_each_batch():
    callback = LossCurveDiagnosis()
    trainer = trainer_for(Wraps(), callback)
    fit(trainer, StepsItself())
    [optimizer] = trainer.optimizers
    assert callback.result.curves.rates == tuple(optimizer.inner.used)
