"""Which optimizer steps of a fit a monitor measures."""

from __future__ import annotations

import math

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_tuning._trainer.schedule_length import steps_left, steps_per_epoch

_AT_LEAST = 20
"""So many points a fit of known length gives, since rules that see three are silent."""
_AT_MOST = 100
"""So many are enough to see a whole fit; more would cost time, memory and event files."""
_WITHOUT_LOGGING = 50


class Cadence:
    """Tells before a batch whether its optimizer step is to be measured.

    The first step of the fit is measured, then the last of each ``every_n_steps``, as Lightning
    logs. Under manual optimization, where only the module knows when it steps, batches count.

    Args:
        trainer: A trainer in ``on_train_start``.
        every_n_steps: Optimizer steps; None for ``log_every_n_steps``, or less in a fit that is
            so short that it would give fewer than twenty points, or more in one so long that it
            would give more than a hundred.

    Attributes:
        every_n_steps: Optimizer steps from one measurement to the next.
    """

    def __init__(self, trainer: Trainer, every_n_steps: int | None) -> None:
        self._loop = trainer.fit_loop.epoch_loop
        self._automatic = trainer.lightning_module.automatic_optimization
        self._first = self._loop._batches_that_stepped
        self.every_n_steps = (
            _default(trainer, by_batch=not self._automatic)
            if every_n_steps is None
            else every_n_steps
        )

    def due(self) -> bool:
        """Whether the batch that begins ends with a step to be measured; on_train_batch_start."""
        if not self.may_be_due(self._loop._batches_that_stepped):
            return False
        return not (self._automatic and self._loop._should_accumulate())

    def may_be_due(self, step: int) -> bool:
        """Whether a step is to be measured, with the last of its batches."""
        return step == self._first or (step + 1) % self.every_n_steps == 0

    def next_after(self, step: int) -> int:
        """Return the first step behind another one that may be due."""
        return step + 1 + -(step + 2) % self.every_n_steps

    @property
    def step(self) -> int:
        """The place of this batch on the loggers' axis, the same as of ``self.log``."""
        return self._loop._batches_that_stepped


def epochs_between_readings(trainer: Trainer) -> int:
    """Return after how many epochs to look again, a hundred times in a fit at most.

    Args:
        trainer: A trainer in ``on_train_start``.
    """
    by_batch = not trainer.lightning_module.automatic_optimization
    epoch = steps_per_epoch(trainer, by_batch=by_batch)
    try:
        left = steps_left(trainer, name="monitor", by_batch=by_batch)
    except MisconfigurationException:
        return 1
    return max(1, math.ceil(left / epoch / _AT_MOST)) if epoch else 1


def _default(trainer: Trainer, *, by_batch: bool) -> int:
    usual = int(vars(trainer)["log_every_n_steps"]) or _WITHOUT_LOGGING
    try:
        left = steps_left(trainer, name="monitor", by_batch=by_batch)
    except MisconfigurationException:
        return usual
    return max(1, min(usual, left // _AT_LEAST), math.ceil(left / _AT_MOST))
