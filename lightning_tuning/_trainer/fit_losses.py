"""The training loss of each optimizer step of a fit, read once for all monitors."""

from __future__ import annotations

import array
import math
import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_tuning._trainer.resting_hooks import is_ours

_OF: weakref.WeakKeyDictionary[object, FitLosses] = weakref.WeakKeyDictionary()
_HELD = 1000
"""So many scalars are held one by one before they become a vector."""


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

    Until somebody reads them the numbers stay on the device.
    """

    def __init__(self) -> None:
        self._host = array.array("d")
        self._steps = array.array("q")
        self._vectors: list[Tensor] = []
        self._scalars: list[Tensor] = []
        self._parts: list[Tensor] = []
        self._seen = -1
        self._noter: weakref.ref[Callback] | None = None
        self._looks: list[Callable[[], int]] = []
        self._look_before = math.inf

    def claim(self, trainer: Trainer, callback: Callback) -> bool:
        """Claim to note every batch; returns whether this callback does.

        That is the first one that claims and that Lightning calls at the end of every batch, as
        far as that is known: no subclass that a user writes, and none inside of another callback.
        """
        if self._noter is None and is_ours(trainer, callback, "on_train_batch_end"):
            self._noter = weakref.ref(callback)
        return self._noter is not None and self._noter() is callback

    def call_before_steps(self, look: Callable[[], int]) -> None:
        """Have something called at the end of the batch before certain steps.

        Args:
            look: Returns the next such step, in ``on_train_start`` and whenever it is called.
        """
        self._looks.append(look)
        self._look_before = min(self._look_before, look())

    def note(self, trainer: Trainer, outputs: object) -> None:
        """Take the output of a batch, in ``on_train_batch_end``; the second note is ignored.

        One callback must note every batch, and any that reads notes before it does.
        """
        loop = trainer.fit_loop.epoch_loop
        batch = loop.batch_progress.total.ready
        if self._seen == batch:
            return
        self._seen = batch
        if loop._batches_that_stepped + 1 >= self._look_before:
            self._look_before = min(look() for look in self._looks)
        automatic = trainer.lightning_module.automatic_optimization
        # at every batch; this question is the faster one
        is_mapping = type(outputs) is dict or isinstance(outputs, Mapping)
        loss = outputs.get("loss") if is_mapping else outputs  # type: ignore[attr-defined]
        divided_by = trainer.accumulate_grad_batches if automatic else 1
        if isinstance(loss, Tensor) and loss.numel() == 1:
            kept = loss.detach() if loss.requires_grad else loss  # fewer calls, at every batch
            # a module may return the same buffer each time; Lightning has copied what it drives
            self._parts.append(kept if automatic else kept.clone())
        if divided_by > 1 and loop._should_accumulate():
            return
        if self._parts:
            self._scalars.append(_mean(self._parts, divided_by=divided_by))
            self._steps.append(loop._batches_that_stepped)
            self._parts.clear()
        if len(self._scalars) >= _HELD:
            self._pack(trainer)

    def read(self, trainer: Trainer) -> tuple[Sequence[int], Sequence[float]]:
        """Return steps and losses so far, as means over ranks; all ranks must call it.

        One transfer to the host where there is something new.
        """
        self._pack(trainer)
        if self._vectors:
            values = torch.cat(self._vectors)
            self._vectors = []
            if trainer.world_size > 1:
                values = trainer.strategy.reduce(values, reduce_op="mean")
            self._host.extend(values.tolist())
        return self._steps, self._host

    def _pack(self, trainer: Trainer) -> None:
        if self._scalars:
            device = trainer.strategy.root_device
            scalars, self._scalars = self._scalars, []
            self._vectors.append(_stacked(scalars, device))


def _stacked(scalars: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return one vector in single precision; in one call where all are alike, as usual."""
    kind = scalars[0].dtype
    if all(s.dim() == 0 and s.dtype == kind and s.device == device for s in scalars):
        return torch.stack(list(scalars)).float()
    return torch.stack([s.reshape(()).float().to(device) for s in scalars])


def _mean(parts: list[Tensor], *, divided_by: int) -> Tensor:
    """Return the mean over the batches of a step; the last group of an epoch may be smaller."""
    if len(parts) == divided_by == 1:
        return parts[0]
    return torch.stack(parts).sum() * (divided_by / len(parts))
