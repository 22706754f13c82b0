"""What a one-cycle schedule has to tell about a fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lightning_tuning.findings import Finding
from lightning_tuning.functional.one_cycle import OneCycleSchedule

CHECK = "one_cycle"


def cycle_findings(
    schedule: OneCycleSchedule,
    *,
    step: int,
    source: str,
    length_before: int,
    wants_momentum: bool,
) -> tuple[Finding, ...]:
    """Return what there is to say when a schedule starts or goes on.

    Args:
        schedule: The schedule of the fit.
        step: Steps made under it so far.
        source: Where the peak comes from.
        length_before: Length of the cycle when the fit was last saved; else its length now.
        wants_momentum: Whether momentum was to be cycled.

    Example:
        >>> from lightning_tuning.functional.one_cycle import one_cycle_schedule
        >>> schedule = one_cycle_schedule(100, max_lr=0.1)
        >>> found = cycle_findings(
        ...     schedule, step=0, source="max_lr", length_before=100, wants_momentum=True
        ... )
        >>> found[0].message
        'One cycle of 100 steps with its peak at lr=0.1, from max_lr.'
    """
    total, peak = schedule.total_steps, max(schedule.max_lr)
    found = [
        Finding(
            check=CHECK,
            code="schedule_resolved",
            verdict="pass",
            message=f"One cycle of {total} steps with its peak at lr={peak:.3g}, from {source}.",
            evidence={"total_steps": total, "max_lr": peak, "step": step},
            step=step,
        )
    ]
    if wants_momentum and not all(schedule.cycle_momentum):
        found.append(_no_momentum(step))
    if length_before != total:
        found.append(_length_changed(schedule, step, length_before))
    return tuple(found)


def replaced_finding(names: Sequence[str]) -> Finding:
    """Return the finding that schedulers of the module were dropped.

    Example:
        >>> replaced_finding(["StepLR"]).message
        'OneCycle took the place of StepLR, which the module had returned.'
    """
    return Finding(
        check=CHECK,
        code="schedule_replaced",
        verdict="warn",
        message=f"OneCycle took the place of {', '.join(names)}, which the module had returned.",
        hint="Return the optimizer alone from configure_optimizers.",
    )


def _no_momentum(step: int) -> Finding:
    return Finding(
        check=CHECK,
        code="schedule_resolved",
        verdict="warn",
        message="An optimizer has neither momentum nor betas: its rate alone is cycled.",
        hint="Set cycle_momentum=False if that is meant.",
        step=step,
    )


def _length_changed(schedule: OneCycleSchedule, step: int, before: int) -> Finding:
    total = schedule.total_steps
    old = dataclasses.replace(schedule, total_steps=before).at(step)[0][0]
    new = schedule.at(step)[0][0]
    return Finding(
        check=CHECK,
        code="schedule_length_changed",
        verdict="warn",
        message=(
            f"The cycle was {before} steps long and is now {total}: from step {step} on the rate"
            f" is that of a run of {total} steps (lr={old:.3g} becomes {new:.3g})."
        ),
        evidence={"before": before, "total_steps": total, "step": step},
        step=step,
    )
