"""Whether a metric improves downwards or upwards."""

from __future__ import annotations

from typing import Literal

from lightning_tuning.functional.checks import choice
from lightning_tuning.functional.wiring.wiring_monitors import better_when

Mode = Literal["min", "max"]


def mode_of(metric: str, mode: Mode | None) -> Mode:
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
