"""The settings that may spoil a training, and what to put in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightning_tuning._trainer.groups import Group, momentum_of
from lightning_tuning._trainer.learning_rates import GroupRates
from lightning_tuning._trainer.overfit_batch.settings_changes import (
    MOMENTUM,
    Values,
    pinned,
    scaled,
    usual_momentum,
    without_weight_decay,
)
from lightning_tuning._trainer.overfit_batch.settings_clipping import GradientsBeforeStep
from lightning_tuning._trainer.probe import Probe, Watch
from lightning_tuning.functional.schedule_rise import ScheduleRise

_UNEQUAL = 10.0
_MOMENTUM_LIMIT = 0.95
_SHRUNK = 0.01
_LOW_NORMALIZED = 5e-6
_LOW = 5e-5
Peaks = Sequence[tuple[Group, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """One setting, other than it is.

    Attributes:
        code: What is wrong if it helps.
        text: The change in words.
        values: Entries of the parameter groups during each step.
        prepare: What else is changed before the first step.
        schedules: Whether schedulers go on.
        watch: Contexts to be active during the training.
        hint: What to do if it helps, where that is not the usual thing.
    """

    code: str
    text: str
    values: Values | None = None
    prepare: Callable[[], None] = lambda: None
    schedules: bool = True
    watch: tuple[Watch, ...] = ()
    hint: str = ""


def without_decay(groups: Sequence[Group]) -> Iterator[Change]:
    """Yield no weight decay, where there is some."""
    largest = max((float(group.get("weight_decay", 0.0)) for group in groups), default=0.0)
    if largest > 0:
        text = f"a weight decay of 0 instead of {largest:.3g}"
        yield Change(code="weight_decay_too_high", text=text, values=without_weight_decay)


def without_clipping(probe: Probe, left: float) -> Iterator[Change]:
    """Yield gradients as the backward pass leaves them, where the program shrinks them.

    Args:
        probe: An entered probe.
        left: The share of their norm that is left when they are used.
    """
    trainer = probe.trainer
    if left < _SHRUNK:
        text = f"gradients as they come, of which {left:.1e} is left before each step,"
        watch = (GradientsBeforeStep(trainer, undo=True),)
        yield Change(code="clip_too_small", text=text, watch=watch)
    elif trainer.gradient_clip_val:

        def prepare() -> None:
            trainer.gradient_clip_val = None

        text = f"no gradient clipping instead of {trainer.gradient_clip_val:.3g}"
        yield Change(code="clip_too_small", text=text, prepare=prepare)


def with_usual_momentum(
    groups: Sequence[Group], above: float = _MOMENTUM_LIMIT
) -> Iterator[Change]:
    """Yield a momentum of 0.9, where it is above a limit."""
    largest = max((momentum_of(group) for group in groups), default=0.0)
    if largest > above:
        text = f"a momentum of {MOMENTUM} instead of {largest:.4g}"
        yield Change(code="momentum_too_high", text=text, values=usual_momentum)


def levelled(rates: GroupRates) -> Iterator[Change]:
    """Yield the lowest rate for all groups, where their rates are far apart."""
    usual = sorted(rate for rate in rates.base_rates if rate > 0)
    low = usual[0]
    if usual[-1] < _UNEQUAL * low:
        return
    text = f"{low:.2g} instead of {usual[-1]:.2g} as the learning rate of all parameter groups"
    factors = {
        id(group): low / rate
        for group, rate in zip(rates.groups, rates.base_rates, strict=True)
        if rate > low
    }

    def values(group: Group) -> dict[str, Any]:
        return {"lr": group["lr"] * factors.get(id(group), 1.0)}

    yield Change(code="lr_too_high", text=text, values=values)


def unrisen(rate: float, peaks: Peaks, rise: ScheduleRise | None) -> Iterator[Change]:
    """Yield the peaks, held, where the fit ends before its schedules have come near them."""
    if rise is not None and rise.never_ends:
        yield Change(
            code="lr_too_low",
            text=f"the learning rate held at {rate:.2g}, of which schedules reach no more than "
            f"{rise.highest:.1e} in all {rise.length} steps of the fit,",
            values=pinned(peaks),
            schedules=False,
        )


def lower(rate: float, factor: float) -> Change:
    """Return a part of the learning rate, whatever its schedule."""
    return Change(code="lr_too_high", text=_instead(rate, factor), values=scaled(factor))


def higher(rate: float, peaks: Peaks, factor: float) -> Change:
    """Return a multiple of the peaks of all schedules, held."""
    return Change(
        code="lr_too_low",
        text=_instead(rate, factor),
        values=pinned([(group, peak * factor) for group, peak in peaks]),
        schedules=False,
    )


def unusually_low(peaks: Peaks) -> bool:
    """Whether all rates are below what people take for fine-tuning.

    A short training can't tell a low rate for a long training from one that is too low.
    """
    return all(peak < (_LOW_NORMALIZED if _normalizes(group) else _LOW) for group, peak in peaks)


def _normalizes(group: Group) -> bool:
    """Whether the length of a step depends on the rate alone, as Adam's."""
    return "betas" in group or "eps" in group


def _instead(rate: float, factor: float) -> str:
    return f"a learning rate of {rate * factor:.2g} instead of {rate:.2g}"
