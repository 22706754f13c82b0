"""The noise of a loss curve, and whether its fall is more than that."""

from __future__ import annotations

import math

import numpy as np

from lightning_tuning.functional.lr_suggestion import Curve, smooth


def deepest_fall(losses: Curve) -> tuple[float, float]:
    """Return the most significant fall below the first losses, and how many standard errors it is.

    Means over windows of several widths are compared with the mean of the first sixth.
    """
    head = max(len(losses) // 6, 1)
    level, noise = float(losses[:head].mean()), _noise(capped(losses))
    best = (0.0, 0.0)
    for width in {max(len(losses) // part, 1) for part in (20, 10, 5)}:
        means = np.convolve(losses[head:], np.ones(width) / width, "valid")
        fall = level - float(means.min())
        error = noise * math.sqrt(1 / head + 1 / width)
        if fall <= 1e-12 * abs(level):
            continue
        deviations = fall / error if error > 0 else math.inf
        best = max(best, (fall, deviations), key=lambda pair: pair[1])
    return best


def _noise(losses: Curve) -> float:
    """Estimate the standard deviation of a single loss from second differences.

    A straight fall or rise leaves none, and the median passes over the bends. For independent noise
    the variance of ``x[i-1] - 2 x[i] + x[i+1]`` is six times that of ``x``.
    """
    if len(losses) < 3:
        return 0.0
    return float(np.median(np.abs(np.diff(losses, n=2))) / 0.6745 / math.sqrt(6))


def standard_error(losses: Curve) -> float:
    """Estimate the standard error of the smoothed curve away from its ends."""
    impulse = np.zeros(len(losses))
    impulse[len(losses) // 2] = 1.0
    return _noise(capped(losses)) * float(np.sqrt(np.sum(smooth(impulse) ** 2)))


def capped(losses: Curve) -> Curve:
    """Cut off what lies as far above the first losses as these lie above the lowest.

    A diverging end would otherwise leak through the smoothing into the rates below it.
    """
    start = float(np.median(losses[: max(len(losses) // 10, 1)]))
    return np.minimum(losses, 2 * start - float(losses.min()))
