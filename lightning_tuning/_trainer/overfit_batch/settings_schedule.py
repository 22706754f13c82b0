"""How far schedulers raise and lower the learning rate over a fit, without training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_tuning._trainer.groups import base_rate
from lightning_tuning._trainer.learning_rates import rates_of
from lightning_tuning._trainer.ordinary_run import OrdinaryRun
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.schedule_length import steps_left, steps_per_epoch
from lightning_tuning.functional.schedule_fall import GONE, ScheduleFall
from lightning_tuning.functional.schedule_rise import ScheduleRise

_FOLLOWED = 20_000
"""A longer warm-up is not followed to its end."""
_NEAR_BASE = 0.1
_SHORT = 100
"""A shorter fit only tries whether the program runs."""


def schedule_rise(probe: Probe, ordinary: OrdinaryRun) -> ScheduleRise | None:
    """Step the schedulers alone until a rate comes near its base rate, or to the fit's end.

    Args:
        probe: An entered probe; it is rewound afterwards.
        ordinary: How the program trains as it is.

    Returns:
        What the rates did; None without schedulers, and where the module steps them itself.
    """
    probe.rewind()
    trainer = probe.trainer
    periods = _periods(trainer)
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if not periods or not any(base_rate(group) > 0 for group in groups):
        return None
    rates = rates_of(trainer, None)
    peaks = zip(rates.groups, rates.base_rates, strict=True)
    rated = [(group, peak) for group, peak in peaks if peak > 0]
    length = _length(trainer)
    shares: list[float] = []
    changes = zeros = 0
    with warnings.catch_warnings():
        # torch misses the optimizer's steps in between
        warnings.simplefilter("ignore")
        for due in _stepped(periods, min(_FOLLOWED, length or _FOLLOWED)):
            shares.append(max(float(group["lr"]) / peak for group, peak in rated))
            if shares[-1] >= _NEAR_BASE:
                break
            still_zero = zeros == len(shares) - 1 and shares[-1] == 0
            zeros += still_zero
            changes += still_zero and bool(due)
    probe.rewind()
    return ScheduleRise(
        length=length,
        followed=len(shares),
        zeros=zeros,
        changes=changes,
        highest=max(shares),
        last=shares[-1],
        unmoved=ordinary.run.before == ordinary.run.after,
    )


def schedule_fall(probe: Probe) -> ScheduleFall | None:
    """Step the schedulers alone over the whole fit.

    Args:
        probe: An entered probe; it is rewound afterwards.

    Returns:
        What the rates did; None without schedulers, where the module steps them itself, or where
        the fit has no known length, is very short or very long.
    """
    probe.rewind()
    trainer = probe.trainer
    periods, length, epoch = _periods(trainer), _length(trainer), steps_per_epoch(trainer)
    if not periods or length is None or length > _FOLLOWED or epoch is None:
        return None
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    with warnings.catch_warnings():
        # torch misses the optimizer's steps in between
        warnings.simplefilter("ignore")
        rates = [[float(group["lr"]) for group in groups] for _ in _stepped(periods, length)]
    probe.rewind()
    highest = [max(over_time) or 1.0 for over_time in zip(*rates, strict=True)]
    shares = [max(r / h for r, h in zip(each, highest, strict=True)) for each in rates]
    return ScheduleFall(
        length=length,
        epoch=epoch,
        alive=max((step for step, share in enumerate(shares, 1) if share >= GONE), default=0),
        last=shares[-1],
    )


def _stepped(periods: Sequence[tuple[LRScheduler, int]], steps: int) -> Iterator[list[LRScheduler]]:
    """Yield the schedulers that are due after each step, whose rates hold until then; step them."""
    for step in range(1, steps + 1):
        due = [scheduler for scheduler, period in periods if step % period == 0]
        yield due
        for scheduler in due:
            scheduler.step()


def _length(trainer: Trainer) -> int | None:
    try:
        left = steps_left(trainer, name="OverfitBatchCheck")
    except MisconfigurationException:
        return None
    return left if left >= _SHORT else None


def _periods(trainer: Trainer) -> list[tuple[LRScheduler, int]]:
    """Return each scheduler and how many of the optimizer's steps lie between its own.

    Empty where that is not known of all.
    """
    module, configs = trainer.lightning_module, trainer.lr_scheduler_configs
    own = type(module).lr_scheduler_step is not LightningModule.lr_scheduler_step
    if own or not module.automatic_optimization:
        return []
    found = []
    for config in configs:
        scheduler: object = config.scheduler
        if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
            return []
        period: float = config.frequency
        if config.interval == "epoch":
            epoch = steps_per_epoch(trainer)
            if epoch is None:
                return []
            period *= epoch
        found.append((scheduler, max(int(period), 1)))
    return found
