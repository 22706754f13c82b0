"""The training loss of each optimizer step of a fit, read once for all monitors."""

from __future__ import annotations

import array
import weakref
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

_OF: weakref.WeakKeyDictionary[object, FitLosses] = weakref.WeakKeyDictionary()
_HELD = 1000
"""So many scalars wait on the device at most."""


def fit_losses(trainer: Trainer) -> FitLosses:
    """Return the record of this fit, the same for all that ask."""
    loop = trainer.fit_loop
    known = _OF.get(loop)
    if known is None:
        known = _OF[loop] = FitLosses()
    return known


def forget_losses(trainer: Trainer) -> None:
    """Begin a new record; to be called in ``setup``."""
    _OF.pop(trainer.fit_loop, None)


class FitLosses:
    """What ``training_step`` returned, one number for each optimizer step.

    Between transfers the scalars stay on the device: noting one starts no kernel there, but where
    gradients are accumulated over batches.
    """

    def __init__(self) -> None:
        self._host = array.array("d")
        self._steps = array.array("q")
        self._device: list[Tensor] = []
        self._parts: list[Tensor] = []
        self._seen = -1

    def note(self, trainer: Trainer, outputs: object) -> None:
        """Take the output of a batch, in ``on_train_batch_end``; the second note is ignored."""
        loop = trainer.fit_loop.epoch_loop
        if self._seen == loop.total_batch_idx:
            return
        self._seen = loop.total_batch_idx
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        self._parts.append(loss.detach())
        automatic = trainer.lightning_module.automatic_optimization
        if automatic and loop._should_accumulate():
            return
        # Lightning has divided each part by their number
        parts, self._parts = self._parts, []
        self._device.append(parts[0] if len(parts) == 1 else torch.stack(parts).sum())
        self._steps.append(loop._batches_that_stepped)
        if len(self._device) >= _HELD:
            self._fetch(trainer)

    def read(self, trainer: Trainer) -> tuple[Sequence[int], Sequence[float]]:
        """Return steps and losses so far, as means over ranks; all ranks must call it.

        One transfer to the host where there is something new.
        """
        self._fetch(trainer)
        return self._steps, self._host

    def _fetch(self, trainer: Trainer) -> None:
        if not self._device:
            return
        values = torch.stack([loss.reshape(()).float() for loss in self._device])
        self._device = []
        if trainer.world_size > 1:
            values = trainer.strategy.reduce(values, reduce_op="mean")
        self._host.extend(values.tolist())
