"""Statistics of BatchNorm layers for weights that no training step has produced."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer import call
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tuning._trainer.forward_only import forward_batches, no_steps, silence
from lightning_tuning._trainer.sandbox import Sandbox
from lightning_tuning._trainer.tensor_state import TensorState
from lightning_tuning._trainer.uninterrupted import Uninterrupted

BATCHES_WITHOUT_END = 200
"""Batches of a loader without a length; Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", find
statistics of 10^3 to 10^4 samples as good as those of more, and their own code takes 200."""


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a module has BatchNorm layers that keep running statistics.

    Example:
        >>> has_batch_norm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        True
    """
    return any(map(_keeps_statistics, module.modules()))


def recalibrate(trainer: Trainer, module: LightningModule) -> int:
    """Recompute the statistics of BatchNorm layers for the weights that the module holds.

    They become plain averages over the batches of one pass over the training data, as those of
    ``torch.optim.swa_utils.update_bn``. The batches go through the module's ``training_step``, with
    dropout off; nothing but the statistics changes. Layers in eval mode, frozen by the person, keep
    theirs, as do those that no batch reached.

    Under manual optimization backward passes run, since a step may read gradients and the loss
    scaler does, but optimizers do not step. Weights are put back after each batch, so that nothing
    else that a step moves, such as a teacher, drifts.

    Args:
        trainer: A trainer inside ``fit``, in ``on_train_end``.
        module: Its module.

    Returns:
        How many batches this process has seen; 0 if there is no layer to recalibrate.

    Raises:
        CannotProbeError: The strategy, the data or the module can't be put back, or the module
            steps an optimizer that the trainer does not know.
    """
    layers = [m for m in module.modules() if _keeps_statistics(m) and m.training]
    if not layers:
        return 0
    with Sandbox(trainer, module) as box, no_steps(trainer):
        averages = [_Average(layer) for layer in layers]
        batches = _forward_pass(box, averages)
        for average in averages:
            average.combine(trainer)
    with Uninterrupted():
        for average in averages:
            average.write()
    return batches


class _Average:
    """The average of one layer's batch statistics, over all its calls.

    It is kept outside the layer, where neither half precision rounds it nor DDP overwrites it.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        layer.momentum = None  # torch takes it for the cumulative average
        dtype = torch.promote_types(layer.running_mean.dtype, torch.float32)
        self._mean = torch.zeros_like(layer.running_mean, dtype=dtype)
        self._var = torch.zeros_like(self._mean)
        self._calls = torch.zeros_like(layer.num_batches_tracked, dtype=dtype)

    def end_batch(self) -> None:
        """Add what the layer saw in one batch; it may have been called any number of times."""
        calls = self.layer.num_batches_tracked
        self._calls += calls
        self._mean += calls * self.layer.running_mean.to(self._mean.dtype)
        self._var += calls * self.layer.running_var.to(self._var.dtype)

    def combine(self, trainer: Trainer) -> None:
        """Divide the sums by their number, those of all processes together."""
        reduce = trainer.strategy.reduce
        own_mean = self._mean / self._calls.clamp(min=1)
        own_calls, self._calls = self._calls, reduce(self._calls.clone())
        divisor = self._calls.clamp(min=1e-9)
        self._mean = reduce(self._mean) / divisor
        # the mean of var + mean^2 less the square of the mean, without its cancellation
        self._var += own_calls * (own_mean - self._mean) ** 2
        self._var = reduce(self._var) / divisor

    @torch.no_grad()
    def write(self) -> None:
        """Give the layer its new statistics, if it was called at all."""
        if self._calls > 0:
            self.layer.running_mean.copy_(self._mean)
            self.layer.running_var.copy_(self._var)
            self.layer.num_batches_tracked.copy_(self._calls.round())


def _forward_pass(box: Sandbox, averages: list[_Average]) -> int:
    """Run the module's step on the batches of one pass; return their number."""
    trainer = box.trainer
    weights = TensorState(box.module.parameters())
    count_as_in_the_last_epoch(trainer)
    call._call_lightning_module_hook(trainer, "on_train_epoch_start")
    silence(box.module)
    limit = BATCHES_WITHOUT_END if trainer.num_training_batches == float("inf") else None
    count = 0
    _reset(averages)
    for _ in forward_batches(box, limit):
        for average in averages:
            average.end_batch()
        _reset(averages)
        weights.restore()
        count += 1
    return count


def _reset(averages: list[_Average]) -> None:
    for average in averages:
        average.layer.reset_running_stats()


def count_as_in_the_last_epoch(trainer: Trainer) -> None:
    """Undo the last count: a module may look up something that it has for each of its epochs."""
    progress = copy.deepcopy(trainer.fit_loop.epoch_progress)
    progress.current.completed = max(0, progress.current.completed - 1)
    trainer.fit_loop.epoch_progress = progress


def _keeps_statistics(layer: nn.Module) -> bool:
    tracks = isinstance(layer, _BatchNorm) and layer.track_running_stats
    return tracks and layer.running_mean is not None
