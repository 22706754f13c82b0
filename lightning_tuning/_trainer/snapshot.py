"""Everything that training steps change, remembered and put back bit for bit."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lightning_tuning._trainer.batches import data_holders
from lightning_tuning._trainer.object_state import ObjectState
from lightning_tuning._trainer.optimizer_state import OptimizerState, ScalerState
from lightning_tuning._trainer.random_state import get_random_state, set_random_state
from lightning_tuning._trainer.tensor_state import TensorState


class Snapshot:
    """The state of a program that is about to train: model, optimizers, data, generators.

    Args:
        trainer: A trainer inside ``fit``, its strategy set up.
        module: Its module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._module = module
        tensors = [*module.parameters(), *module.buffers()]
        self._parameters = [(p, p.requires_grad, p.grad) for p in module.parameters()]
        self._tensors = TensorState(tensors)
        self._grads = TensorState(p.grad for p in module.parameters() if p.grad is not None)
        self._optimizers = [OptimizerState(optimizer) for optimizer in trainer.optimizers]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scaler = ScalerState(scaler) if scaler is not None else None
        val_loop = trainer.fit_loop.epoch_loop.val_loop
        loaders = [trainer.fit_loop._combined_loader, val_loop._combined_loader]
        self._objects = ObjectState(
            [module, *trainer.optimizers, *(c.scheduler for c in trainer.lr_scheduler_configs)],
            data=[*data_holders(loaders), getattr(trainer, "datamodule", None)],
            skip=[
                *tensors,
                *(entry for o in trainer.optimizers for entry in (o.state, o.param_groups)),
            ],
        )
        self._random = get_random_state()

    def restore(self) -> None:
        """Put everything back; may be called more than once."""
        _reshard(self._module)
        self._objects.restore()
        for parameter, requires_grad, grad in self._parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        self._tensors.restore()
        self._grads.restore()
        for optimizer in self._optimizers:
            optimizer.restore()
        if self._scaler is not None:
            self._scaler.restore()
        set_random_state(self._random)


class Shield:
    """The trainer's counters, results, loggers and callbacks, swapped for stand-ins meanwhile.

    Args:
        trainer: A trainer inside ``fit``.
        callbacks: The callbacks that are to see the probe's steps instead of the person's own.
    """

    def __init__(self, trainer: Trainer, callbacks: list[Any]) -> None:
        self._undo: list[Callable[[], None]] = []
        epoch_loop = trainer.fit_loop.epoch_loop
        val_loop = epoch_loop.val_loop
        automatic, manual = epoch_loop.automatic_optimization, epoch_loop.manual_optimization
        self._copy_entries(trainer._logger_connector)
        for optimizer in trainer.strategy._lightning_optimizers:
            self._copy_entries(optimizer)
        self._swap(automatic, optim_progress=copy.deepcopy(automatic.optim_progress))
        self._swap(
            manual,
            optim_step_progress=copy.deepcopy(manual.optim_step_progress),
            _output=manual._output,
        )
        self._swap(
            epoch_loop,
            batch_progress=copy.deepcopy(epoch_loop.batch_progress),
            _results=_ResultCollection(training=True),
            _batches_that_stepped=epoch_loop._batches_that_stepped,
        )
        self._copy_entries(val_loop)
        self._swap(
            val_loop,
            batch_progress=copy.deepcopy(val_loop.batch_progress),
            _results=_ResultCollection(training=False),
            _last_val_dl_reload_epoch=trainer.current_epoch,
        )
        self._swap(
            trainer,
            callbacks=callbacks,
            _loggers=[DummyLogger() for _ in trainer.loggers],
            profiler=PassThroughProfiler(),
            should_stop=trainer.should_stop,
        )
        self._swap(trainer.state, stage=trainer.state.stage)

    def restore(self) -> None:
        """Put the trainer's own parts back."""
        while self._undo:
            self._undo.pop()()

    def _swap(self, owner: Any, **stand_ins: Any) -> None:
        own = {name: getattr(owner, name) for name in stand_ins}
        self._undo.append(lambda: _set_all(owner, own))
        _set_all(owner, stand_ins)

    def _copy_entries(self, owner: Any) -> None:
        own = dict(vars(owner))
        self._undo.append(lambda: _reset_entries(owner, own))
        vars(owner).update({k: copy.copy(v) for k, v in own.items() if isinstance(v, dict)})


class UninterruptedRestore:
    """Holds Ctrl-C back until everything is in its place again."""

    def __enter__(self) -> None:
        self._handler = None
        if threading.current_thread() is threading.main_thread():
            self._pressed = False
            self._handler = signal.signal(signal.SIGINT, self._remember)

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._pressed:
                raise KeyboardInterrupt

    def _remember(self, *_: object) -> None:
        self._pressed = True


def _set_all(owner: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(owner, name, value)


def _reset_entries(owner: Any, entries: dict[str, Any]) -> None:
    vars(owner).clear()
    vars(owner).update(entries)


def _reshard(module: nn.Module) -> None:
    """Free the gathered weights that an interrupted step of FSDP2 leaves behind."""
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()
