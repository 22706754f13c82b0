"""Doing something inside a fit that ends before its first step, as if there had been none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import _TunerExitException
from torch import nn

from lightning_tuning._trainer.object_state import ObjectState
from lightning_tuning._trainer.random_state import kept_random_state
from lightning_tuning._trainer.schedule_length import accumulation
from lightning_tuning._trainer.snapshot import ParameterFields
from lightning_tuning._trainer.tensor_state import TensorState


def run_before_fit(
    trainer: Trainer,
    model: LightningModule,
    work: Callable[[Trainer, LightningModule], None],
    *,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: LightningDataModule | None = None,
) -> None:
    """Set up a fit, call ``work`` where training would start, and take all of it back.

    The person's callbacks and loggers see nothing of it. Afterwards trainer and model are as
    before, so that a fit may follow.

    Raises:
        MisconfigurationException: The trainer has nothing left to train, or its strategy starts
            processes that can't hand a result back or shards the model for good; or it is a module.
    """
    refuse_module(trainer)
    _refuse_strategies(trainer)
    probe = _AtTrainStart(work)
    trainer_state = _TrainerState(trainer)
    tensors = TensorState([*model.parameters(), *model.buffers()])
    memory = [(p, p.data, ParameterFields(p)) for p in model.parameters()]
    sources = [train_dataloaders, val_dataloaders, datamodule]
    objects = ObjectState([model], data=sources, skip=[*model.parameters(), *model.buffers()])
    with kept_random_state():
        try:
            trainer.accumulate_grad_batches = accumulation(trainer, trainer.current_epoch)
            vars(model)["configure_callbacks"] = list
            vars(trainer)["callbacks"] = [probe]
            trainer._loggers = [DummyLogger() for _ in trainer.loggers]
            trainer.num_sanity_val_steps = 0
            trainer.fit(model, train_dataloaders, val_dataloaders, datamodule)
        finally:
            trainer_state.restore()
            objects.restore()
            for parameter, data, fields in memory:
                # a true half precision, or another device, gives the parameter other memory
                parameter.data = data
                fields.restore()
            tensors.restore()
    if not probe.called:
        raise MisconfigurationException(
            "This trainer has nothing left to train "
            f"(max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}, "
            f"global_step={trainer.global_step}); make a new one, or raise its limit."
        )


def refuse_module(trainer: object) -> None:
    """Tell of trainer and module in the wrong order.

    Raises:
        MisconfigurationException: What is to be the trainer is a module.
    """
    if isinstance(trainer, nn.Module):
        raise MisconfigurationException(
            f"trainer={type(trainer).__name__}(...) is a module: the trainer comes first, then the"
            " module that it is to fit."
        )


class _AtTrainStart(Callback):
    """Does the work, then leaves the fit by Lightning's own early exit for tuners."""

    def __init__(self, work: Callable[[Trainer, LightningModule], None]) -> None:
        self._work = work
        self.called = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's hook: data and optimizers are set up."""
        self.called = True
        self._work(trainer, pl_module)
        raise _TunerExitException


class _TrainerState:
    """What a fit that ends early leaves behind in the trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        loop = trainer.fit_loop
        self._owners = [
            (
                trainer,
                (
                    *("callbacks", "_loggers", "num_sanity_val_steps", "should_stop"),
                    "accumulate_grad_batches",
                ),
            ),
            (loop, ("min_epochs", "max_epochs", "_combined_loader", "_data_fetcher")),
            (loop.epoch_loop.val_loop, ("_combined_loader", "_data_fetcher")),
            (trainer.state, ("status", "fn", "stage")),
        ]
        self._values = [
            {name: getattr(owner, name) for name in names} for owner, names in self._owners
        ]
        self._had_datamodule = hasattr(trainer, "datamodule")
        self._datamodule = getattr(trainer, "datamodule", None)

    def restore(self) -> None:
        """Put it back."""
        for (owner, _), values in zip(self._owners, self._values, strict=True):
            for name, value in values.items():
                setattr(owner, name, value)
        trainer = self._trainer
        if self._had_datamodule:
            trainer.datamodule = self._datamodule  # type: ignore[attr-defined]
        elif hasattr(trainer, "datamodule"):
            del trainer.datamodule


def _refuse_strategies(trainer: Trainer) -> None:
    strategy = type(trainer.strategy).__name__
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise MisconfigurationException(
            f"Under {strategy} the steps run in processes that the fit itself starts, so nothing "
            "comes back from before it; put the callback into Trainer(callbacks=[...]) instead."
        )
    if strategy in ("ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy"):
        raise MisconfigurationException(
            f"{strategy} shards the model for good when a fit sets it up; put the callback into "
            "Trainer(callbacks=[...]) instead."
        )
