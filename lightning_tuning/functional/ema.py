"""How fast an exponential moving average of weights forgets."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

from lightning_tuning.functional import checks

Unit = Literal["steps", "samples", "epochs"]
_TEXT = re.compile(r"\s*(\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*(step|sample|epoch)s?\s*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfLife:
    """The time after which a weight counts half in the average.

    Attributes:
        value: How long, in ``unit``.
        unit: ``"steps"`` of the optimizer, ``"samples"`` or ``"epochs"``.
    """

    value: float
    unit: Unit


def parse_half_life(half_life: float | str) -> HalfLife:
    """Read a half-life: a number of optimizer steps, or text with a unit.

    Args:
        half_life: Such as ``700``, ``"700 steps"``, ``"10000 samples"``, ``"0.5 epochs"``.

    Raises:
        ValueError: It is neither, or not positive.

    Example:
        >>> parse_half_life("0.5 epochs")
        HalfLife(value=0.5, unit='epochs')
    """
    if isinstance(half_life, str):
        match = _TEXT.fullmatch(half_life)
        if match is None or not 0 < float(match[1]) < math.inf:
            raise ValueError(
                f"half_life={half_life!r} must be a number of optimizer steps, or text such as"
                " '10000 samples' or '0.5 epochs'"
            )
        units: dict[str, Unit] = {"step": "steps", "sample": "samples", "epoch": "epochs"}
        return HalfLife(value=float(match[1]), unit=units[match[2]])
    checks.positive("half_life", half_life)
    return HalfLife(value=float(half_life), unit="steps")


def half_life_decay(half_life: float) -> float:
    """Return the decay whose average halves an old weight's share in ``half_life`` updates.

    The formula is ``0.5 ** (1 / half_life)``.

    Example:
        >>> half_life_decay(1.0)
        0.5
    """
    return math.pow(0.5, 1.0 / half_life)


def decay_half_life(decay: float) -> float:
    """Return after how many updates an old weight's share is halved, ``ln 0.5 / ln decay``.

    Example:
        >>> round(decay_half_life(0.999))
        693
    """
    if decay == 0.0:
        return 0.0
    return math.log(0.5) / math.log(decay)


def ema_decay(step: int, *, decay: float = 0.999, warmup: bool = True) -> float:
    """Return the decay of one update of the average, ``average = d * average + (1 - d) * weights``.

    Without warm-up it is ``decay``. With it, ``min(decay, (1 + step) / (10 + step))``, which lets
    the average reach back over the last tenth or so of the steps until ``decay`` is reached: at
    steps 1, 10, 100, 1000 that gives 0.182, 0.55, 0.918, 0.991. It is the formula of TensorFlow's
    ``tf.train.ExponentialMovingAverage(num_updates=...)``, and the polynomial-decay averaging of
    Shamir and Zhang (2013, arXiv:1212.1824) with eta = 8.

    Args:
        step: Optimizer steps since the average began. Step 0 begins it: the average is the weights.
        decay: The decay in the long run, from 0 up to but not including 1.
        warmup: Whether early averages follow the weights.

    Example:
        >>> [round(ema_decay(step), 3) for step in (0, 1, 10, 100, 1000, 10000)]
        [0.0, 0.182, 0.55, 0.918, 0.991, 0.999]
    """
    if step <= 0:
        return 0.0
    if not warmup:
        return decay
    return min(decay, (1 + step) / (10 + step))


def warmup_steps(decay: float) -> int:
    """Return the first step at which the warm-up has reached ``decay``.

    Example:
        >>> warmup_steps(0.999), warmup_steps(0.05)
        (8990, 1)
    """
    return max(1, math.ceil((10 * decay - 1) / (1 - decay) - 1e-6))
