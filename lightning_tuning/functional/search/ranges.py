"""Ranges of hyperparameters: plain values, with the scale that a parameter of that name has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

_LOG_NAMES = ("lr", "learning_rate", "weight_decay", "wd", "eps", "temperature", "sigma", "gamma")
"""Names, or last parts of names, whose powers of ten matter."""
_WIDE = 50.0
"""A positive range that spans so many times its lower end is searched on a log scale."""


@dataclasses.dataclass(frozen=True)
class FloatRange:
    """Numbers from ``low`` to ``high``.

    Attributes:
        low: The least value.
        high: The largest value.
        log: Whether powers of ten are drawn evenly, as for learning rates.

    Raises:
        ValueError: The ends are not in order, or ``log`` with an end that is not positive.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Check the ends."""
        _check_ends(self)

    def position(self, value: float) -> float:
        """Return where a value lies: 0 at the lower end, 1 at the upper one.

        Example:
            >>> FloatRange(1e-4, 1.0, log=True).position(0.01)
            0.5
        """
        low, high, at = (self._scaled(x) for x in (self.low, self.high, float(value)))
        return (at - low) / (high - low) if high > low else 0.5

    def at(self, position: float) -> float:
        """Return the value at a position; outside of 0 to 1 too.

        Example:
            >>> round(FloatRange(1e-4, 1.0, log=True).at(0.75), 6)
            0.1
        """
        low, high = self._scaled(self.low), self._scaled(self.high)
        value = low + (high - low) * position
        return 10.0**value if self.log else value

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclasses.dataclass(frozen=True)
class IntRange:
    """Whole numbers from ``low`` to ``high``, both among them.

    Attributes:
        low: The least value.
        high: The largest value.
        log: Whether powers are drawn evenly.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        """Check the ends."""
        _check_ends(self)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values.

    Attributes:
        values: Numbers, strings, True, False or None.
    """

    values: tuple[str | int | float | bool | None, ...]

    def __post_init__(self) -> None:
        """Check that there are some."""
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values:
            raise ValueError("a choice of no values is none")


Range = FloatRange | IntRange | Choice
Space = dict[str, Range]


def as_space(space: Mapping[str, Any]) -> Space:
    """Return ranges for what a person wrote.

    A pair of numbers is a range: of whole numbers if both are, and on a log scale if it is positive
    and either spans a factor of 50 or is of a learning rate, a weight decay or the like, by its
    name. A list is a choice.

    Raises:
        ValueError: Something is neither.

    Example:
        >>> as_space({"lr": (1e-4, 1e-1), "dropout": (0.0, 0.5), "width": [32, 64]})["lr"].log
        True
    """
    if not space:
        raise ValueError("space={} has nothing to search")
    return {name: _as_range(name, value) for name, value in space.items()}


def to_json(space: Space) -> dict[str, dict[str, Any]]:
    """Return plain values that :func:`from_json` reads.

    Example:
        >>> from_json(to_json({"x": IntRange(1, 4)}))
        {'x': IntRange(low=1, high=4, log=False)}
    """
    return {
        name: {"kind": type(range_).__name__, **dataclasses.asdict(range_)}
        for name, range_ in space.items()
    }


def from_json(told: Mapping[str, Mapping[str, Any]]) -> Space:
    """Return what :func:`to_json` was given."""
    kinds = {kind.__name__: kind for kind in (FloatRange, IntRange, Choice)}
    found: Space = {}
    for name, entry in told.items():
        settings = {key: value for key, value in entry.items() if key != "kind"}
        found[name] = kinds[entry["kind"]](**settings)
    return found


def is_log_name(name: str) -> bool:
    """Whether a hyperparameter of this name is one whose powers of ten matter.

    Example:
        >>> is_log_name("head_lr"), is_log_name("dropout")
        (True, False)
    """
    return any(name == known or name.endswith(f"_{known}") for known in _LOG_NAMES)


def _as_range(name: str, value: object) -> Range:
    if isinstance(value, (FloatRange, IntRange, Choice)):
        return value
    numbers = isinstance(value, Sequence) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in value
    )
    if isinstance(value, tuple) and len(value) == 2 and numbers:
        low, high = value
        if low <= 0 and is_log_name(name):
            raise ValueError(
                f"space[{name!r}]={value!r}: powers of ten of it matter, which a range from {low}"
                " has not; give a positive low, or a FloatRange"
            )
        log = low > 0 and (is_log_name(name) or high / low >= _WIDE)
        if isinstance(low, int) and isinstance(high, int):
            return IntRange(low, high, log=log)
        return FloatRange(float(low), float(high), log=log)
    if isinstance(value, list):
        return Choice(tuple(value))
    raise ValueError(
        f"space[{name!r}]={value!r} must be a pair of numbers (low, high), a list of values, or a"
        " FloatRange, IntRange or Choice"
    )


def _check_ends(range_: FloatRange | IntRange) -> None:
    if not range_.low <= range_.high or not math.isfinite(range_.high - range_.low):
        raise ValueError(f"{range_}: low must not lie above high")
    if range_.log and range_.low <= 0:
        raise ValueError(f"{range_}: a log scale needs a positive low")
