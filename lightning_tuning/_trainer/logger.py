"""Figures for the trainer's loggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lightning.pytorch import Trainer

from lightning_tuning._trainer.report import experiments, run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def takes_figures(trainer: Trainer) -> bool:
    """Whether a logger of this process takes figures, so that drawing one is worth it."""
    return bool(experiments(trainer, "add_figure"))


def log_figure(trainer: Trainer, tag: str, figure: Figure, step: int = 0) -> None:
    """Give the figure to every logger that takes figures; rank zero only."""
    for experiment in experiments(trainer, "add_figure"):
        experiment.add_figure(tag, figure, global_step=step)


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
