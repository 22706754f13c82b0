"""How much a short training has learnt."""

from __future__ import annotations

import math


def progress(before: float, after: float, *, chance: float | None = None) -> float:
    """Return the share of a loss that a short training took away.

    Args:
        before: Loss at the start.
        after: Loss at the end.
        chance: Loss of a predictor that knows nothing, where that is known; it counts as the start
            where it is lower, since falling to chance is no learning.

    Returns:
        1 where nothing is left of a loss whose floor is zero, 0 where nothing was learnt, negative
        where it got worse, minus infinity where the training broke down.

    Example:
        >>> round(progress(30.0, 1.15, chance=2.3), 3)
        0.5
    """
    if not math.isfinite(after):
        return -math.inf
    start = before if chance is None or not math.isfinite(chance) else min(before, chance)
    if not math.isfinite(start):
        return 1.0 if math.isfinite(after) else -math.inf
    scale = max(abs(start), 1e-12)
    return (start - after) / scale
