"""One trial: a model, its data and a trainer, from its hyperparameters to its metric."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_tuning._trainer.trial_pruning import TrialPruning
from lightning_tuning.functional.metric_mode import MetricMode

MakeModel = Callable[..., LightningModule]
MakeData = Callable[..., Any]
"""Returns a LightningDataModule, or a pair of a training and a validation loader."""
_QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What is searched over.

    Attributes:
        make_model: Makes the module from hyperparameters by name.
        make_data: Makes its data.
        arguments: Which hyperparameters each of the two takes: ``"model"`` and ``"data"``.
        monitor: The metric.
        mode: Which values are better.
        trainer: Arguments of each trainer.
        callbacks: Makes more callbacks for each trial.
    """

    make_model: MakeModel
    make_data: MakeData
    arguments: Mapping[str, Sequence[str]]
    monitor: str
    mode: MetricMode
    trainer: Mapping[str, Any]
    callbacks: Callable[[], list[Callback]] | None

    def model(self, params: Mapping[str, Any]) -> LightningModule:
        """Return a new module."""
        return self.make_model(**{name: params[name] for name in self.arguments["model"]})

    def data(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return its data as arguments of ``Trainer.fit``."""
        return data_arguments(
            self.make_data(**{name: params[name] for name in self.arguments["data"]})
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended.

    Attributes:
        value: Its best metric; None where there is none.
        ended: Empty, ``"pruned"`` or ``"diverged"``.
        curve: The metric after each validation.
        checkpoint: The file of its best weights.
        seconds: How long it took.
    """

    value: float | None
    ended: str
    curve: tuple[float, ...]
    checkpoint: str
    seconds: float


def data_arguments(data: Any) -> dict[str, Any]:
    """Return data as arguments of ``Trainer.fit``.

    Args:
        data: A LightningDataModule, or a pair of a training and a validation loader.
    """
    if isinstance(data, LightningDataModule):
        return {"datamodule": data}
    train, val = data
    return {"train_dataloaders": train, "val_dataloaders": val}


def takers(
    make_model: MakeModel, make_data: MakeData, names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return which hyperparameters go to the model and which to the data.

    Raises:
        ValueError: One goes to neither.

    Example:
        >>> takers(lambda lr: None, lambda batch_size: None, ["lr", "batch_size"])
        {'model': ('lr',), 'data': ('batch_size',)}
    """
    found = {
        part: tuple(name for name in names if _takes(make, name))
        for part, make in (("model", make_model), ("data", make_data))
    }
    lost = [name for name in names if not any(name in part for part in found.values())]
    if lost:
        raise ValueError(
            f"space has {lost[0]!r}, which neither make_model nor make_data takes by that name"
        )
    return found


def _takes(make: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return True
    return name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY


def run_trial(
    program: Program,
    params: Mapping[str, Any],
    *,
    epochs: float,
    seed: int,
    folder: pathlib.Path,
    name: str,
    report: Callable[[float, int], bool],
    alive: Callable[[], None],
) -> Outcome:
    """Train once.

    Args:
        program: What to train.
        params: Its hyperparameters.
        epochs: How long; below 1 for a part of the first epoch.
        seed: Of weights and data order.
        folder: Where its files go.
        name: Of its checkpoint, before the metric.
        report: Takes the metric and the epoch; returns whether to stop.
        alive: Called about once a minute of training.
    """
    started = time.perf_counter()
    pl.seed_everything(seed, workers=True, verbose=False)
    pruning = TrialPruning(program.monitor, program.mode, report, alive)
    told = program.monitor.replace("/", "_")
    checkpoint = ModelCheckpoint(
        dirpath=folder,
        filename=f"{name}-{told}={{{program.monitor}:.4g}}",
        auto_insert_metric_name=False,
        monitor=program.monitor,
        mode=program.mode,
        save_weights_only=True,
        enable_version_counter=False,
    )
    more = [] if program.callbacks is None else program.callbacks()
    length: dict[str, Any] = {"max_epochs": int(epochs)}
    if epochs < 1:
        length = {"max_epochs": 1, "limit_train_batches": float(epochs)}
    logger = TensorBoardLogger(str(folder.parent), name=folder.name, version=name)
    # each trial keeps its best weights, whatever the person's trainers do
    own = {**length, "enable_checkpointing": True}
    settings = {**_QUIET, "logger": logger, **program.trainer, **own}
    trainer = pl.Trainer(**settings, callbacks=[*more, pruning, checkpoint])
    trainer.fit(program.model(params), **program.data(params))
    return Outcome(
        value=pruning.best,
        ended=pruning.ended,
        curve=tuple(pruning.curve),
        checkpoint=str(checkpoint.best_model_path),
        seconds=time.perf_counter() - started,
    )
