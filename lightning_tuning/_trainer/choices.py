"""What the callbacks of a trainer chose, for the hyperparameters that loggers keep."""

from __future__ import annotations

import math
import pathlib
import weakref
from typing import Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch import Trainer

from lightning_tuning._trainer.report import real_loggers
from lightning_tuning._trainer.tensorboard_events import write_hyperparameters

_OF: weakref.WeakKeyDictionary[object, dict[str, float | str]] = weakref.WeakKeyDictionary()


def note_choices(trainer: Trainer, **chosen: float | str) -> None:
    """Remember settings that a callback chose for this fit."""
    _OF.setdefault(trainer.fit_loop, {}).update(chosen)


def log_choices(trainer: Trainer) -> None:
    """Give all choices of a fit to the loggers, once; at the end of the fit.

    TensorBoard reads one set of hyperparameters of a run, which Lightning writes before anything is
    chosen; the module's own stand in the set that takes its place too.
    """
    chosen = _OF.pop(trainer.fit_loop, None)
    if not chosen or not trainer.is_global_zero:
        return
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    for logger in real_loggers(trainer):
        _give(logger, {f"tuning/{name}": value for name, value in chosen.items()}, metrics)


def _give(logger: Any, chosen: dict[str, float | str], metrics: dict[str, float]) -> None:
    experiment: Any = getattr(logger, "experiment", None)
    folder = getattr(logger, "log_dir", None)
    if folder is not None and callable(getattr(experiment, "add_hparams", None)):
        own = logger._sanitize_params(_flatten_dict(_convert_params(logger.hparams)))
        write_hyperparameters(pathlib.Path(folder), {**own, **chosen}, metrics)
    elif callable(getattr(experiment, "set_tag", None)):
        # MLflow refuses a parameter that changes from one fit to the next
        for name, value in chosen.items():
            experiment.set_tag(logger.run_id, name, value)
    elif callable(getattr(logger, "log_hyperparams", None)):
        logger.log_hyperparams(chosen)
