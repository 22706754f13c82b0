"""The rule ``auto``: the sweep says where to look, short runs at single rates say what works."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from lightning_tuning.functional.lr_analysis import mean_curve
from lightning_tuning.functional.lr_range_test import MIN_POINTS, Interval, LRSweep, LRTrial
from lightning_tuning.functional.lr_suggestion import smooth

RUN_STEPS = 45
SPACING = 0.5
BACKOFF = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoChoice:
    """The rate that ``auto`` chose.

    Attributes:
        rate: The learning rate.
        interval: Rates that the runs could not tell from it.
        trials: The runs.
    """

    rate: float
    interval: Interval
    trials: tuple[LRTrial, ...]


def choose_rate(
    sweeps: Sequence[LRSweep],
    run: Callable[[float, int], list[float]],
    *,
    max_steps: int,
    sign: float = 1.0,
) -> AutoChoice | None:
    """Climb from where half of the sweep's fall has happened to the rate that learns fastest."""
    rates, losses = mean_curve(sweeps)
    if len(losses) < MIN_POINTS:
        return None
    smoothed = smooth(sign * losses)
    lowest = int(np.argmin(smoothed))
    level = float(smoothed[: max(len(smoothed) // 6, 1)].mean())
    above = np.flatnonzero(smoothed[: lowest + 1] > (level + smoothed[lowest]) / 2)
    if not len(above) or level - smoothed[lowest] <= 1e-6 * abs(level):
        return None
    start = math.log10(float(rates[above[-1]]))
    trials: dict[int, LRTrial] = {}
    left = max_steps

    def known(place: int) -> bool:
        nonlocal left
        if place in trials:
            return True
        if left < RUN_STEPS:
            return False
        rate = 10 ** (start + SPACING * place)
        values = run(rate, RUN_STEPS)
        left -= RUN_STEPS
        finite = len(values) > 1 and np.isfinite(values).all() and len(values) * 5 >= RUN_STEPS
        score = float(np.mean(np.multiply(values, sign))) if finite else math.inf
        trials[place] = LRTrial(rate=rate, losses=tuple(values), score=score)
        return True

    place = 0
    while known(place) and known(place + 1) and known(place - 1):
        best = min(trials, key=lambda p: (trials[p].score, p))
        if best == place:
            break
        place = best
    if not trials:
        return None
    best = min(trials, key=lambda p: (trials[p].score, p))
    rate = trials[best].rate * 10**-BACKOFF
    return AutoChoice(
        rate=rate,
        interval=(rate * 10**-0.25, rate * 10**0.25),
        trials=tuple(trials[p] for p in sorted(trials)),
    )
