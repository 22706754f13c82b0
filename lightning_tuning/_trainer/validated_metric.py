"""A metric that the module logged in validation, the same on all ranks."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer


def validated_metric(trainer: Trainer, metric: str, *, name: str) -> float:
    """Return a metric after a validation.

    Each rank has a figure of its own where the module does not reduce it; all take that of rank
    zero, so that they decide alike.

    Args:
        trainer: The trainer, in ``on_validation_end``.
        metric: The name that the module logs it under.
        name: The argument that asks, for the error.

    Raises:
        MisconfigurationException: The module logs no such metric.
    """
    found = trainer.callback_metrics.get(metric)
    if found is None:
        known = ", ".join(sorted(trainer.callback_metrics)) or "none"
        raise MisconfigurationException(
            f"{name}: there is no metric {metric!r}; the module has logged {known}. Log it with"
            f" `self.log({metric!r}, ...)` in `validation_step`, or name another"
        )
    return float(trainer.strategy.broadcast(float(found)))
