"""How many optimizer steps a fit still has to make."""

from __future__ import annotations

import math
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_tuning._trainer.schedule_start import callbacks_of


def steps_left(
    trainer: Trainer, *, name: str, argument: str = "total_steps", by_batch: bool = False
) -> int:
    """Return the optimizer steps from here to the end of the fit.

    To be called in ``on_train_start`` or later. ``trainer.estimated_stepping_batches`` is not used:
    it ignores ``GradientAccumulationScheduler`` and where a resumed fit stands, and called earlier
    it makes the loaders before the checkpoint is restored.

    Args:
        trainer: The trainer.
        name: The callback that asks, for the error.
        argument: What the error asks for.
        by_batch: Count training batches instead, as under manual optimization, where only the
            module knows on which batches it steps. ``max_steps`` counts the steps of all
            optimizers there; one step of each in a batch is assumed.

    Raises:
        MisconfigurationException: The fit has no end that is known before it.
    """
    steps = math.inf
    max_epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if max_epochs is not None and max_epochs != -1 and batches != math.inf:
        done = _batches_done(trainer)
        steps = 0
        for epoch in range(trainer.current_epoch, max_epochs):
            accumulate = 1 if by_batch else accumulation(trainer, epoch)
            # a last, incomplete group of batches is stepped too
            steps += math.ceil(batches / accumulate)
            steps -= math.ceil(done / accumulate) if done >= batches else done // accumulate
            done = 0
    if trainer.max_steps != -1:
        left = trainer.max_steps - trainer.global_step
        steps = min(steps, math.ceil(left / len(trainer.optimizers)) if by_batch else left)
    if steps == math.inf:
        raise MisconfigurationException(
            f"{name}({argument}=None) cannot tell how long the fit will be: {_reason(trainer)}."
            f" Give {name}({argument}=...), or set `Trainer(max_steps=...)`"
        )
    return int(steps)


def refuse_endless(trainer: Trainer, *, name: str, argument: str = "total_steps") -> None:
    """Raise early, before a range test has run, where settings alone show that there is no end.

    Raises:
        MisconfigurationException: See :func:`steps_left`.
    """
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        steps_left(trainer, name=name, argument=argument)


def _reason(trainer: Trainer) -> str:
    if trainer.max_epochs != -1:
        return "the training loader has no length (an iterable data set?)"
    timer = any(type(callback).__name__ == "Timer" for callback in callbacks_of(trainer))
    return "it is limited by `max_time` alone" if timer else "`max_epochs=-1` means without end"


def _batches_done(trainer: Trainer) -> int:
    """Return the batches of the current epoch that a resumed fit does not run again."""
    loop = trainer.fit_loop
    # Any: the annotations name a base class of the counters that are really there
    progress: Any = loop.epoch_progress.current
    batches: Any = loop.epoch_loop.batch_progress.current
    # the counts of a finished epoch, or of an interrupted fit that starts anew, are stale
    if not loop.restarting or progress.ready == progress.processed:
        return 0
    return int(batches.processed)


def accumulation(trainer: Trainer, epoch: int) -> int:
    """Return how many batches an epoch accumulates, by ``GradientAccumulationScheduler`` too."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def steps_per_epoch(trainer: Trainer, *, by_batch: bool = False) -> int | None:
    """Return the optimizer steps of the present epoch; None where its loader has no length.

    Args:
        trainer: The trainer, in ``on_train_start`` or later.
        by_batch: Count training batches instead.
    """
    batches = trainer.num_training_batches
    if batches == math.inf:
        return None
    accumulate = 1 if by_batch else accumulation(trainer, trainer.current_epoch)
    return math.ceil(batches / accumulate)
