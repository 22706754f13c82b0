"""A schedule over one fit: attached, started once all rates are known, kept through a resume.

What all schedule callbacks do in their hooks; each adds only how its schedule is made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer

from lightning_tuning._trainer import schedule as attaching
from lightning_tuning._trainer.choices import log_choices, note_choices
from lightning_tuning._trainer.groups import Group
from lightning_tuning._trainer.learning_rates import rates_of
from lightning_tuning._trainer.monitor_log import log_figure
from lightning_tuning._trainer.report import logged_step, report
from lightning_tuning._trainer.schedule_length import refuse_endless, steps_left
from lightning_tuning._trainer.schedule_start import others_start_later, range_result
from lightning_tuning.findings import Finding
from lightning_tuning.functional.checks import PerGroup
from lightning_tuning.functional.schedules.schedule import Schedule
from lightning_tuning.functional.schedules.schedule_findings import (
    Beginning,
    beginning_findings,
    replaced_finding,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

S = TypeVar("S", bound=Schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What is known when a schedule starts.

    Attributes:
        trainer: The trainer.
        groups: The parameter groups of all optimizers, in order.
        steps: Steps made so far, for each optimizer.
        total_steps: Length of the schedule.
        restored: What the callback had saved; empty where nothing was.
        by_batch: Whether batches are counted instead of an optimizer's steps.
    """

    trainer: Trainer
    groups: Sequence[Group]
    steps: tuple[int, ...]
    total_steps: int
    restored: Mapping[str, Any]
    by_batch: bool

    @property
    def length_before(self) -> int | None:
        """The length as it was saved; None where it is the same or nothing was saved."""
        before: int | None = self.restored.get("total_steps")
        return None if before == self.total_steps else before

    def with_momentum(self, wanted: bool) -> list[bool]:
        """Return whether each group's momentum is to be set."""
        return [wanted and ("betas" in group or "momentum" in group) for group in self.groups]

    def peaks(self, given: PerGroup | None) -> tuple[list[float], str]:
        """Return the highest rate of each group, and where it comes from."""
        own = [float(group["lr"]) for group in self.groups]
        tested = range_result(self.trainer)
        if given is not None:
            peaks = list(given) if isinstance(given, Sequence) else [given] * len(own)
            unused = f" (the range test suggested {tested.suggestion:.3g})" if tested else ""
            return peaks, "max_lr" + unused
        if "max_lr" in self.restored:
            return list(self.restored["max_lr"]), "the checkpoint"
        if tested is not None:
            return self.in_ratio(tested.suggestion, tested.optimizer), "the range test"
        return own, "the optimizer's own rate"

    def in_ratio(self, rate: float, optimizer: int | None) -> list[float]:
        """Return a tested rate for the groups that were swept, in ratio; others keep their own."""
        swept = rates_of(self.trainer, optimizer)
        rates = {
            id(group): rate * (base / swept.rate)
            for group, base in zip(swept.groups, swept.base_rates, strict=True)
        }
        return [rates.get(id(group), float(group["lr"])) for group in self.groups]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Generic[S]):
    """A schedule that a callback made, and what is to be said and kept of it.

    Attributes:
        schedule: The schedule.
        described: What it does, as the start of a sentence.
        source: Where its rates come from.
        wants_momentum: Whether momentum was to be set.
        before: The schedule that the checkpoint's fit followed, if it had another length.
        state: What a resumed fit needs besides steps, length and highest rates.
        doubt: Why the schedule can hardly be meant; empty where it can.
    """

    schedule: S
    described: str
    source: str
    wants_momentum: bool
    before: S | None = None
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    doubt: str = ""


class ScheduleRun(Generic[S]):
    """The schedule of one callback, fit after fit.

    Args:
        callback: The callback that owns the schedule.
        check: The name under which it speaks.
        total_steps: Length in optimizer steps; None takes that of the fit.
        replace_scheduler: Drop a scheduler that the module returned instead of refusing it.
        plan: Makes the schedule of a fit.
        endless: The length to take where a fit has no known end; None refuses such a fit.
        length_from: The argument that an error about a fit without an end asks for.
        by_batch: Under manual optimization, count batches instead of each optimizer's steps.

    Attributes:
        findings: What there is to say about the latest fit.
        result: Its schedule, or None before its first step.
    """

    def __init__(
        self,
        callback: Callback,
        *,
        check: str,
        total_steps: int | None,
        replace_scheduler: bool,
        plan: Callable[[Start], Plan[S]],
        endless: int | None = None,
        length_from: str = "total_steps",
        by_batch: bool | None = None,
    ) -> None:
        self._callback = callback
        self._name = type(callback).__name__
        self._check = check
        self._total_steps = total_steps
        self._replace_scheduler = replace_scheduler
        self._plan = plan
        self._endless = endless
        self._length_from = length_from
        self._by_batch = total_steps is None if by_batch is None else by_batch
        self._attached: attaching.Attached | None = None
        self._forget()

    def _forget(self) -> None:
        self.findings: list[Finding] = []
        self.result: S | None = None
        self._kept: Mapping[str, Any] = {}
        self._progress: dict[str, Any] = {}
        self._restored: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Forget the fit before; a checkpoint is restored only after this."""
        if stage == "fit":
            self._forget()

    def attach(self, trainer: Trainer, **per_group: Any) -> None:
        """Attach to the optimizers, without a change to them yet; check lists over groups."""
        if self._total_steps is None and self._endless is None:
            refuse_endless(trainer, name=self._name, argument=self._length_from)
        self._attached = attaching.attach(
            trainer,
            self._callback,
            replace_scheduler=self._replace_scheduler,
            by_batch=self._by_batch,
        )
        self._attached.check_groups(**per_group)
        if self._attached.replaced:
            self.findings.append(replaced_finding(self._name, self._check, self._attached.replaced))

    def start_if_known(self, trainer: Trainer) -> None:
        """Start the schedule, unless another callback or the module may still set a rate."""
        if not others_start_later(trainer, self._callback):
            self.start(trainer)

    def start(self, trainer: Trainer) -> None:
        """Settle length and rates, set the first values, and show the schedule in the logger."""
        if self._attached is None or self._attached.started:
            return
        steps = tuple(self._restored.get("steps", [0] * len(self._attached.schedulers)))
        start = Start(
            trainer=trainer,
            groups=self._attached.groups,
            steps=steps,
            total_steps=self._length(trainer, max(steps)),
            restored=self._restored,
            by_batch=self._attached.by_batch,
        )
        plan = self._plan(start)
        self.result, self._kept = plan.schedule, plan.state
        self._attached.start(self.result.at, steps)
        beginning = Beginning(
            check=self._check,
            described=plan.described,
            source=plan.source,
            step=max(steps),
            before=plan.before,
            wants_momentum=plan.wants_momentum,
            doubt=plan.doubt,
        )
        self.findings += beginning_findings(self.result, beginning)
        report(trainer, self.findings)
        note_choices(trainer, max_lr=max(self.result.max_lr), total_steps=start.total_steps)
        tag, at = f"{self._check}/schedule", logged_step(trainer)
        log_figure(trainer, tag, functools.partial(_drawn, plan.schedule), at, file=self._check)

    def follow(self, schedule: S, **state: Any) -> None:
        """Go on by another schedule from here, and keep this state for a resumed fit."""
        assert self._attached is not None
        self.result, self._kept = schedule, {**self._kept, **state}
        self._attached.start(schedule.at, self._attached.steps)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps made so far, for each optimizer; empty outside a fit."""
        return () if self._attached is None else self._attached.steps

    def end_batch(self) -> None:
        """Advance under manual optimization, where batches are counted."""
        if self._attached is not None:
            self._attached.end_batch()

    def end(self, trainer: Trainer) -> None:
        """Tell the loggers which peak and length were taken."""
        log_choices(trainer)

    def detach(self, trainer: Trainer) -> None:
        """Let go of the optimizers."""
        if self._attached is not None:
            # a checkpoint may still be saved after this
            self._progress = self.state_dict()
            self._attached.detach(trainer)
            self._attached = None

    def state_dict(self) -> dict[str, Any]:
        """Return the steps made by each optimizer, the length, the highest rates, and the rest."""
        if self._attached is None or self.result is None:
            return dict(self._progress)
        return {
            "steps": list(self._attached.steps),
            "total_steps": self.result.total_steps,
            "max_lr": list(self.result.max_lr),
            **self._kept,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Note the state; it is used when the schedule starts."""
        self._restored = dict(state_dict)

    def _length(self, trainer: Trainer, made: int) -> int:
        if self._total_steps is not None:
            return self._total_steps
        assert self._attached is not None
        try:
            return made + steps_left(
                trainer,
                name=self._name,
                argument=self._length_from,
                by_batch=self._attached.by_batch,
            )
        except MisconfigurationException:
            if self._endless is None:
                raise
            return self._endless


def _drawn(schedule: Schedule) -> Figure:
    from lightning_tuning.plots import plot_schedule

    return plot_schedule(schedule)
