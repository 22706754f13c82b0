"""From one stage of a search to the next: nearer to the best, and wider where that is outside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_tuning.functional.search.ranges import Choice, FloatRange, IntRange, Space

_BORDER = 0.1
"""A best value in this outer part of its range lies on the border."""
_OUTER = 0.25
_MARGIN = 0.1
"""The part of the old range that is kept on each side of the best values."""
_WIDEN = 0.5
"""The part of the old range by which a side is widened."""
_AT_LEAST = 3
"""So few trials say too little to narrow a range to, or to drop a choice for."""
_LEAST = 0.2
"""The least part of the old range that the next one spans."""

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Border:
    """A best value on the border of its range.

    Attributes:
        name: The hyperparameter.
        value: The best value.
        side: ``"low"`` or ``"high"``.
        end: The end of the range there.
    """

    name: str
    value: float
    side: str
    end: float


def borders(space: Space, best: Params, tried: Sequence[Params] = ()) -> tuple[Border, ...]:
    """Return the best values that lie on a border, where a better one may lie beyond.

    That is the outer tenth of a range; or the outer quarter, where nothing farther out was tried.
    A border that is natural is none: a share of 0 or 1.

    Args:
        space: The ranges.
        best: The best hyperparameters.
        tried: Those of all trials that can be compared with it.

    Example:
        >>> space = {"lr": FloatRange(1e-4, 1e-1, log=True)}
        >>> borders(space, {"lr": 0.08})[0].side
        'high'
    """
    found = []
    for name, range_ in space.items():
        if isinstance(range_, Choice) or range_.low == range_.high:
            continue
        value = float(best[name])
        place = _as_float(range_).position
        at, places = place(value), [place(params[name]) for params in tried]
        lowest, highest = min(places, default=-math.inf), max(places, default=math.inf)
        if at <= (_OUTER if at <= lowest else _BORDER) and not _natural(range_.low):
            found.append(Border(name, value, "low", float(range_.low)))
        elif at >= 1 - (_OUTER if at >= highest else _BORDER) and not _natural(range_.high):
            found.append(Border(name, value, "high", float(range_.high)))
    return tuple(found)


def narrowed(space: Space, ranked: Sequence[Params], *, keep: float) -> Space:
    """Return the ranges of the next stage.

    Each numeric range becomes that of the best trials, with a margin, and no less than a fifth of
    what it was; a side on which the very best lies at the border is widened by half of the range.
    A choice keeps the values of the best trials. No fewer than three trials count as best, and a
    value that fewer have tried stays.

    Args:
        space: The ranges of this stage.
        ranked: The hyperparameters of its trials, the best first.
        keep: The share of them that counts as best.

    Example:
        >>> space = {"lr": FloatRange(1e-4, 1.0, log=True)}
        >>> ranked = [{"lr": 10.0**e} for e in (-2, -1.9, -2.2, -3, 0, -4, -1, -0.5)]
        >>> found = narrowed(space, ranked, keep=0.25)["lr"]
        >>> f"{found.low:.1e} {found.high:.1e}"
        '2.5e-03 3.2e-02'
    """
    if not ranked:
        return space
    best = ranked[: max(_AT_LEAST, math.ceil(keep * len(ranked)))]
    at_border = {border.name: border.side for border in borders(space, ranked[0], ranked)}
    found: Space = {}
    for name, range_ in space.items():
        if isinstance(range_, Choice):
            found[name] = _kept(range_, name, best, ranked)
        else:
            values = [params[name] for params in best]
            found[name] = _narrowed(range_, values, at_border.get(name))
    return found


def _kept(choice: Choice, name: str, best: Sequence[Params], ranked: Sequence[Params]) -> Choice:
    """Return the values of the best trials, and those that were hardly tried."""
    good = [params[name] for params in best]
    tried = [params[name] for params in ranked]
    return Choice(tuple(v for v in choice.values if v in good or tried.count(v) < _AT_LEAST))


def _narrowed(
    range_: FloatRange | IntRange, best: Sequence[Any], side: str | None
) -> FloatRange | IntRange:
    whole = _as_float(range_)
    places = [whole.position(value) for value in best]
    low, high = max(min(places) - _MARGIN, 0.0), min(max(places) + _MARGIN, 1.0)
    middle, half = (low + high) / 2, max(high - low, _LEAST) / 2
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    if side == "low":
        low = -_WIDEN
    elif side == "high":
        high = 1 + _WIDEN
    ends = whole.at(low), whole.at(high)
    if isinstance(range_, IntRange):
        rounded = (math.floor(ends[0]), math.ceil(ends[1]))
        least = 1 if range_.log or range_.low >= 1 else min(range_.low, 0)
        return IntRange(max(rounded[0], least), max(rounded[1], least), log=range_.log)
    least_float = 0.0 if not whole.log and range_.low >= 0 else -math.inf
    most = 1.0 if not whole.log and 0 <= range_.low <= range_.high <= 1 else math.inf
    return FloatRange(max(ends[0], least_float), min(ends[1], most), log=range_.log)


def _as_float(range_: FloatRange | IntRange) -> FloatRange:
    return FloatRange(float(range_.low), float(range_.high), log=range_.log)


def _natural(end: float) -> bool:
    return end in (0, 1)
