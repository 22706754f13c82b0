"""A histogram whose bins were counted elsewhere, in the form that loggers take."""

from __future__ import annotations

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of values in bins, with exact moments.

    Bin ``i`` holds what is above ``limits[i - 1]`` and at most ``limits[i]``.

    Attributes:
        limits: Upper edge of each bin, rising.
        counts: How many values lie in each bin; they may stem from a sample.
        min: The least value.
        max: The greatest value.
        num: How many values there are.
        sum: Their sum.
        sum_squares: The sum of their squares.

    Raises:
        ValueError: There is no bin, or not one limit for each.

    Example:
        >>> Histogram(
        ...     limits=(1.0, 2.0), counts=(3, 1), min=0.0, max=2.0, num=4, sum=3.0, sum_squares=5.0
        ... ).edges
        (0.0, 1.0, 2.0)
    """

    limits: tuple[float, ...]
    counts: tuple[float, ...]
    min: float
    max: float
    num: float
    sum: float
    sum_squares: float

    def __post_init__(self) -> None:
        if not self.limits or len(self.limits) != len(self.counts):
            raise ValueError(
                f"{len(self.limits)} limits and {len(self.counts)} counts: each bin needs one of"
                " both"
            )

    @property
    def edges(self) -> tuple[float, ...]:
        """All edges, one more than there are bins: the lowest is ``min`` where that fits."""
        first = self.limits[0]
        width = self.limits[1] - first if len(self.limits) > 1 else 1.0
        lowest = self.min if self.min < first else first - width
        return (lowest, *self.limits)

    @property
    def centres(self) -> tuple[float, ...]:
        """The middle of each bin.

        Example:
            >>> Histogram(
            ...     limits=(1.0, 2.0), counts=(3, 1), min=0, max=2, num=4, sum=3, sum_squares=5
            ... ).centres
            (0.5, 1.5)
        """
        edges = self.edges
        return tuple((low + high) / 2 for low, high in itertools.pairwise(edges))
