"""Hooks of a monitor that has nothing to do between the steps that it measures."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer

from lightning_tuning._trainer.cadence import Cadence
from lightning_tuning._trainer.fit_losses import fit_losses
from lightning_tuning._trainer.resting_hooks import RestingHooks


class StepHooks:
    """Lets all hooks of a monitor rest until a step comes that may have to be measured.

    One of the monitors notes every loss, and at the end of a batch it wakes those that are to look
    at the next one. Its own hooks at the beginning and the end of a batch do not rest.

    Args:
        trainer: A trainer in ``on_train_start``.
        callback: One of its callbacks.
        cadence: Which steps it measures.
        names: Its hooks within a measured step.
    """

    def __init__(self, trainer: Trainer, callback: Callback, cadence: Cadence, *names: str) -> None:
        self._cadence = cadence
        self._within = resting_between_steps(trainer, callback, *names)
        losses = fit_losses(trainer)
        before = () if losses.claim(trainer, callback) else ("on_train_batch_start",)
        self._before = RestingHooks(trainer, callback, *before)
        self._within.rest()
        losses.call_before_steps(self._look)

    def measure(self) -> None:
        """Have all hooks called in this step."""
        self._within.wake()

    def measured(self) -> None:
        """Let hooks rest until the next one."""
        self._within.rest()
        if not self._cadence.may_be_due(self._cadence.step + 1):
            self._before.rest()

    def _look(self) -> int:
        coming = self._cadence.step + 1
        if self._cadence.may_be_due(coming):
            self._before.wake()
        return self._cadence.next_after(coming)


def resting_between_steps(trainer: Trainer, callback: Callback, *names: str) -> RestingHooks:
    """Return hooks that are to rest on steps that are not measured; in ``on_train_start``.

    That of the end of a batch does not rest where this is the monitor that notes every loss.
    """
    if fit_losses(trainer).claim(trainer, callback):
        names = tuple(name for name in names if name != "on_train_batch_end")
    return RestingHooks(trainer, callback, *names)
