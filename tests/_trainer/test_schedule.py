"""The mechanism that all schedules share."""

import math
import types

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import LRScheduler

from lightning_tuning._trainer.schedule import Attached, ClosedFormLR, attach
from lightning_tuning._trainer.schedule_length import steps_left
from lightning_tuning._trainer.schedule_start import others_start_later, start_waiting
from tests.toys import Classifier, Manual, loader


def sgd(*rates, momentum=0.9):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0, momentum=momentum)


def halves(step):
    return [(0.5**step, 0.1 * step)]


def test_it_is_a_scheduler_and_leaves_the_optimizer_alone_until_it_starts():
    optimizer = sgd(0.3)
    before, step = optimizer.state_dict(), optimizer.step
    scheduler = ClosedFormLR(optimizer)
    scheduler.step()
    assert isinstance(scheduler, LRScheduler)
    assert optimizer.state_dict() == before
    assert optimizer.step == step
    assert scheduler.get_last_lr() == scheduler.base_lrs == [0.3]
    assert scheduler.last_epoch == 0


def test_it_follows_the_function_and_adds_no_keys():
    optimizer = sgd(0.3)
    keys = set(optimizer.param_groups[0])
    scheduler = ClosedFormLR(optimizer)
    scheduler.start(halves, step=2)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.25, 0.2)
    scheduler.step()
    assert scheduler.get_last_lr() == [0.125]
    assert set(optimizer.param_groups[0]) == keys


def test_momentum_none_is_left_alone_and_extra_groups_too():
    optimizer = sgd(0.3, 0.7)
    ClosedFormLR(optimizer).start(lambda step: [(0.1, None)], 0)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.7]
    assert [g["momentum"] for g in optimizer.param_groups] == [0.9, 0.9]


def test_tensors_are_written_in_place():
    rate, beta = torch.tensor(0.1), torch.tensor(0.9)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer.param_groups[0].update(lr=rate, betas=(beta, 0.99))
    ClosedFormLR(optimizer).start(lambda step: [(0.5, 0.25)], 0)
    assert optimizer.param_groups[0]["lr"] is rate
    assert optimizer.param_groups[0]["betas"][0] is beta
    assert (float(rate), float(beta)) == (0.5, 0.25)


def test_the_state_of_another_scheduler_is_ignored():
    scheduler = ClosedFormLR(sgd(0.3))
    scheduler.start(halves, 3)
    scheduler.load_state_dict({"last_epoch": 99, "optimizer": None, "gamma": 2.0})
    assert scheduler.state_dict() == {"last_epoch": 3}
    assert scheduler.optimizer is not None


def test_each_optimizer_gets_its_groups():
    first, second = sgd(1.0, 1.0), sgd(1.0)
    attached = Attached([ClosedFormLR(first), ClosedFormLR(second)], (), by_batch=True)
    attached.start(lambda step: [(10 * g + step, None) for g in (1, 2, 3)], [0, 5])
    assert [group["lr"] for group in attached.groups] == [10, 20, 35]
    attached.end_batch()
    assert [group["lr"] for group in attached.groups] == [11, 21, 36]
    assert attached.steps == (1, 6)


class Probe(Callback):
    """Calls a function in a hook of a fit."""

    def __init__(self, hook, function):
        self.function = function
        setattr(self, hook, lambda trainer, module, *_: self.seen(trainer))
        self.answers = []

    def seen(self, trainer):
        self.answers.append(self.function(trainer))


def run(module, *callbacks, data=None, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        **{"max_epochs": 3, "limit_val_batches": 0, "accelerator": "cpu", **quiet, **settings},
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, loader(20) if data is None else data, loader(4))
    return trainer


def test_steps_left_at_every_epoch():
    probe = Probe("on_train_epoch_start", lambda trainer: steps_left(trainer, name="X"))
    run(Classifier(), probe, accumulate_grad_batches=2)
    assert probe.answers == [9, 6, 3]


def test_steps_left_with_max_steps():
    probe = Probe("on_train_epoch_start", lambda trainer: steps_left(trainer, name="X"))
    run(Classifier(), probe, max_steps=8)
    assert probe.answers == [8, 3]


def test_batches_left_of_two_optimizers_with_max_steps():
    probe = Probe("on_train_start", lambda trainer: steps_left(trainer, name="X", by_batch=True))
    run(Manual(), probe, max_steps=9)
    run(Manual(), probe)
    assert probe.answers == [5, 15]


def test_no_end_is_an_error_that_names_the_callback():
    trainer = types.SimpleNamespace(
        max_epochs=-1, max_steps=-1, num_training_batches=5, callbacks=[], optimizers=[None]
    )
    with pytest.raises(MisconfigurationException, match=r"Cycle\(total_steps=None\) cannot tell"):
        steps_left(trainer, name="Cycle")
    trainer.max_epochs, trainer.num_training_batches = 3, math.inf
    with pytest.raises(MisconfigurationException, match="no length"):
        steps_left(trainer, name="Cycle")


def test_two_schedules_are_refused():
    class Both(Callback):
        def on_fit_start(self, trainer, pl_module):
            for _ in range(2):
                attach(trainer, self, replace_scheduler=True, by_batch=True)

    with pytest.raises(MisconfigurationException, match="beside another schedule"):
        run(Classifier(), Both())


def test_steps_of_a_probe_do_not_count_under_manual_optimization():
    class Counts(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.attached = attach(trainer, self, replace_scheduler=False, by_batch=False)
            self.attached.start(lambda step: [(0.1, None)] * 2, [0, 0])

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                # what the sandbox does: callbacks out, steps, callbacks in
                callbacks, trainer.callbacks = trainer.callbacks, []
                trainer.optimizers[0].step()
                trainer.callbacks = callbacks

    callback = Counts()
    run(Manual(), callback, max_epochs=1)
    assert callback.attached.steps == (5, 5)


class Sets(Callback):
    def on_train_start(self, trainer, pl_module):
        start_waiting(trainer, after=self)


class Waits(Callback):
    def __init__(self):
        self.started = []

    def on_train_start(self, trainer, pl_module):
        self.later = others_start_later(trainer, self)

    def start_schedule(self, trainer):
        self.started.append(len(self.started))


@pytest.mark.parametrize("tests", [1, 2])
def test_a_schedule_that_waits_starts_after_the_last_range_test(tests):
    waits = Waits()
    run(Classifier(), waits, *(Sets() for _ in range(tests)), max_epochs=1)
    assert waits.later
    assert waits.started == [0]


def test_nobody_is_waited_for_without_a_later_callback():
    waits = Waits()
    run(Classifier(), Sets(), waits, max_epochs=1)
    assert not waits.later
