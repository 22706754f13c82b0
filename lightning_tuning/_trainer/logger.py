"""Results for the trainer's loggers and the run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lightning.pytorch import Trainer

from lightning_tuning._trainer.monitor_log import keeps_figures, log_figure
from lightning_tuning._trainer.report import logged_step, run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_result(trainer: Trainer, check: str, result: PlottableResult) -> None:
    """Give a result to the loggers and write it into the run's folder.

    Loggers get the figure where they take figures; the folder gets ``<check>.png`` and
    ``<check>.json``. Without a logger nothing is written.

    Args:
        trainer: The trainer.
        check: Name of the check: the tag, and the name of the files.
        result: What was measured.
    """
    if not keeps_figures(trainer):
        return
    folder = run_folder(trainer)
    if folder is not None:
        (folder / f"{check}.json").write_text(result.to_json())
    log_figure(trainer, f"{check}/curve", result.plot, logged_step(trainer), file=check)


class PlottableResult(Protocol):
    """What every measuring check returns."""

    def plot(self) -> Figure:
        """Draw it."""

    def to_json(self) -> str:
        """Write it."""
