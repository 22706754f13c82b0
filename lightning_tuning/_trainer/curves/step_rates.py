"""The learning rates that the steps of a fit are made with."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_tuning._trainer.cadence import Cadence
from lightning_tuning._trainer.curves.curve_values import largest_rate


class StepRates:
    """Notes the largest learning rate whenever an optimizer has stepped, by a hook of its own.

    So it is the rate of the step itself, whoever sets it when: Lightning calls
    ``on_before_optimizer_step`` within the step, and lets schedules step after it. A callback
    beside it would cost ten times as much.

    Args:
        trainer: A trainer in ``on_train_start``.
        cadence: On which steps a rate that lies on a device is read.

    Attributes:
        rate: That of the last step; before the first one, what stands in the optimizers.
        hooked: Whether all optimizers take hooks. Otherwise ``read`` is to be called for each
            batch.
    """

    def __init__(self, trainer: Trainer, cadence: Cadence) -> None:
        self._trainer = trainer
        self._cadence = cadence
        self.rate: float | Tensor = 0.0
        self._handles: list[RemovableHandle] = []
        self._watch()

    def follow(self) -> None:
        """Watch the optimizers that the trainer has now; it may be given others on the way."""
        if self._trainer.optimizers is not self._optimizers:
            self.close()
            self._watch()

    def read(self) -> None:
        """Note the largest rate of now."""
        self.rate = largest_rate(self._optimizers, before=self.rate, due=self._cadence.due)

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch(self) -> None:
        self._optimizers = self._trainer.optimizers
        self.hooked = all(isinstance(o, Optimizer) for o in self._optimizers)
        if self.hooked:
            self._handles = [o.register_step_post_hook(self._after_step) for o in self._optimizers]
        self.read()

    def _after_step(self, *_: object) -> None:
        self.read()
