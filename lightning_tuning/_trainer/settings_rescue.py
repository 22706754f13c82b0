"""Short trainings with one setting changed, for a program that trains badly as it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.learning_rates import rates_of
from lightning_tuning._trainer.ordinary_run import OrdinaryRun, ordinary_run, within_time
from lightning_tuning._trainer.probe import Probe, Run
from lightning_tuning._trainer.settings_candidates import (
    Change,
    Peaks,
    higher,
    levelled,
    lower,
    unusually_low,
    with_usual_momentum,
    without_clipping,
    without_decay,
)
from lightning_tuning._trainer.settings_changes import DuringSteps, pinned
from lightning_tuning.functional.progress import progress
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
    ordinary = ordinary_run(probe)
    as_it_is = SettingsEvidence(
        progress=(ordinary.progress,), start=ordinary.run.before, chance=ordinary.chance
    )
    badly = bool(probe.trainer.strategy.broadcast(ordinary.trains_badly))
    if not badly:
        return dataclasses.replace(as_it_is, reason="" if ordinary.judgeable else _SEVERAL)
    reason = _SELF_MADE if own_targets else _unjudgeable(ordinary)
    reason = str(probe.trainer.strategy.broadcast(reason))
    if reason:
        return dataclasses.replace(as_it_is, reason=reason)
    return _Rescuer(probe, ordinary).evidence(as_it_is)


class _Rescuer:
    def __init__(self, probe: Probe, ordinary: OrdinaryRun) -> None:
        self._probe = probe
        self._ordinary = ordinary
        self._movement = math.inf

    def evidence(self, as_it_is: SettingsEvidence) -> SettingsEvidence:
        """Try one change after the other; what helps is confirmed on another data order."""
        self._probe.rewind()
        tried: list[Rescue] = []
        again: float | None = None
        for change in self._changes():
            found = self._progress(change, _STEPS)
            rescue = Rescue(code=change.code, change=change.text, progress=(found,))
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
            movement=self._movement,
        )

    def _changes(self) -> Iterator[Change]:
        probe = self._probe
        rates = rates_of(probe.trainer, None)
        peaks = list(zip(rates.groups, rates.base_rates, strict=True))
        yield from without_decay(rates.groups)
        stands_still = self._stands_still(peaks)
        if probe.trainer.gradient_clip_val and stands_still and self._movement < _UNMOVED:
            yield without_clipping(probe)
        yield from with_usual_momentum(rates.groups)
        if probe.trainer.lr_scheduler_configs:
            yield from self._unscheduled(rates.rate, peaks)
        yield from levelled(rates)
        for factor in _LOWER:
            yield lower(rates.rate, factor)
        if stands_still and unusually_low(peaks):
            for factor in _HIGHER:
                yield higher(rates.rate, peaks, factor)

    def _stands_still(self, peaks: Peaks) -> bool:
        """Whether weights hardly move and nothing is learnt, even at the peak of all schedules."""
        watch = _Movement(self._probe.module)
        held = Change(code="", text="", values=pinned(peaks), schedules=False)
        run = self._run(held, _STEPS, order=0, until=watch)
        learnt = progress(run.before, run.after, chance=self._ordinary.chance)
        self._movement = watch.farthest
        still = learnt < STANDSTILL and self._movement < STANDSTILL_MOVEMENT
        return bool(self._probe.trainer.strategy.broadcast(still))

    def _unscheduled(self, rate: float, peaks: Peaks) -> Iterator[Change]:
        """Hold the rate, where a schedule brings it to nothing within a short training."""
        watch = _LastRate(peaks)
        self._run(None, _STEPS, order=0, until=watch)
        if watch.first > _NEAR_PEAK and watch.last < _FAR_FROM_PEAK:
            yield Change(
                code="lr_too_low",
                text=f"the learning rate held at {rate:.2g}, which schedules bring down to "
                f"{watch.last:.1e} of that in {_STEPS} steps,",
                values=pinned(peaks),
                schedules=False,
            )

    def _progress(self, change: Change | None, steps: int, *, order: int = 0) -> float:
        run = self._run(change, steps, order=order)
        if min((*run.losses, run.before, run.after)) <= 0 and self._ordinary.chance is None:
            return -math.inf  # a share of such a loss means nothing
        return progress(run.before, run.after, chance=self._ordinary.chance)

    def _run(
        self,
        change: Change | None,
        steps: int,
        *,
        order: int,
        until: Callable[[int, Tensor], bool] | None = None,
    ) -> Run:
        def prepare() -> None:
            if order:
                self._probe.box.rewind(order=order)
            if change is not None:
                change.prepare()

        values = [] if change is None or change.values is None else [change.values]
        return self._probe.run(
            steps,
            prepare=prepare,
            schedules=change is None or change.schedules,
            watch=[DuringSteps(*values)],
            until=until or within_time(self._probe),
        )


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
    if ordinary.chance is not None and run.before > _FAR_FROM_CHANCE * ordinary.chance:
        return (
            f"the loss starts at {run.before:.4g}, far above chance ({ordinary.chance:.4g}), which "
            "is no matter of these settings"
        )
    return ""


def _before_it_broke(run: Run) -> float | None:
    """Return the last loss before the first that is not finite; None if all are finite."""
    for step, loss in enumerate(run.losses):
        if not math.isfinite(loss):
            return run.losses[step - 1] if step else run.before
    return None


class _Movement:
    """Tells how far weights went from where they were in the first step."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
        self._start = [p.detach().clone() for p in self._weights]
        self.farthest = 0.0

    def __call__(self, step: int, _loss: Tensor) -> bool:
        if step == _STEPS - 1:
            ways = [
                (p.detach() - start).norm() / start.norm().clamp(min=1e-12)
                for p, start in zip(self._weights, self._start, strict=True)
            ]
            self.farthest = float(torch.stack([w.float() for w in ways]).max()) if ways else 0.0
        return False


class _LastRate:
    """Notes the largest share of its base rate that a group has, after the first step and later."""

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = [(group, peak) for group, peak in peaks if peak > 0]
        self.first = math.nan
        self.last = math.nan

    def __call__(self, step: int, _loss: Tensor) -> bool:
        self.last = max(float(group["lr"]) / peak for group, peak in self._peaks)
        if step == 0:
            self.first = self.last
        return False
