"""Reading and setting the learning rates, weight decays and momenta of a fit's optimizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CyclicLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
)

from lightning_tuning._trainer.groups import base_rate, write, write_momentum
from lightning_tuning._trainer.schedule import ClosedFormLR


class GroupRates:
    """The parameter groups of some optimizers, whose rates move together.

    "The rate" is that of the group with the largest base rate; every other group keeps its ratio
    to it. A group's base rate is what its schedulers scale: the peak of a ``OneCycleLR`` or
    ``CyclicLR``, the ``initial_lr`` of any other, the rate itself without one.

    Args:
        optimizers: The optimizers to move.
        schedulers: The schedulers of the fit.
        others: Optimizers that stay as they are.

    Raises:
        MisconfigurationException: All base rates are zero.
    """

    def __init__(
        self,
        optimizers: Iterable[Optimizer],
        schedulers: Iterable[object] = (),
        others: Iterable[Optimizer] = (),
    ) -> None:
        self.optimizers = list(optimizers)
        self.groups = [group for o in self.optimizers for group in o.param_groups]
        cyclic = [s for s in schedulers if isinstance(s, CyclicLR)]
        peaks = {
            id(group): float(peak)
            for scheduler in cyclic
            for group, peak in zip(scheduler.optimizer.param_groups, scheduler.max_lrs, strict=True)
        }
        self.base_rates = [peaks.get(id(group), base_rate(group)) for group in self.groups]
        self.other_rates = [base_rate(group) for o in others for group in o.param_groups]
        self.rate = max(self.base_rates, default=0.0)
        if not self.rate > 0:
            raise MisconfigurationException(
                f"The optimizers' learning rates are {self.base_rates}; give at least one group a "
                "positive rate, the others keep their ratio to it."
            )

    def set(self, rate: float) -> None:
        """Set every group's current rate, in ratio."""
        for group, base in zip(self.groups, self.base_rates, strict=True):
            write(group, "lr", rate * (base / self.rate))

    def set_weight_decay(self, value: float) -> None:
        """Set the weight decay of all groups that have any; of all where none has.

        Raises:
            MisconfigurationException: An optimizer knows no weight decay.
        """
        groups = [group for group in self.groups if "weight_decay" in group]
        if len(groups) < len(self.groups):
            raise MisconfigurationException(
                f"weight_decays={value!r} needs optimizers with weight decay; "
                f"{_names(self.optimizers)} has none."
            )
        decaying = [group for group in groups if float(group["weight_decay"]) != 0]
        for group in decaying or groups:
            write(group, "weight_decay", value)

    def set_momentum(self, value: float) -> None:
        """Set the momentum, or Adam's beta1, of all groups.

        Raises:
            MisconfigurationException: An optimizer has neither.
        """
        for group in self.groups:
            if not write_momentum(group, value):
                raise MisconfigurationException(
                    f"momenta={value!r} needs optimizers with momentum or betas; "
                    f"{_names(self.optimizers)} has neither."
                )


def rates_of(trainer: Trainer, which: int | str | None) -> GroupRates:
    """Return the rates of all optimizers of the fit, or of one by index or by class name.

    Several of one class are told apart as by ``LearningRateMonitor``: ``Adam``, ``Adam-1`` ...

    Raises:
        MisconfigurationException: There is no such optimizer.
    """
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    if which is None:
        return GroupRates(trainer.optimizers, schedulers)
    names: dict[int | str, Optimizer] = {}
    for index, optimizer in enumerate(trainer.optimizers):
        kind = type(optimizer).__name__
        earlier = sum(type(other).__name__ == kind for other in trainer.optimizers[:index])
        names[index] = names[f"{kind}-{earlier}" if earlier else kind] = optimizer
    if which not in names:
        raise MisconfigurationException(
            f"optimizer={which!r} is none of this module's optimizers; choose one of {list(names)}."
        )
    chosen = names[which]
    return GroupRates([chosen], schedulers, [o for o in trainer.optimizers if o is not chosen])


def apply_learning_rate(trainer: Trainer, rates: GroupRates, rate: float) -> list[str]:
    """Make ``rate`` the base rate of groups and schedulers, in ratio.

    Returns:
        The kinds of schedulers that could not be told; their optimizer's rate is set all the same.
    """
    for group in rates.groups:
        for key in ("lr", "initial_lr", "max_lr", "min_lr"):
            if key in group:
                write(group, key, rate * (float(group[key]) / rates.rate))
    unknown: list[str] = []
    for config in trainer.lr_scheduler_configs:
        scheduler: object = config.scheduler
        if any(getattr(scheduler, "optimizer", None) is o for o in rates.optimizers):
            unknown += _scale_scheduler(scheduler, rate, rates.rate)
    return unknown


def set_module_rate(module: LightningModule, rate: float, rates: GroupRates) -> str | None:
    """Scale ``lr`` or ``learning_rate`` of the module and of its ``hparams``, where they exist.

    They are scaled by as much as the optimizers' rates, so that a module that makes its groups'
    rates from the attribute, in whatever ratio, makes the suggested ones. An attribute that equals
    the rate of an optimizer that was not swept is left alone.

    Args:
        module: The module.
        rate: The new rate.
        rates: The rates before.

    Returns:
        A sentence of doubt where an attribute equals none of the swept rates.
    """
    doubt = None
    for holder, name, old in rate_attributes(module):
        if _among(old, rates.base_rates):
            _write_attribute(holder, name, rate * (old / rates.rate))
        elif not _among(old, rates.other_rates):
            _write_attribute(holder, name, rate * (old / rates.rate))
            doubt = (
                f"{name}={old:g} of the module is none of the optimizer's rates {rates.base_rates};"
                f" it was scaled in ratio to {rate * (old / rates.rate):.2e}."
            )
    return doubt


def rate_attributes(module: LightningModule) -> list[tuple[Any, str, float]]:
    """Return (holder, name, value) of each learning rate that the module holds as an attribute."""
    found = []
    for holder in (module, cast("dict[str, Any]", module.hparams)):
        for name in ("lr", "learning_rate"):
            value = holder.get(name) if isinstance(holder, dict) else _own_attribute(holder, name)
            if isinstance(value, float | int) and not isinstance(value, bool):
                found.append((holder, name, float(value)))
    return found


def _own_attribute(module: LightningModule, name: str) -> Any:
    described = getattr(type(module), name, None)
    if isinstance(described, property):
        return getattr(module, name) if described.fset is not None else None
    return vars(module).get(name)


def _write_attribute(holder: Any, name: str, value: float) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


def _among(value: float, rates: Sequence[float]) -> bool:
    return any(math.isclose(value, rate) for rate in rates)


def _scale_scheduler(scheduler: object, rate: float, base: float) -> list[str]:
    """Scale the rates that a scheduler holds by ``rate / base``; name its kind if not known."""
    if isinstance(scheduler, ClosedFormLR | ReduceLROnPlateau):
        return []
    if isinstance(scheduler, SequentialLR | ChainedScheduler):
        parts = scheduler._schedulers
        return [name for part in parts for name in _scale_scheduler(part, rate, base)]
    known = isinstance(scheduler, LRScheduler) and _formula_is_torchs(type(scheduler))
    for name in ("base_lrs", "max_lrs", "_last_lr"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, [rate * (float(v) / base) for v in getattr(scheduler, name)])
    return [] if known else [type(scheduler).__name__]


def _formula_is_torchs(kind: type) -> bool:
    """Whether the rate is computed by torch's own code, from what was scaled."""
    owner = next(base for base in kind.__mro__ if "get_lr" in vars(base))
    return owner.__module__ == LRScheduler.__module__


def _names(optimizers: Sequence[Optimizer]) -> str:
    return ", ".join(type(optimizer).__name__ for optimizer in optimizers)
