"""Rules that read a learning rate off the curve of a range test.

All take the rates of a sweep, ascending, and the smoothed losses measured at them, and return one
of the rates (or a tenth of one). They are unchanged by adding a constant to the losses.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]

SMOOTHING = 0.025
"""Width (one standard deviation) of the smoothing kernel, as a part of the sweep's length."""


def smooth(values: Sequence[float] | Curve, *, width: float | None = None) -> Curve:
    """Smooth a curve with a Gaussian kernel that is centred, so that nothing is shifted.

    A running average, as other tools use, lags behind and moves every suggestion to the right.
    At the ends the kernel is cut off and its weights are scaled to a sum of one.

    Args:
        values: One value a step; all finite.
        width: Standard deviation of the kernel in steps; None for :data:`SMOOTHING` of the length.

    Returns:
        As many values.

    Example:
        >>> smooth([1.0, 1.0, 1.0]).round(6).tolist()
        [1.0, 1.0, 1.0]
    """
    raw = np.asarray(values, dtype=np.float64)
    sigma = SMOOTHING * len(raw) if width is None else width
    if sigma <= 0:
        return np.array(raw)
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(raw, reach)
    present = np.pad(np.ones_like(raw), reach)
    weights = np.convolve(present, kernel, "valid")
    return np.asarray(np.convolve(padded, kernel, "valid") / weights)


def running_mean(values: Sequence[float] | Curve, memory: float) -> Curve:
    """Return the exponential moving average, free of the bias of its start.

    Its lag of ``memory / (1 - memory)`` steps moves what is read off it towards larger rates.

    Args:
        values: One value a step; all finite.
        memory: Weight of the past, in [0, 1).

    Example:
        >>> running_mean([1.0, 1.0, 1.0], 0.9).round(6).tolist()
        [1.0, 1.0, 1.0]
    """
    raw = np.asarray(values, dtype=np.float64)
    weights = memory ** np.arange(len(raw))
    sums = [float(weights[i::-1] @ raw[: i + 1]) for i in range(len(raw))]
    return np.asarray(sums) / np.cumsum(weights)


def read_rules(rates: Curve, losses: Curve, num_steps: int) -> dict[str, float]:
    """Apply every rule to a sweep.

    As fastai does, the rules read a running mean (here with a memory of a tenth of the sweep), and
    leave out the first tenth of the sweep and the last twentieth, where it has little to say.

    Args:
        rates: The rates that were reached, ascending.
        losses: The finite losses there, as measured.
        num_steps: Steps of the whole sweep, had it not ended early.

    Returns:
        A rate for each of :data:`RULES`; nothing where too few points are left.

    Example:
        >>> rates = np.logspace(-5, 0, 50)
        >>> sorted(read_rules(rates, np.where(rates < 1e-3, 2.0, 1.0), 50))
        ['minimum', 'slide', 'steepest', 'valley']
    """
    smoothed = running_mean(losses, 1 - 10 / max(num_steps, 11))
    kept = slice(num_steps // 10, -max(num_steps // 20, 1))
    if len(rates[kept]) < 3:
        return {}
    return {name: rule(rates[kept], smoothed[kept]) for name, rule in RULES.items()}


def steepest(rates: Curve, losses: Curve) -> float:
    """Return the rate where the loss falls fastest per factor of the rate.

    The slope is taken over the logarithm of the rate. Taken over the rate itself, as some tools do,
    it is largest where rates lie closest together: at the lowest, useless ones.

    Example:
        >>> rates = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
        >>> steepest(rates, np.array([2.0, 2.0, 1.5, 0.5, 0.5]))
        0.01
    """
    return float(rates[int(np.argmin(np.gradient(losses, np.log(rates))))])


def minimum(rates: Curve, losses: Curve) -> float:
    """Return a tenth of the rate with the lowest loss.

    Source: fastai's ``minimum`` rule: at the minimum itself training is about to fail.

    Example:
        >>> minimum(np.array([0.01, 0.1, 1.0]), np.array([2.0, 1.0, 3.0]))
        0.01
    """
    return float(rates[int(np.argmin(losses))] / 10)


def valley(rates: Curve, losses: Curve) -> float:
    """Return the middle of the longest fall.

    The longest fall is the longest (not necessarily contiguous) strictly decreasing run of losses;
    it begins as many steps before its end as it has members. Source: the idea behind fastai's
    ``valley`` rule, described in its documentation.

    Example:
        >>> rates = np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
        >>> valley(rates, np.array([2.0, 1.9, 1.0, 0.5, 3.0]))
        0.001
    """
    # the lowest end of any falling run of each length: bisecting it gives the longest run so far
    lowest: list[float] = []
    end, longest = 0, 1
    # a fall of less than a thousandth of the whole counts as none
    heights = np.round((losses[0] - losses) / _fall(losses), 3)
    for index, height in enumerate(heights.tolist()):
        length = bisect.bisect_left(lowest, height) + 1
        lowest[length - 1 : length] = [height]
        if length > longest:
            end, longest = index, length
    return float(rates[(end - longest + 1 + end) // 2])


def slide(rates: Curve, losses: Curve, *, width: float = 0.15, tolerance: float = 0.02) -> float:
    """Return the rate left of the final rise, found by sliding an interval down from the right.

    The interval moves left while the slopes at its two ends differ by more than ``tolerance``; its
    left end is the answer. Losses are divided by their fall first. Source: the interval slide rule
    of Novetta's *Learning rate suggester*, known from fastai's ``slide``.

    Args:
        rates: The rates, ascending.
        losses: The smoothed losses.
        width: Length of the interval as a part of the curve.
        tolerance: Difference of the slopes per step.

    Example:
        >>> rates = np.logspace(-4, 0, 40)
        >>> losses = np.concatenate([np.ones(20), np.linspace(1, 0, 15), np.linspace(0, 4, 5)])
        >>> 1e-3 < slide(rates, losses) < 1e-1
        True
    """
    slopes = np.gradient(losses / _fall(losses))
    interval = max(int(width * len(rates)), 1)
    right = len(rates) - 1
    while right - interval > 0 and abs(slopes[right] - slopes[right - interval]) > tolerance:
        right -= 1
    return float(rates[max(right - interval, 0)])


def _fall(losses: Curve) -> float:
    """Return how deep the curve falls; its span would be that of the diverging end."""
    return float(losses[: int(np.argmin(losses)) + 1].max() - losses.min()) or 1.0


RULES: Mapping[str, Callable[[Curve, Curve], float]] = {
    "valley": valley,
    "steepest": steepest,
    "minimum": minimum,
    "slide": slide,
}
"""The rules by name."""
