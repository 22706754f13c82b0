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
        opening: The median of the first five, which no single batch decides.
        early: The median of the second tenth, at least of five.
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
    opening: float
    early: float
    end: float
    peak: float
    reason: str

    @property
    def progress(self) -> float:
        """The share of the loss that is gone, NaN where it can't be told.

        Minus infinity where the loss is not finite at the end.
        """
        return self._gone(self.start)

    @property
    def late(self) -> float:
        """The share that is gone since the first tenth of the fit, told like :attr:`progress`."""
        return self._gone(self.early)

    @property
    def trains_badly(self) -> bool:
        """Whether hardly anything was learnt."""
        return self.progress < 0.1

    @property
    def is_flat(self) -> bool:
        """Whether hardly anything was learnt after the first tenth of the fit."""
        return self.late < 0.1

    @property
    def diverged(self) -> bool:
        """Whether the loss is not finite at the end."""
        return self.progress == -math.inf

    @property
    def first_drop(self) -> float:
        """:attr:`opening` over :attr:`early`; NaN where it can't be told."""
        return self.opening / self.early if not self.reason and self.early > 0 else math.nan

    def _gone(self, before: float) -> float:
        if self.reason:
            return math.nan
        if not math.isfinite(self.end):
            return -math.inf
        return (before - self.end) / before if math.isfinite(before) and before > 0 else math.nan


def fit_course(losses: Sequence[float], *, reason: str = "") -> FitCourse:
    """Sum up the losses of a fit.

    Args:
        losses: One for each optimizer step.
        reason: Why losses tell nothing here, such as several optimizers with opposed aims.
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < _FEWEST:
        reason = reason or f"only {len(values)} optimizer steps have a loss"
        none = math.nan
        return FitCourse(
            steps=len(values),
            start=none,
            opening=none,
            early=none,
            end=none,
            peak=none,
            reason=reason,
        )
    if not reason and bool((values < 0).any()):
        reason = "the loss is negative at times, so that nobody knows its floor"
    first, opening = float(values[0]), _median(values[:5])
    start = first if opening > _EXPLODES * first else max(first, opening)
    if not reason and not (math.isfinite(start) and start > 0):
        reason = "the loss was zero or not finite from the start"
    tenth = len(values) // 10
    part = max(5, tenth)
    return FitCourse(
        steps=len(values),
        start=start,
        opening=opening,
        early=_median(values[tenth : tenth + part]),
        end=_median(values[-part:]),
        peak=_peak(values),
        reason=reason,
    )


def _median(values: npt.NDArray[np.float64]) -> float:
    """Return the median, with what is no number as infinity."""
    return float(np.median(np.where(np.isfinite(values), values, math.inf)))


def _peak(values: npt.NDArray[np.float64]) -> float:
    finite = np.where(np.isfinite(values), values, math.inf)
    return float(np.median(np.lib.stride_tricks.sliding_window_view(finite, 3), axis=1).max())
