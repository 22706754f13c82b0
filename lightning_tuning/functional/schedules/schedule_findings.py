"""What a schedule has to tell about a fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lightning_tuning.findings import Finding
from lightning_tuning.functional.schedules.schedule import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """A schedule that starts or goes on, and what it was.

    Attributes:
        check: The name of the check that speaks.
        described: What the schedule does, as the start of a sentence.
        source: Where its rates come from.
        step: Steps made under it so far.
        before: The schedule as the fit was last saved; None where that was the same length.
        wants_momentum: Whether momentum was to be set.
        doubt: Why the schedule can hardly be meant; empty where it can.
    """

    check: str
    described: str
    source: str
    step: int
    before: Schedule | None
    wants_momentum: bool
    doubt: str = ""


def beginning_findings(schedule: Schedule, beginning: Beginning) -> tuple[Finding, ...]:
    """Return what there is to say when a schedule starts or goes on.

    Example:
        >>> from lightning_tuning.functional.schedules.one_cycle import one_cycle_schedule
        >>> beginning = Beginning(
        ...     check="one_cycle", described="One cycle of 100 steps with its peak at lr=0.1",
        ...     source="max_lr", step=0, before=None, wants_momentum=True,
        ... )
        >>> found = beginning_findings(one_cycle_schedule(100, max_lr=0.1), beginning)
        >>> found[0].message
        'One cycle of 100 steps with its peak at lr=0.1, from max_lr.'
    """
    total, peak = schedule.total_steps, max(schedule.max_lr)
    found = [
        Finding(
            check=beginning.check,
            code="schedule_resolved",
            verdict="pass",
            message=f"{beginning.described}, from {beginning.source}.",
            evidence={"total_steps": total, "max_lr": peak, "step": beginning.step},
            step=beginning.step,
        )
    ]
    if beginning.doubt:
        found.append(_doubtful(beginning))
    if beginning.wants_momentum and not all(schedule.cycle_momentum):
        found.append(_no_momentum(beginning))
    if beginning.before is not None:
        found.append(_length_changed(schedule, beginning.before, beginning))
    return tuple(found)


def replaced_finding(name: str, check: str, dropped: Sequence[str]) -> Finding:
    """Return the finding that schedulers of the module were dropped.

    Args:
        name: The callback that took their place.
        check: The name of the check that speaks.
        dropped: Names of their types.

    Example:
        >>> replaced_finding("OneCycle", "one_cycle", ["StepLR"]).message
        'OneCycle took the place of StepLR, which the module had returned.'
    """
    return Finding(
        check=check,
        code="schedule_replaced",
        verdict="warn",
        message=f"{name} took the place of {', '.join(dropped)}, which the module had returned.",
        hint="Return the optimizer alone from configure_optimizers.",
    )


def _doubtful(beginning: Beginning) -> Finding:
    return Finding(
        check=beginning.check,
        code="schedule_resolved",
        verdict="warn",
        message=beginning.doubt,
        hint="Look at the length of the fit, and at what the schedule counts.",
        step=beginning.step,
    )


def _no_momentum(beginning: Beginning) -> Finding:
    return Finding(
        check=beginning.check,
        code="schedule_resolved",
        verdict="warn",
        message="An optimizer has neither momentum nor betas: its rate alone is cycled.",
        hint="Set cycle_momentum=False if that is meant.",
        step=beginning.step,
    )


def _length_changed(schedule: Schedule, before: Schedule, beginning: Beginning) -> Finding:
    total, step = schedule.total_steps, beginning.step
    old, new = before.at(step)[0][0], schedule.at(step)[0][0]
    jumps = not math.isclose(old, new, rel_tol=1e-6)
    rates = f"lr={old:.3g} becomes {new:.3g}" if jumps else f"lr={new:.3g} as before"
    return Finding(
        check=beginning.check,
        code="schedule_length_changed",
        verdict="warn" if jumps else "pass",
        message=(
            f"The schedule was {before.total_steps} steps long and is now {total}: from step {step}"
            f" on the rate is that of a run of {total} steps ({rates})."
        ),
        evidence={"before": before.total_steps, "total_steps": total, "step": step},
        step=step,
    )
