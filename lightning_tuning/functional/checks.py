"""Checks of arguments that several schedules share, each with one clear error."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

PerGroup = float | Sequence[float]


def is_number(value: object) -> bool:
    """Whether a value is a real number; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def sequence(name: str, value: object) -> None:
    """Check for a list of values.

    Raises:
        ValueError: It is a single value, or text.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name}={value!r} must be a list of numbers")


def steps(name: str, value: int) -> None:
    """Check a count of optimizer steps.

    Raises:
        ValueError: It is not a whole number of at least 1.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1 optimizer step")


def at_least(name: str, value: int, least: int) -> None:
    """Check a count.

    Raises:
        ValueError: It is not a whole number of at least ``least``.
    """
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def weight_decays(name: str, values: Sequence[float]) -> None:
    """Check a choice of weight decays.

    Raises:
        ValueError: There is none, or one is negative or not finite.
    """
    sequence(name, values)
    if not values or not all(is_number(v) and 0 <= v < math.inf for v in values):
        raise ValueError(f"{name}={values!r} must be one or more numbers, none negative")


def fraction(name: str, value: float) -> None:
    """Check a fraction of the run.

    Raises:
        ValueError: It does not lie between 0 and 1.
    """
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie between 0 and 1: it is a fraction of the run")


def decay_below_one(name: str, value: float) -> None:
    """Check the decay of a moving average.

    Raises:
        ValueError: It does not lie in [0, 1).
    """
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} must be at least 0 and below 1")


def choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check a choice between words.

    Raises:
        ValueError: It is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")


def positive(name: str, value: float) -> None:
    """Check a positive, finite number.

    Raises:
        ValueError: It is something else.
    """
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value} must be a positive number")


def rates(name: str, value: PerGroup) -> None:
    """Check a learning rate, or one for each group; a list may hold 0 for an untrained group.

    Raises:
        ValueError: A rate is negative or not finite, or none is positive.
    """
    values = value if isinstance(value, Sequence) else (value,)
    numeric = all(is_number(rate) and 0 <= rate < math.inf for rate in values)
    if not numeric or not any(values):
        raise ValueError(f"{name}={value} must be a positive learning rate, or one for each group")


def momenta(name: str, value: PerGroup) -> None:
    """Check a momentum, or one for each group.

    Raises:
        ValueError: One does not lie in [0, 1).
    """
    values = value if isinstance(value, Sequence) else (value,)
    if not values or not all(is_number(m) and 0 <= m < 1 for m in values):
        raise ValueError(f"{name}={value} must be at least 0 and below 1")


def groups(**values: Any) -> int:
    """Return the number of parameter groups that arguments name; 1 where none is a list.

    Raises:
        ValueError: Their lists differ in length.

    Example:
        >>> groups(max_lr=[0.1, 0.2], base_momentum=0.85)
        2
    """
    lengths = {k: len(v) for k, v in values.items() if isinstance(v, Sequence)}
    if len(set(lengths.values())) > 1:
        stated = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(
            f"different numbers of parameter groups: {stated}; give one number, or one for each"
        )
    return max(lengths.values(), default=1)
