"""Which setting of the optimizer or trainer spoils a training, by what other settings do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.overfit_batch_findings import speak
from lightning_tuning.functional.schedule_fall import ScheduleFall
from lightning_tuning.functional.schedule_rise import ScheduleRise

BAD = 0.1
"""A training with less progress than this learns next to nothing."""
GOOD = 0.3
"""A training with more progress than this learns."""
_SOME = 0.75
_LEFT: Mapping[str, float] = {"lr_too_high": 0.5, "clip_too_small": 1 / 3}
_LEFT_ELSE = 0.25
"""The share of the loss that another setting leaves of what is left as it is. In 100 steps a tenth
of the learning rate left more, not less, on healthy programs: 1.2 to 3 times, L-BFGS aside."""
_LONG = 0.99
"""Momentum above this, with shorter squares, is no choice that people make."""
STANDSTILL = 0.05
STANDSTILL_MOVEMENT = 0.1
"""Progress, and movement of weights, below which a training stands still."""

CODES = (
    "lr_too_high",
    "lr_too_low",
    "weight_decay_too_high",
    "clip_too_small",
    "momentum_too_high",
)
_HINTS: Mapping[str, str] = {
    "lr_too_high": "Lower the learning rate; LRRangeTest finds one.",
    "lr_too_low": "Raise the learning rate; LRRangeTest finds one.",
    "weight_decay_too_high": "Lower weight_decay; 1e-4 to 0.1 is usual.",
    "clip_too_small": "Raise gradient_clip_val; 1.0 is usual.",
    "momentum_too_high": "Lower the momentum (Adam: beta1); 0.9 is usual.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescue:
    """A short training with one setting changed.

    Attributes:
        code: What is wrong if it helps.
        change: The change in words: ``"a learning rate of 0.001 instead of 0.1"``.
        progress: The share of the loss that it learnt, for each data order that was tried.
        hint: What to do, where that is not the usual thing.
    """

    code: str
    change: str
    progress: tuple[float, ...]
    hint: str = ""

    @property
    def helps(self) -> bool:
        """Whether it learns, on two data orders.

        Example:
            >>> Rescue(code="lr_too_high", change="", progress=(0.5, 0.1)).helps
            False
        """
        return len(self.progress) > 1 and min(self.progress) > GOOD


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingsEvidence:
    """How a program trains as it is, and with other settings.

    Attributes:
        progress: As it is, for each data order that was tried.
        rescues: With other settings; the one that helps comes last.
        start: The loss before the first step.
        chance: The loss at chance; None where it is not known.
        reason: Why nothing was tried, if so.
        untried: Settings that are not in use, by code.
        rise: What schedules make of the learning rate; None where not known.
        fall: What they make of it over the whole fit; None where not known.
        betas: The pairs of the parameter groups that have them, as Adam's.
    """

    progress: tuple[float, ...]
    rescues: tuple[Rescue, ...] = ()
    start: float = math.nan
    chance: float | None = None
    reason: str = ""
    untried: Sequence[str] = ()
    rise: ScheduleRise | None = None
    fall: ScheduleFall | None = None
    betas: Sequence[tuple[float, float]] = ()

    @property
    def may_be_outdone(self) -> bool:
        """Whether it learns so little as it is that another run is worth its time."""
        return self.progress[0] < _SOME

    @property
    def first_outdone(self) -> bool:
        """Whether another setting leaves far less of the loss, on the first data order."""
        return any(_outdoes(rescue, 0, self.progress[0]) for rescue in self.rescues)

    @property
    def outdone(self) -> bool:
        """The same on two data orders, whether it learns something as it is or not."""
        return len(self.progress) > 1 and any(
            rescue.helps and all(_outdoes(rescue, i, own) for i, own in enumerate(self.progress))
            for rescue in self.rescues
        )

    @property
    def swapped_betas(self) -> tuple[float, float] | None:
        """The first of these in the wrong order: a long momentum, and shorter squares."""
        return next((b for b in self.betas if b[0] > b[1] and b[0] >= _LONG), None)

    @property
    def trains_badly(self) -> bool:
        """Whether it learns next to nothing as it is, on every data order."""
        return max(self.progress) < BAD


def _outdoes(rescue: Rescue, order: int, own: float) -> bool:
    left = _LEFT.get(rescue.code, _LEFT_ELSE)
    return own < _SOME and 1 - rescue.progress[order] <= left * (1 - own)


def settings_findings(evidence: SettingsEvidence) -> tuple[Finding, ...]:
    """Return a finding for each setting, and one for the schedule."""
    tried = (finding for code in CODES for finding in _finding(evidence, code))
    return (*tried, *_decayed(evidence.fall))


def _finding(evidence: SettingsEvidence, code: str) -> tuple[Finding, ...]:
    if code == "lr_too_low" and evidence.rise is not None and evidence.rise.stays_zero:
        return _rate_of_zero(evidence.rise)
    if code == "momentum_too_high" and evidence.swapped_betas is not None:
        return _betas_swapped(*evidence.swapped_betas)
    if evidence.reason:
        return speak("skip", code, f"Not checked: {evidence.reason}.")
    first = evidence.progress[0]
    if not evidence.trains_badly and not evidence.outdone:
        text = f"A short training as it is takes {first:.0%} of the loss away."
        return speak("pass", code, text, evidence={"progress": first})
    helped = next((r for r in evidence.rescues if r.helps), None)
    if helped is None or helped.code != code:
        why = "that is not in use" if code in evidence.untried else "other settings do not help"
        if helped is not None:
            why = f"{helped.change} helps"
        text = f"A short training {_as_it_is(first)}, but {why}."
        return speak("skip", code, text, evidence={"progress": first})
    lowest = min(helped.progress)
    return speak(
        "warn",
        code,
        f"A short training {_as_it_is(first)}; with {helped.change} it takes {lowest:.0%} away.",
        hint=helped.hint or _HINTS[code],
        evidence={"progress": first, "rescued": lowest},
    )


def _betas_swapped(first: float, second: float) -> tuple[Finding, ...]:
    return speak(
        "warn",
        "momentum_too_high",
        f"betas=({first:g}, {second:g}): the first is for the momentum, the second for the squared "
        "gradients, which are to be remembered longer; they look swapped.",
        hint=f"Write betas=({second:g}, {first:g}).",
        evidence={"beta1": first, "beta2": second},
    )


def _decayed(fall: ScheduleFall | None) -> tuple[Finding, ...]:
    code = "lr_decayed_too_fast"
    if fall is None:
        text = "There is no scheduler whose rates are known beforehand, or no fit of known length."
        return speak("skip", code, text)
    numbers: dict[str, Scalar] = {
        "steps_alive": fall.alive,
        "steps": fall.length,
        "last": fall.last,
    }
    told = (
        f"The schedule keeps the learning rate above a thousandth of its highest value in "
        f"{fall.alive} of {fall.length} steps"
    )
    if not fall.too_fast:
        return speak("pass", code, f"{told}.", evidence=numbers)
    return speak(
        "warn",
        code,
        f"{told}, of which an epoch has {fall.epoch}; all others change next to nothing.",
        hint="See whether the scheduler counts steps for epochs (interval), and let it decay over "
        "the whole fit.",
        evidence=numbers,
    )


def _rate_of_zero(rise: ScheduleRise) -> tuple[Finding, ...]:
    whole = rise.length is not None and rise.zeros >= rise.length
    return speak(
        "fail" if whole else "warn",
        "lr_too_low",
        f"The schedule holds the learning rate at 0 in {rise.zero_in_words()}, which change no "
        "weight.",
        hint="Look at how the schedule counts its steps: a warm-up rises at each of them, without "
        "whole-number division.",
        evidence={"steps_at_zero": rise.zeros, "steps": rise.length},
    )


def _as_it_is(progress: float) -> str:
    if math.isinf(progress):
        return "breaks down as it is"
    if progress < 0:
        return "leaves the loss above its start, or chance, as it is"
    return f"takes {progress:.1%} of the loss away as it is"
