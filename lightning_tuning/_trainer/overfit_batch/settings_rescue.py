"""Short trainings with one setting changed, for a program that trains badly as it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from lightning_tuning._trainer.learning_rates import rates_of
from lightning_tuning._trainer.ordinary_run import OrdinaryRun, ordinary_run
from lightning_tuning._trainer.overfit_batch.settings_candidates import (
    Change,
    Peaks,
    higher,
    levelled,
    lower,
    unrisen,
    unusually_low,
    with_usual_momentum,
    without_clipping,
    without_decay,
)
from lightning_tuning._trainer.overfit_batch.settings_changes import (
    betas_of,
    pinned,
)
from lightning_tuning._trainer.overfit_batch.settings_clipping import GradientsBeforeStep
from lightning_tuning._trainer.overfit_batch.settings_outdone import outdone_by_other_settings
from lightning_tuning._trainer.overfit_batch.settings_schedule import (
    schedule_fall,
    schedule_rise,
)
from lightning_tuning._trainer.overfit_batch.settings_training import train_with
from lightning_tuning._trainer.overfit_batch.settings_watches import LastRate, Movement
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import Run
from lightning_tuning.functional.progress import progress
from lightning_tuning.functional.schedule_rise import ScheduleRise
from lightning_tuning.functional.settings_findings import (
    BAD,
    CODES,
    GOOD,
    STANDSTILL,
    STANDSTILL_MOVEMENT,
    Rescue,
    SettingsEvidence,
)

_STEPS = 100
_CONFIRMING_STEPS = 200
_FAR_FROM_CHANCE = 3.0
_UNMOVED = 0.02
"""Weights that move farther than this in a short training get somewhere in a long one."""
_NEAR_PEAK = 0.3
_FAR_FROM_PEAK = 0.01
_RISEN = 2.0
"""A training that diverges has losses so many times that of the start before they overflow."""
_LOWER = (0.1, 0.01, 0.001)
_HIGHER = (10.0, 100.0, 1e3, 1e4, 1e5)


def measure(probe: Probe, *, own_targets: bool) -> SettingsEvidence:
    """Train the program with one setting changed after the other, until one helps.

    Args:
        probe: An entered probe.
        own_targets: Whether the network makes its own targets, so that its loss tells little.
    """
    ordinary = _of_all_ranks(probe, ordinary_run(probe))
    as_it_is = SettingsEvidence(
        progress=(ordinary.progress,),
        start=ordinary.run.before,
        chance=ordinary.chance,
        betas=betas_of(probe.trainer.optimizers),
    )
    rise = schedule_rise(probe, ordinary)
    as_it_is = dataclasses.replace(as_it_is, rise=rise, fall=schedule_fall(probe))
    badly = ordinary.trains_badly
    if not ordinary.judgeable:
        return dataclasses.replace(as_it_is, reason=_SEVERAL)
    reason = _SELF_MADE if own_targets else _unjudgeable(ordinary)
    reason = str(probe.trainer.strategy.broadcast(reason))
    outdone = as_it_is
    if not reason:
        outdone = outdone_by_other_settings(probe, as_it_is, badly=badly)
    if outdone.outdone or not badly:
        return outdone
    reason = reason or _far_from_chance(ordinary)
    if reason:
        return dataclasses.replace(as_it_is, reason=reason)
    return _Rescuer(probe, ordinary, rise).evidence(as_it_is)


def _of_all_ranks(probe: Probe, ordinary: OrdinaryRun) -> OrdinaryRun:
    """Return it with one chance for all ranks, whose batches differ: all must try the same."""
    chance, learnt = probe.trainer.strategy.broadcast((ordinary.chance, ordinary.progress))
    return dataclasses.replace(ordinary, chance=chance, progress=learnt)


class _Rescuer:
    def __init__(self, probe: Probe, ordinary: OrdinaryRun, rise: ScheduleRise | None) -> None:
        self._probe = probe
        self._rise = rise
        self._ordinary = ordinary
        self._movement = math.inf
        self._left = 1.0

    def evidence(self, as_it_is: SettingsEvidence) -> SettingsEvidence:
        """Try one change after the other; what helps is confirmed on another data order."""
        self._probe.rewind()
        tried: list[Rescue] = []
        again: float | None = None
        for change in self._changes():
            found = self._progress(change, _STEPS)
            rescue = Rescue(
                code=change.code, change=change.text, progress=(found,), hint=change.hint
            )
            tried.append(rescue)
            if found <= GOOD:
                continue
            if again is None:
                again = self._progress(None, _CONFIRMING_STEPS, order=1)
            if again >= BAD:
                break
            second = self._progress(change, _CONFIRMING_STEPS, order=1)
            tried[-1] = dataclasses.replace(rescue, progress=(found, second))
            if tried[-1].helps:
                break
        return dataclasses.replace(
            as_it_is,
            progress=as_it_is.progress if again is None else (*as_it_is.progress, again),
            rescues=tuple(tried),
            untried=tuple(set(CODES) - {rescue.code for rescue in tried}),
        )

    def _changes(self) -> Iterator[Change]:
        probe = self._probe
        rates = rates_of(probe.trainer, None)
        peaks = list(zip(rates.groups, rates.base_rates, strict=True))
        yield from without_decay(rates.groups)
        stands_still = self._stands_still(peaks)
        if stands_still and self._movement < _UNMOVED:
            yield from without_clipping(probe, self._left)
        yield from with_usual_momentum(rates.groups)
        if probe.trainer.lr_scheduler_configs:
            yield from self._unscheduled(rates.rate, peaks)
            yield from unrisen(rates.rate, peaks, self._rise)
        yield from levelled(rates)
        for factor in _LOWER:
            yield lower(rates.rate, factor)
        if stands_still and unusually_low(peaks):
            for factor in _HIGHER:
                yield higher(rates.rate, peaks, factor)

    def _stands_still(self, peaks: Peaks) -> bool:
        """Whether weights hardly move and nothing is learnt, even at the peak of all schedules."""
        watch = Movement(self._probe.module, _STEPS)
        held = Change(code="", text="", values=pinned(peaks), schedules=False)
        # ranks add up their gradients, and loss scalers divide them, between backward and step
        trainer = self._probe.trainer
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        alone = trainer.world_size == 1 and not scaled
        gradients = [GradientsBeforeStep(trainer)] if alone else []
        run = train_with(self._probe, held, _STEPS, order=0, until=watch, watch=gradients)
        self._left = min((seen.share() for seen in gradients), default=1.0)
        learnt = progress(run.before, run.after, chance=self._ordinary.chance)
        self._movement = watch.farthest
        still = learnt < STANDSTILL and self._movement < STANDSTILL_MOVEMENT
        return bool(self._probe.trainer.strategy.broadcast(still))

    def _unscheduled(self, rate: float, peaks: Peaks) -> Iterator[Change]:
        """Hold the rate, where a schedule brings it to nothing within a short training."""
        watch = LastRate(peaks)
        train_with(self._probe, None, _STEPS, order=0, until=watch)
        if watch.first > _NEAR_PEAK and watch.last < _FAR_FROM_PEAK:
            yield Change(
                code="lr_too_low",
                text=f"the learning rate held at {rate:.2g}, which schedules bring down to "
                f"{watch.last:.1e} of that in {_STEPS} steps,",
                values=pinned(peaks),
                schedules=False,
                hint="Let the schedule decay over the whole fit; see whether it counts steps where "
                "it means epochs.",
            )

    def _progress(self, change: Change | None, steps: int, *, order: int = 0) -> float:
        run = train_with(self._probe, change, steps, order=order)
        if min((*run.losses, run.before, run.after)) <= 0 and self._ordinary.chance is None:
            return -math.inf  # a share of such a loss means nothing
        return progress(run.before, run.after, chance=self._ordinary.chance)


_SEVERAL = "the losses of several optimizers do not tell how well a program trains"
_SELF_MADE = "the network makes its own targets, so that its loss does not tell how well it trains"


def _unjudgeable(ordinary: OrdinaryRun) -> str:
    run = ordinary.run
    if not math.isfinite(run.before):
        return "the loss is not finite before the first step"
    last = _before_it_broke(run)
    if last is not None and last < _RISEN * run.before:
        return f"the loss goes from {last:.4g} to no number at all, without rising before"
    if ordinary.chance is None and min((run.before, *run.losses)) <= 0:
        return "a loss below zero has no known scale"
    return ""


def _far_from_chance(ordinary: OrdinaryRun) -> str:
    before, chance = ordinary.run.before, ordinary.chance
    if chance is None or before <= _FAR_FROM_CHANCE * chance:
        return ""
    return (
        f"the loss starts at {before:.4g}, far above chance ({chance:.4g}), which is no matter of "
        "these settings"
    )


def _before_it_broke(run: Run) -> float | None:
    """Return the last loss before the first that is not finite; None if all are finite."""
    for step, loss in enumerate(run.losses):
        if not math.isfinite(loss):
            return run.losses[step - 1] if step else run.before
    return None
