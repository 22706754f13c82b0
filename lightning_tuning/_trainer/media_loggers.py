"""Loggers that take histograms, images and figures, told by what they can do.

So the classes of ``pytorch_lightning`` and those of a person serve as well.
"""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from lightning.pytorch import Trainer

from lightning_tuning._trainer.report import real_loggers
from lightning_tuning._trainer.tensorboard_events import write_png
from lightning_tuning.functional.histogram import Histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Image = np.ndarray[Any, Any]
_MOST_VALUES = 100_000
_DOTS = 100
_MOST_BINS = 512
"""So many W&B takes; it raises where there are more."""


class Sink(Protocol):
    """What takes more than numbers."""

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write histograms by their tags."""

    def image(self, tag: str, image: Image, step: int) -> None:
        """Write an image of bytes (height, width, 3)."""

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """Write a figure."""


def sinks(trainer: Trainer) -> list[Sink]:
    """Return one for each logger that takes more than numbers; none but on rank zero."""
    if not trainer.is_global_zero:
        return []
    found = [sink_of(logger) for logger in real_loggers(trainer)]
    return [sink for sink in found if sink is not None]


def sink_of(logger: Any) -> Sink | None:
    """Return what writes to a logger; None where that takes numbers alone."""
    experiment = getattr(logger, "experiment", None)
    if _knows(experiment, "add_histogram_raw", "add_image", "add_figure"):
        return TensorBoard(experiment)
    if _knows(experiment, "log_histogram_3d", "log_image", "log_figure"):
        return Comet(experiment)
    if _knows(experiment, "log_image", "log_figure") and hasattr(logger, "run_id"):
        return MLflow(experiment, logger.run_id)
    if _knows(logger, "log_image", "log_metrics") and _knows(experiment, "log"):
        return WandB(logger)
    return None


def _knows(owner: object, *methods: str) -> bool:
    return all(callable(getattr(owner, method, None)) for method in methods)


def png_of(figure: Figure, *, dots: int) -> bytes:
    """Return a figure as PNG, a tenth larger than it could be, and packed in a third of the time.

    Args:
        figure: The figure.
        dots: For each inch.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dots, pil_kwargs={"compress_level": 1})
    return picture.getvalue()


@dataclasses.dataclass(frozen=True)
class TensorBoard:
    """A ``SummaryWriter``."""

    writer: Any

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Each by itself; what torch's writer takes at once does not come here."""
        for tag, histogram in histograms.items():
            self.writer.add_histogram_raw(
                tag,
                min=histogram.min,
                max=histogram.max,
                num=histogram.num,
                sum=histogram.sum,
                sum_squares=histogram.sum_squares,
                bucket_limits=list(histogram.limits),
                bucket_counts=list(histogram.counts),
                global_step=step,
            )

    def image(self, tag: str, image: Image, step: int) -> None:
        """As the tab "images" shows it."""
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """As an image, in half the time that the writer's own drawing takes."""
        if not self.drawn(tag, png_of(figure, dots=_DOTS), step):
            self.writer.add_figure(tag, figure, step)

    def drawn(self, tag: str, png: bytes, step: int) -> bool:
        """Write a figure that is drawn already, which takes long; False where that can't be."""
        return write_png(self.writer, tag, png, step)


@dataclasses.dataclass(frozen=True)
class WandB:
    """A ``WandbLogger``, which puts its own axis of steps beside each value."""

    logger: Any

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """In one call, with the bins as they are, or neighbours as one where those are many."""
        wandb = sys.modules.get("wandb")
        if wandb is not None:
            values = {
                tag: wandb.Histogram(np_histogram=_merged(each)) for tag, each in histograms.items()
            }
            self.logger.log_metrics(values, step)

    def image(self, tag: str, image: Image, step: int) -> None:
        """A panel with a slider over steps."""
        self.logger.log_image(tag, [image], step)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """As an image."""
        self.logger.log_image(tag, [figure], step)


def _merged(histogram: Histogram) -> tuple[list[float], list[float]]:
    """Return counts and edges of 512 bins at most."""
    counts, edges = histogram.counts, histogram.edges
    each = math.ceil(len(counts) / _MOST_BINS)
    starts = range(0, len(counts), each)
    return [sum(counts[i : i + each]) for i in starts], [*(edges[i] for i in starts), edges[-1]]


@dataclasses.dataclass(frozen=True)
class Comet:
    """A Comet experiment."""

    experiment: Any

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """By the middles of the bins, since it counts values itself."""
        for tag, each in histograms.items():
            counts = np.asarray(each.counts, dtype=float)
            share = min(1.0, _MOST_VALUES / max(counts.sum(), 1.0))
            repeats = np.ceil(counts * share).astype(int)
            values = np.repeat(np.asarray(each.centres), repeats)
            self.experiment.log_histogram_3d(values, name=tag, step=step)

    def image(self, tag: str, image: Image, step: int) -> None:
        """In the tab "graphics"."""
        self.experiment.log_image(image, name=tag, step=step)

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """In the tab "graphics"."""
        self.experiment.log_figure(figure_name=tag, figure=figure, step=step)


@dataclasses.dataclass(frozen=True)
class MLflow:
    """An ``MlflowClient`` and the run that it writes to; it knows no histograms."""

    client: Any
    run_id: str

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Nothing."""

    def image(self, tag: str, image: Image, step: int) -> None:
        """As an artifact."""
        self.client.log_image(self.run_id, image, f"{tag}/{step:06d}.png")

    def figure(self, tag: str, figure: Figure, step: int) -> None:
        """As an artifact."""
        self.client.log_figure(self.run_id, figure, f"{tag}/{step:06d}.png")
