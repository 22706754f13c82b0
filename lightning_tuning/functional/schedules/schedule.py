"""What all schedules share: values at a step, and a curve to look at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

GroupValues = tuple[tuple[float, float | None], ...]
"""(learning rate, momentum) of each parameter group; None where momentum is left alone."""
Curve = dict[str, list[int] | list[list[float]]]
_T = TypeVar("_T", bool, float)


class Schedule(Protocol):
    """Learning rate and momentum of every parameter group as a function of the step."""

    @property
    def total_steps(self) -> int:
        """Length in optimizer steps."""
        ...

    @property
    def max_lr(self) -> tuple[float, ...]:
        """The highest rate of each group."""
        ...

    @property
    def cycle_momentum(self) -> tuple[bool, ...]:
        """Whether momentum is set too, of each group."""
        ...

    @property
    def cycle_ends(self) -> tuple[int, ...]:
        """Numbers of steps made when the rate is at a low end, in order."""
        ...

    def at(self, step: float) -> GroupValues:
        """Return the values of each group."""
        ...

    def curve(self, *, max_points: int = 1000) -> Curve:
        """Return steps with the values of each group."""
        ...


def curve(schedule: Schedule, *, max_points: int) -> Curve:
    """Return evenly spread steps with the values of each group; first and last are among them.

    Example:
        >>> from lightning_tuning.functional.schedules.one_cycle import one_cycle_schedule
        >>> curve(one_cycle_schedule(5, max_lr=1.0), max_points=2)["step"]
        [0, 4]
    """
    points = min(schedule.total_steps, max_points)
    last = schedule.total_steps - 1
    steps = [round(i * last / max(points - 1, 1)) for i in range(points)]
    groups = list(zip(*(schedule.at(step) for step in steps), strict=True))
    return {
        "step": steps,
        "lr": [[lr for lr, _ in group] for group in groups],
        "momentum": [[m for _, m in group if m is not None] for group in groups],
    }


def to_json(schedule: Any) -> str:
    """Return the settings of a schedule, and its curve at up to 1000 steps, as a JSON object."""
    return json.dumps({**dataclasses.asdict(schedule), "curve": curve(schedule, max_points=1000)})


def spread(value: _T | Sequence[_T], groups: int) -> tuple[_T, ...]:
    """Return one value for each group.

    Example:
        >>> spread(0.1, 2), spread([0.1, 0.2], 2)
        ((0.1, 0.1), (0.1, 0.2))
    """
    return tuple(value) if isinstance(value, Sequence) else (value,) * groups


def not_before(step: float) -> None:
    """Check a step.

    Raises:
        ValueError: It is negative.
    """
    if step < 0:
        raise ValueError(f"step={step} must be at least 0")
