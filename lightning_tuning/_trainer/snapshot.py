"""Everything that training steps change, remembered and put back bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_tuning._trainer.batches import data_holders
from lightning_tuning._trainer.object_state import ObjectState
from lightning_tuning._trainer.optimizer_state import OptimizerState
from lightning_tuning._trainer.random_state import get_random_state, set_random_state
from lightning_tuning._trainer.schedule_length import accumulation
from lightning_tuning._trainer.shards import reshard
from lightning_tuning._trainer.tensor_state import TensorState


class Snapshot:
    """The state of a program that is about to train: model, optimizers, data, generators.

    Args:
        trainer: A trainer inside ``fit``, its strategy set up.
        module: Its module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._module = module
        self._model = trainer.strategy.model
        # after a sanity check the weights lie gathered, in tensors that are not the ones that count
        reshard(module)
        optimized = (
            p for o in trainer.optimizers for group in o.param_groups for p in group["params"]
        )
        parameters = list({id(p): p for p in (*module.parameters(), *optimized)}.values())
        tensors = [*parameters, *module.buffers()]
        self._parameters = [ParameterFields(parameter) for parameter in parameters]
        self._grads_enabled = torch.is_grad_enabled()
        self._tensors = TensorState(tensors)
        self._grads = TensorState(p.grad for p in parameters if p.grad is not None)
        self._optimizers = [OptimizerState(optimizer) for optimizer in trainer.optimizers]
        fit_loop = trainer.fit_loop
        self._objects = ObjectState(
            [
                module,
                *(vars(tensor) for tensor in tensors),
                *trainer.optimizers,
                *(config.scheduler for config in trainer.lr_scheduler_configs),
                getattr(trainer.precision_plugin, "scaler", None),
                getattr(trainer.strategy, "_ddp_comm_state", None),
            ],
            data=data_holders([fit_loop, fit_loop.epoch_loop.val_loop]),
            skip=[
                *tensors,
                *(entry for o in trainer.optimizers for entry in (o.state, o.param_groups)),
            ],
        )
        # a lazy layer becomes another class in its first forward pass
        self._classes = [(part, type(part)) for part in module.modules()]
        self._random = get_random_state()

    def restore(self) -> None:
        """Put everything back; may be called more than once."""
        reshard(self._module)
        _forget_unfinished_backward(self._model)
        self._objects.restore()
        for part, cls in self._classes:
            part.__class__ = cls
        torch.set_grad_enabled(self._grads_enabled)
        for fields in self._parameters:
            fields.restore()
        self._tensors.restore()
        self._grads.restore()
        for optimizer in self._optimizers:
            optimizer.restore()
        set_random_state(self._random)


class ParameterFields:
    """What a parameter holds besides its numbers: the gradient, the hooks.

    Args:
        parameter: The parameter to remember.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._requires_grad = parameter.requires_grad
        self._grad = parameter.grad
        self._hooks = [dict(hooks or {}) for hooks in _hooks(parameter)]

    def restore(self) -> None:
        """Put them back."""
        self._parameter.requires_grad_(self._requires_grad)
        self._parameter.grad = self._grad
        for hooks, kept in zip(_hooks(self._parameter), self._hooks, strict=True):
            if hooks is not None:
                hooks.clear()
                hooks.update(kept)


def _hooks(parameter: nn.Parameter) -> tuple[dict[int, Any] | None, ...]:
    return parameter._backward_hooks, parameter._post_accumulate_grad_hooks


class Shield:
    """The trainer's counters, results, loggers and callbacks, swapped for stand-ins meanwhile.

    Args:
        trainer: A trainer inside ``fit``.
        callbacks: The callbacks that are to see the probe's steps instead of the person's own.

    Attributes:
        callbacks: The person's own.
    """

    def __init__(self, trainer: Trainer, callbacks: list[Any]) -> None:
        self._undo: list[Callable[[], None]] = []
        self.callbacks: list[Any] = vars(trainer)["callbacks"]
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        val_loop = epoch_loop.val_loop
        automatic, manual = epoch_loop.automatic_optimization, epoch_loop.manual_optimization
        connector = trainer._logger_connector
        wrappers = trainer.strategy._lightning_optimizers
        for owner in (trainer, trainer.state, fit_loop, epoch_loop, connector, *wrappers):
            self._copy_entries(owner)
        for owner in (val_loop, automatic, manual):
            self._copy_entries(owner)
        automatic.optim_progress = copy.deepcopy(automatic.optim_progress)
        manual.optim_step_progress = copy.deepcopy(manual.optim_step_progress)
        epoch_loop.batch_progress = copy.deepcopy(epoch_loop.batch_progress)
        epoch_loop.scheduler_progress = copy.deepcopy(epoch_loop.scheduler_progress)
        epoch_loop._results = _ResultCollection(training=True)
        val_loop.batch_progress = copy.deepcopy(val_loop.batch_progress)
        val_loop._results = _ResultCollection(training=False)
        val_loop._last_val_dl_reload_epoch = trainer.current_epoch
        val_loop.restarting = False
        vars(trainer).update(
            callbacks=callbacks,
            _loggers=[_SilentLogger(logger) for logger in trainer.loggers],
            profiler=PassThroughProfiler(),
            # GradientAccumulationScheduler would set it when the epoch starts, and is away
            accumulate_grad_batches=accumulation(trainer, trainer.current_epoch),
        )

    def restore(self) -> None:
        """Put the trainer's own parts back."""
        while self._undo:
            self._undo.pop()()

    def _copy_entries(self, owner: Any) -> None:
        own = dict(vars(owner))
        self._undo.append(lambda: _reset_entries(owner, own))
        vars(owner).update({k: copy.copy(v) for k, v in own.items() if isinstance(v, dict)})


class _SilentLogger(DummyLogger):
    """Writes nothing, and says where the person's own logger writes."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    @property
    def name(self) -> Any:
        return self._logger.name

    @property
    def version(self) -> Any:
        return self._logger.version

    @property
    def save_dir(self) -> str | None:
        return self._logger.save_dir

    @property
    def log_dir(self) -> str | None:
        return self._logger.log_dir


def _reset_entries(owner: Any, entries: dict[str, Any]) -> None:
    vars(owner).clear()
    vars(owner).update(entries)


def _forget_unfinished_backward(model: nn.Module | None) -> None:
    """Let DDP go on after a backward pass that an error cut off."""
    if isinstance(model, DistributedDataParallel):
        model.reducer._reset_state()
