"""Figures for the trainer's loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_tuning._trainer.report import run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def takes_figures(trainer: Trainer) -> bool:
    """Whether a logger of this process takes figures, so that drawing one is worth it."""
    return bool(_experiments(trainer))


def log_figure(trainer: Trainer, tag: str, figure: Figure, step: int = 0) -> None:
    """Give the figure to every logger that takes figures; rank zero only."""
    for experiment in _experiments(trainer):
        experiment.add_figure(tag, figure, global_step=step)


def _experiments(trainer: Trainer) -> list[Any]:
    if not trainer.is_global_zero:
        return []
    # the stand-in of fast_dev_run answers to every name
    loggers = [logger for logger in trainer.loggers if not isinstance(logger, DummyLogger)]
    experiments = [getattr(logger, "experiment", None) for logger in loggers]
    return [experiment for experiment in experiments if hasattr(experiment, "add_figure")]


def log_result(trainer: Trainer, check: str, result: PlottableResult) -> None:
    """Give a result to the loggers and write it into the run's folder; all ranks must call it.

    Loggers get the figure where they take figures; the folder gets ``<check>.png`` and
    ``<check>.json``. Without a logger nothing is written.

    Args:
        trainer: The trainer.
        check: Name of the check: the tag, and the name of the files.
        result: What was measured.
    """
    folder = run_folder(trainer)
    if folder is None:
        return
    figure = result.plot()
    figure.savefig(folder / f"{check}.png", dpi=120)
    (folder / f"{check}.json").write_text(result.to_json())
    log_figure(trainer, f"{check}/curve", figure, trainer.global_step)


class PlottableResult(Protocol):
    """What every measuring check returns."""

    def plot(self) -> Figure:
        """Draw it."""

    def to_json(self) -> str:
        """Write it."""
