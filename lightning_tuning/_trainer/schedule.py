"""Schedules that are a function of the step, attached to a fit from a callback.

The one mechanism of all schedule callbacks: :func:`attach` in ``on_fit_start``, ``start`` as soon
as length and peak are known, ``detach`` at the end or at an exception. Until ``start`` nothing is
written to an optimizer, so a probe that runs before sees the person's own settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_tuning._trainer.groups import base_rate, write, write_momentum
from lightning_tuning._trainer.schedule_start import callbacks_of

Values = Sequence[tuple[float, float | None]]
Schedule = Callable[[int], Values]


class ClosedFormLR(LRScheduler):
    """Sets learning rate and momentum of each group from a function of the step.

    It is an ``LRScheduler`` because Lightning and others test for the type, but leaves out the
    constructor of the base class: that writes ``initial_lr`` into the groups, wraps
    ``optimizer.step`` and warns where AMP skips the first step. Progress belongs to the callback;
    a state of another scheduler that Lightning restores by position is ignored.

    Args:
        optimizer: The optimizer whose groups are set.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.schedule: Schedule | None = None
        self.last_epoch = 0
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]

    def start(self, schedule: Schedule, step: int) -> None:
        """Follow ``schedule`` from ``step`` on; groups added later keep their own values."""
        self.schedule = schedule
        self.last_epoch = step
        self._write()

    def step(self, *_: Any, **__: Any) -> None:
        """Advance by one optimizer step; does nothing before :meth:`start`."""
        if self.schedule is not None:
            self.last_epoch += 1
            self._write()

    def get_last_lr(self) -> list[float | torch.Tensor]:
        """Return the rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the step, for those who look; the callback keeps what a resume needs."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Ignore the state: it may be another scheduler's."""

    def _write(self) -> None:
        assert self.schedule is not None
        values = self.schedule(self.last_epoch)
        for group, (lr, momentum) in zip(self.optimizer.param_groups, values, strict=False):
            write(group, "lr", lr)
            if momentum is not None:
                write_momentum(group, momentum)


@dataclasses.dataclass
class Attached:
    """The schedulers of one callback in one fit, one for each optimizer."""

    schedulers: list[ClosedFormLR]
    replaced: tuple[str, ...]
    by_batch: bool
    hooks: list[Any] = dataclasses.field(default_factory=list)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, in order."""
        return [group for s in self.schedulers for group in s.optimizer.param_groups]

    def check_groups(self, **arguments: Any) -> None:
        """Check that lists with a value for each group have as many values as there are groups.

        Raises:
            ValueError: One has more or fewer; it names the argument.
        """
        for name, value in arguments.items():
            if isinstance(value, Sequence) and len(value) != len(self.groups):
                raise ValueError(
                    f"{name}={value} has {len(value)} values for {len(self.groups)} parameter"
                    " groups of all optimizers; give one number, or one for each group"
                )

    @property
    def started(self) -> bool:
        """Whether the schedule is known and followed."""
        return self.schedulers[0].schedule is not None

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps made so far, for each optimizer."""
        return tuple(scheduler.last_epoch for scheduler in self.schedulers)

    def start(self, schedule: Schedule, steps: Sequence[int]) -> None:
        """Follow ``schedule``, a function of the step to the values of all :attr:`groups`."""
        first = 0
        for scheduler, step in zip(self.schedulers, steps, strict=True):
            last = first + len(scheduler.optimizer.param_groups)
            scheduler.start(_part(schedule, first, last), step)
            first = last

    def end_batch(self) -> None:
        """Advance where batches are what is counted."""
        if self.by_batch:
            for scheduler in self.schedulers:
                scheduler.step()

    def detach(self, trainer: Trainer) -> None:
        """Take schedulers and hooks away; the optimizers keep their present values."""
        for hook in self.hooks:
            hook.remove()
        trainer.strategy.lr_scheduler_configs = [
            config
            for config in trainer.strategy.lr_scheduler_configs
            if config.scheduler not in self.schedulers
        ]


def _part(schedule: Schedule, first: int, last: int) -> Schedule:
    return lambda step: schedule(step)[first:last]


def attach(
    trainer: Trainer, callback: Callback, *, replace_scheduler: bool, by_batch: bool
) -> Attached:
    """Attach one scheduler to each optimizer; to be called in ``on_fit_start``.

    Under automatic optimization Lightning steps it after each optimizer step. Under manual
    optimization nothing is added to ``lr_scheduler_configs``, because that changes what the
    module's own ``self.lr_schedulers()`` returns: there it advances with each step of its
    optimizer, or with each training batch.

    Args:
        trainer: The trainer, with optimizers.
        callback: The callback that owns the schedule.
        replace_scheduler: Drop a scheduler that the module returned instead of refusing it.
        by_batch: Under manual optimization, count batches instead of each optimizer's steps.

    Raises:
        MisconfigurationException: There is no optimizer with a learning rate, or the module
            returned a scheduler of its own.
    """
    name = type(callback).__name__
    optimizers = trainer.optimizers
    if not all("lr" in group for o in optimizers for group in o.param_groups) or not any(
        optimizer.param_groups for optimizer in optimizers
    ):
        raise MisconfigurationException(
            f"{name} needs an optimizer with a learning rate, and `configure_optimizers` returned"
            f" {[type(o).__name__.lstrip('_') for o in optimizers]}; return one, or remove {name}"
        )
    automatic = trainer.lightning_module.automatic_optimization
    replaced = _refuse_or_drop_schedulers(trainer, name, replace_scheduler and automatic)
    schedulers = [ClosedFormLR(optimizer) for optimizer in optimizers]
    attached = Attached(schedulers, replaced, by_batch=by_batch and not automatic)
    if automatic:
        trainer.strategy.lr_scheduler_configs += [
            LRSchedulerConfig(scheduler, interval="step") for scheduler in schedulers
        ]
    elif not by_batch:
        attached.hooks = [
            s.optimizer.register_step_post_hook(_counter(s, trainer, callback)) for s in schedulers
        ]
    return attached


def _counter(scheduler: ClosedFormLR, trainer: Trainer, callback: Callback) -> Callable[..., None]:
    def count(*_: Any) -> None:
        # a probe runs steps that it takes back, and meanwhile takes the callbacks out
        if callback in callbacks_of(trainer):
            scheduler.step()

    return count


def _refuse_or_drop_schedulers(trainer: Trainer, name: str, replace: bool) -> tuple[str, ...]:
    configs = trainer.strategy.lr_scheduler_configs
    names = tuple(type(config.scheduler).__name__ for config in configs)
    if any(isinstance(config.scheduler, ClosedFormLR) for config in configs):
        raise MisconfigurationException(
            f"{name} cannot be used beside another schedule callback: both would set the learning"
            " rate at every step; keep one of them"
        )
    if names and not replace:
        way = (
            f"return the optimizer alone, or use {name}(replace_scheduler=True)"
            if trainer.lightning_module.automatic_optimization
            # the module steps it in its own code, which would no longer find it
            else "return the optimizers alone and step no scheduler in `training_step`"
        )
        raise MisconfigurationException(
            f"`configure_optimizers` returned {', '.join(names)}, and {name} sets the learning rate"
            f" too: the later of the two would win at every step. Leave {name} out"
            f" (`recipe(one_cycle=False)`), or in `configure_optimizers` {way}"
        )
    for config in configs:
        for group in config.scheduler.optimizer.param_groups:
            # undo what its constructor did
            write(group, "lr", base_rate(group))
    configs.clear()
    return names


def drop_state(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Leave the states of closed-form schedulers out of a checkpoint.

    Lightning restores scheduler states by position: in a fit without the callback, its state
    would be loaded into whatever scheduler stands there.
    """
    checkpoint["lr_schedulers"] = [
        state
        for state, config in zip(
            checkpoint["lr_schedulers"], trainer.lr_scheduler_configs, strict=True
        )
        if not isinstance(config.scheduler, ClosedFormLR)
    ]
