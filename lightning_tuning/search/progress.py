"""One line for each trial, and silence about the rest."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lightning_tuning.search.workers import KIND

if TYPE_CHECKING:
    from optuna.study import Study

_TALKATIVE = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Let trainers tell nothing of devices, of their ends, or of folders that are not empty."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def progress_line(study: Study, part: str, number: int, trials: int) -> str:
    """Return what became of a trial, and the best of its stage so far."""
    all_trials = study.get_trials(deepcopy=False)
    trial = next(t for t in all_trials if t.number == number)
    whole = [t for t in all_trials if t.state.name == "COMPLETE" and t.value is not None]
    params = trial.user_attrs.get("params", trial.params)
    told = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in params.items()
    )
    became = trial.user_attrs.get(KIND, trial.state.name.lower())
    value = "" if trial.value is None else f" {trial.value:.4g}"
    best = f"; best {study.best_value:.4g}" if whole else ""
    return f"{part}, trial {number} of {trials}: {became}{value} with {told}{best}"
