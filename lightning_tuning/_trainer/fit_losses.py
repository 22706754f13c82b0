"""The training loss of each optimizer step of a fit, read once for all monitors."""

from __future__ import annotations

import array
import weakref
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_tuning._trainer.resting_hooks import RestingHooks

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


def resting_between_steps(trainer: Trainer, callback: Callback, *names: str) -> RestingHooks:
    """Return hooks that are to rest on steps that are not measured; in ``on_train_start``.

    One of the monitors has to note every loss, and its ``on_train_batch_end`` does not rest.
    """
    if fit_losses(trainer).claim(callback):
        names = tuple(name for name in names if name != "on_train_batch_end")
    return RestingHooks(trainer, callback, *names)


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

    def claim(self, callback: Callback) -> bool:
        """Claim to note every batch; returns whether this callback does, the first that claims."""
        if self._noter is None:
            self._noter = weakref.ref(callback)
        return self._noter() is callback

    def note(self, trainer: Trainer, outputs: object) -> None:
        """Take the output of a batch, in ``on_train_batch_end``; the second note is ignored.

        One callback must note every batch, and any that reads notes before it does.
        """
        loop = trainer.fit_loop.epoch_loop
        batch = loop.batch_progress.total.ready
        if self._seen == batch:
            return
        self._seen = batch
        automatic = trainer.lightning_module.automatic_optimization
        # at every batch; this question is the faster one
        is_mapping = type(outputs) is dict or isinstance(outputs, Mapping)
        loss = outputs.get("loss") if is_mapping else outputs  # type: ignore[attr-defined]
        divided_by = trainer.accumulate_grad_batches if automatic else 1
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # a module may return the same buffer each time; Lightning has copied what it drives
            self._parts.append(loss.detach() if automatic else loss.detach().clone())
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
