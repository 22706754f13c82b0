"""Which of the last candidates wins, and which differences are those of seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from lightning_tuning.functional.metric_mode import MetricMode, sign_of

_T975 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % points of Student's t for 1 to 10 degrees of freedom."""
_MANY = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """Candidates by their mean over seeds.

    Attributes:
        order: Their places in the list, the best first.
        means: The mean of each, in the order of the list.
        deviations: The deviation over seeds; not a number for a single seed.
        tied: The places of those whose difference from the best is within the noise of seeds; the
            best is not among them.
    """

    order: tuple[int, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    tied: tuple[int, ...]


def rank(values: Sequence[Sequence[float]], mode: MetricMode) -> Ranking:
    """Rank candidates that were each tried with several seeds.

    Two are tied if their means differ by less than t times the standard error of the difference
    (Welch's, with the degrees of freedom of the smaller of the two, so on the careful side); with
    one seed each nothing is known of the noise, and all are tied.

    Args:
        values: The metric of each candidate, a list over its seeds. At least one of each.
        mode: Which values are better.

    Example:
        >>> ranking = rank([[0.30, 0.31, 0.29], [0.20, 0.21, 0.22], [0.22, 0.21, 0.20]], "min")
        >>> ranking.order, ranking.tied
        ((1, 2, 0), (2,))
    """
    sign = sign_of(mode)
    means = [statistics.fmean(seeds) for seeds in values]
    order = sorted(range(len(values)), key=lambda i: sign * means[i])
    first = order[0]
    return Ranking(
        order=tuple(order),
        means=tuple(means),
        deviations=tuple(statistics.stdev(s) if len(s) > 1 else math.nan for s in values),
        tied=tuple(i for i in order[1:] if _tied(values[first], values[i])),
    )


def _tied(one: Sequence[float], other: Sequence[float]) -> bool:
    fewest = min(len(one), len(other))
    if fewest < 2:
        return True
    error = math.sqrt(sum(statistics.variance(seeds) / len(seeds) for seeds in (one, other)))
    free = fewest - 1
    point = _T975[free - 1] if free <= len(_T975) else _MANY
    return abs(statistics.fmean(one) - statistics.fmean(other)) <= point * error
