"""A record of a curve of any length in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_tuning.functional.curves.curve_noise import Array

_POINTS = 1000


class CurveRecord:
    """Losses and learning rates of steps; of a long fit, means over equal numbers of steps.

    When there are too many points, neighbours are put together, and each point from then on holds
    twice as many steps. So a resumed record goes on as if it had not been interrupted.

    Attributes:
        width: Steps in one point.
        count: Steps recorded.
        non_finite: How many of them had a loss that is not finite.
        first_non_finite: The first of the latest run of such steps.
        first: The first loss; None before it, and if it was not finite.

    Example:
        >>> record = CurveRecord()
        >>> record.extend([0, 1, 2], [3.0, 2.0, float("nan")], [0.1, 0.1, 0.1])
        >>> record.values, record.non_finite, record.first_non_finite
        ((3.0, 2.0), 1, 2)
    """

    def __init__(self) -> None:
        self.width = 1
        self.count = 0
        self.non_finite = 0
        self.first_non_finite: int | None = None
        self.first: float | None = None
        self._points: list[tuple[int, float, float, float]] = []
        self._open: list[tuple[int, float, float]] = []

    @classmethod
    def of(
        cls,
        steps: Sequence[int],
        values: Sequence[float],
        rates: Sequence[float],
        highs: Sequence[float],
        *,
        width: int,
        count: int,
        unfinished: Sequence[Sequence[float]] = (),
    ) -> CurveRecord:
        """Return a record that goes on from points of an earlier one."""
        record = cls()
        record.width, record.count = width, count
        record._points = list(zip(steps, values, highs, rates, strict=True))
        record._open = [(int(step), value, rate) for step, value, rate in unfinished]
        return record

    def extend(self, steps: Sequence[int], values: Sequence[float], rates: Sequence[float]) -> None:
        """Add steps, in rising order."""
        if not self.count and len(values) and math.isfinite(values[0]):
            self.first = values[0]
        for step, value, rate in zip(steps, values, rates, strict=True):
            self.count += 1
            if math.isfinite(value):
                self.first_non_finite = None
                self._open.append((step, value, rate))
            else:
                self.non_finite += 1
                if self.first_non_finite is None:
                    self.first_non_finite = step
            if len(self._open) >= self.width:
                self._close()

    @property
    def steps(self) -> tuple[int, ...]:
        """The last step of each point."""
        return tuple(point[0] for point in self._points)

    @property
    def values(self) -> tuple[float, ...]:
        """The mean loss of each point."""
        return tuple(point[1] for point in self._points)

    @property
    def highs(self) -> tuple[float, ...]:
        """The largest loss in each point."""
        return tuple(point[2] for point in self._points)

    @property
    def rates(self) -> tuple[float, ...]:
        """The mean learning rate of each point."""
        return tuple(point[3] for point in self._points)

    @property
    def unfinished(self) -> list[list[float]]:
        """Step, loss and rate of each step of the point that is not complete."""
        return [list(step) for step in self._open]

    def _close(self) -> None:
        if len(self._open) == 1:
            step, value, rate = self._open[0]
            self._points.append((step, value, value, rate))
        else:
            steps, values, rates = zip(*self._open, strict=True)
            mean: Array = np.asarray([values, rates], float).mean(axis=1)
            self._points.append((steps[-1], float(mean[0]), max(values), float(mean[1])))
        self._open = []
        if len(self._points) >= _POINTS:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [
                (b[0], (a[1] + b[1]) / 2, max(a[2], b[2]), (a[3] + b[3]) / 2) for a, b in pairs
            ]
            self.width *= 2
