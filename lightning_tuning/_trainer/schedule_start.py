"""When a schedule may start, and with which rate: after every range test of the same fit."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden


def callbacks_of(trainer: Any) -> list[Callback]:
    """Return the trainer's callbacks, which its annotations leave out."""
    callbacks: list[Callback] = trainer.callbacks
    return callbacks


def range_result(trainer: Trainer) -> Any:
    """Return the result of a range test of this fit that suggests a rate, or None.

    Callbacks don't import each other: a range test is known by the shape of its ``result``.
    """
    results = [getattr(callback, "result", None) for callback in callbacks_of(trainer)]
    for result in results:
        if hasattr(result, "lr_range") and getattr(result, "suggestion", None) is not None:
            return result
    return None


def others_start_later(trainer: Trainer, callback: Callback) -> bool:
    """Whether someone may still set the learning rate in its ``on_train_start``.

    That is another callback later in the list (a range test), or the module, which comes last.
    Lightning's own callbacks set no rate there, and a resumed fit has its rates already.
    """
    if trainer.ckpt_path is not None:
        return False
    callbacks = callbacks_of(trainer)
    later = callbacks[callbacks.index(callback) + 1 :]
    return is_overridden("on_train_start", trainer.lightning_module) or any(
        type(other).on_train_start is not Callback.on_train_start
        and not type(other).__module__.startswith(("lightning.pytorch.", "pytorch_lightning."))
        for other in later
    )


@runtime_checkable
class Waiting(Protocol):
    """A callback whose schedule starts once every rate is known."""

    def start_schedule(self, trainer: Trainer) -> None:
        """Start the schedule, if that has not happened."""


def start_waiting(trainer: Trainer, after: Callback) -> None:
    """Start the schedules that waited for ``after``, the callback that has just set the rates.

    Without this they start in ``on_train_epoch_start``, where a LearningRateMonitor that stands
    before them has already logged the epoch's rate.
    """
    if not others_start_later(trainer, after):
        for callback in callbacks_of(trainer):
            if isinstance(callback, Waiting):
                callback.start_schedule(trainer)
