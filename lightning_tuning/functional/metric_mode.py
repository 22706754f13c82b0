"""Whether a metric improves downwards or upwards."""

from __future__ import annotations

from typing import Literal

from lightning_tuning.functional.checks import choice
from lightning_tuning.functional.wiring.wiring_monitors import better_when

MetricMode = Literal["min", "max"]


def mode_of(metric: str, mode: MetricMode | None) -> MetricMode:
    """Return the mode that is given, else that of the metric's name; ``"min"`` for unknown ones.

    Raises:
        ValueError: The mode is neither ``"min"`` nor ``"max"``.

    Example:
        >>> mode_of("val_acc", None), mode_of("val_loss", None), mode_of("val_acc", "min")
        ('max', 'min', 'min')
    """
    if mode is not None:
        choice("mode", mode, ("min", "max"))
        return mode
    return "max" if better_when(metric) == "max" else "min"


def sign_of(mode: MetricMode) -> float:
    """Return what makes a metric one that improves downwards, as a factor.

    Example:
        >>> sign_of("min"), sign_of("max")
        (1.0, -1.0)
    """
    return 1.0 if mode == "min" else -1.0
