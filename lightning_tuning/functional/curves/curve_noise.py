"""Trends and levels of a noisy curve, with what its own noise leaves open about them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_BINS = 30
_SAMPLES = 200
_SEED = 20231
_WIDEN_SLOPE, _WIDEN_MEAN = 1.7, 1.4
"""Copies of a short series know too little of its slow parts; found with AR(1) noise up to 0.5."""


def theil_sen(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float:
    """Return the median of the slopes between all pairs of points.

    Example:
        >>> theil_sen([0, 1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0, 1000.0])
        2.0
    """
    rows, columns = np.triu_indices(len(x), 1)
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    return float(np.median((ys[columns] - ys[rows]) / (xs[columns] - xs[rows])))


def binned(y: Sequence[float] | Array, bins: int = _BINS) -> tuple[Array, Array]:
    """Return the mean index and the mean value of at most ``bins`` stretches of about equal length.

    Example:
        >>> binned([1.0, 3.0, 5.0, 7.0], 2)
        (array([0.5, 2.5]), array([2., 6.]))
    """
    values = np.asarray(y, float)
    edges = np.linspace(0, len(values), min(bins, len(values)) + 1).round().astype(int)
    starts, counts = edges[:-1], np.diff(edges)
    places = np.add.reduceat(np.arange(len(values), dtype=float), starts) / counts
    return places, np.add.reduceat(values, starts) / counts


def slope_interval(y: Sequence[float] | Array, *, level: float = 0.99) -> tuple[float, float]:
    """Return between what a curve's rise over its whole length lies, by its own noise.

    The rise is Theil and Sen's slope times the length. What is left of the curve beside a
    straight line is drawn anew in moving blocks, so that noise that goes on from step to step
    counts in full.

    Args:
        y: Values at equal distances, three at least.
        level: How sure.

    Returns:
        The least and the greatest rise; infinite for fewer than five values.

    Example:
        >>> low, high = slope_interval([float(i) for i in range(20)])
        >>> bool(low > 18.9), bool(high < 19.1)
        (True, True)
    """
    if len(y) < 5:
        return -math.inf, math.inf
    x, values = binned(y)
    n = len(x)
    slope = theil_sen(x, values)
    rest = values - slope * x
    rest -= np.median(rest)
    # a line takes two degrees of freedom away from what is left
    rest *= math.sqrt(n / max(n - 2, 1))
    drawn = _moving_blocks(rest)
    rows, columns = np.triu_indices(n, 1)
    slopes = np.median((drawn[:, columns] - drawn[:, rows]) / (x[columns] - x[rows]), axis=1)
    tail = (1 - level) / 2
    length = float(x[-1] - x[0])
    # the basic interval: errors of the copies, turned around
    low, high = _WIDEN_SLOPE * np.quantile(slopes, [tail, 1 - tail])
    return float((slope - high) * length), float((slope - low) * length)


def mean_interval(y: Sequence[float] | Array, *, level: float = 0.99) -> tuple[float, float]:
    """Return between what the mean of a level stretch lies, by its own noise in moving blocks.

    Example:
        >>> mean_interval([2.0] * 12)
        (2.0, 2.0)
    """
    values = np.asarray(y, float)
    mean = float(values.mean())
    if len(values) < 5:
        return -math.inf, math.inf
    values = binned(values, 200)[1]
    drawn = _moving_blocks(values - values.mean()).mean(axis=1)
    tail = (1 - level) / 2
    low, high = _WIDEN_MEAN * np.quantile(drawn, [tail, 1 - tail])
    return mean - float(high), mean - float(low)


def noise(y: Sequence[float] | Array) -> float:
    """Return the robust standard deviation of single values about their neighbours.

    Example:
        >>> noise([1.0, 2.0, 3.0, 4.0, 5.0])
        0.0
    """
    rest = rests(y)
    return float(1.4826 * np.median(np.abs(rest - np.median(rest)))) if len(rest) else 0.0


def rests(y: Sequence[float] | Array) -> Array:
    """Return each value less the mean of its two neighbours, scaled to a single value's noise.

    Example:
        >>> rests([0.0, 3.0, 0.0]).round(3)
        array([2.449])
    """
    values = np.asarray(y, float)
    if len(values) < 3:
        return np.zeros(0)
    return np.asarray((values[1:-1] - (values[:-2] + values[2:]) / 2) / math.sqrt(1.5))


def wander(y: Sequence[float] | Array) -> float:
    """Return how far a curve strays from a straight line, as the standard deviation of the rest.

    Example:
        >>> wander([1.0, 2.0, 3.0, 4.0])
        0.0
    """
    values = np.asarray(y, float)
    if len(values) < 3:
        return 0.0
    x = np.arange(len(values), dtype=float)
    rest = values - theil_sen(x, values) * x
    return float(np.std(rest, ddof=2)) if len(values) > 2 else 0.0


def _moving_blocks(rest: Array) -> Array:
    """Draw copies of a series from blocks of it that may begin anywhere."""
    n = len(rest)
    size = max(2, round(1.5 * n ** (1 / 3)))
    generator = np.random.default_rng(_SEED)
    count = -(-n // size)
    starts = generator.integers(0, n - size + 1, (_SAMPLES, count))
    places = (starts[:, :, None] + np.arange(size)).reshape(_SAMPLES, -1)[:, :n]
    drawn = rest[places]
    return np.asarray(drawn)
