"""How a fit has gone so far, by its training loss: the gate before every statistic of a monitor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_FEWEST = 10
_EXPLODES = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitCourse:
    """The course of the training loss.

    Attributes:
        steps: How many optimizer steps have a loss.
        start: The loss at the start: the larger of the first one and the median of the first five,
            so that the drop of the very first steps counts as progress; but the first one where
            it grows threefold at once, which is none.
        end: The median of the last tenth, at least of five; infinite where most are not finite.
        peak: The highest median of three losses in a row.
        reason: Why progress can't be told; empty where it can.

    Example:
        >>> course = fit_course([2.3] * 50)
        >>> course.progress, course.trains_badly
        (0.0, True)
        >>> fit_course([0.3, -0.1] * 50).reason
        'the loss is negative at times, so that nobody knows its floor'
    """

    steps: int
    start: float
    end: float
    peak: float
    reason: str

    @property
    def progress(self) -> float:
        """The share of the loss that is gone, NaN where it can't be told.

        Minus infinity where the loss is not finite at the end.
        """
        if self.reason:
            return math.nan
        return (self.start - self.end) / self.start if math.isfinite(self.end) else -math.inf

    @property
    def trains_badly(self) -> bool:
        """Whether hardly anything was learnt."""
        return self.progress < 0.1


def fit_course(losses: Sequence[float], *, reason: str = "") -> FitCourse:
    """Sum up the losses of a fit.

    Args:
        losses: One for each optimizer step.
        reason: Why losses tell nothing here, such as several optimizers with opposed aims.
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < _FEWEST:
        reason = reason or f"only {len(values)} optimizer steps have a loss"
        return FitCourse(
            steps=len(values), start=math.nan, end=math.nan, peak=math.nan, reason=reason
        )
    if not reason and bool((values < 0).any()):
        reason = "the loss is negative at times, so that nobody knows its floor"
    first, early = float(values[0]), _median(values[:5])
    start = first if early > _EXPLODES * first else max(first, early)
    if not reason and not (math.isfinite(start) and start > 0):
        reason = "the loss was zero or not finite from the start"
    return FitCourse(
        steps=len(values),
        start=start,
        end=_median(values[-max(5, len(values) // 10) :]),
        peak=max(_median(values[i : i + 3]) for i in range(len(values) - 2)),
        reason=reason,
    )


def _median(values: npt.NDArray[np.float64]) -> float:
    """Return the median, with what is no number as infinity."""
    return float(np.median(np.where(np.isfinite(values), values, math.inf)))
