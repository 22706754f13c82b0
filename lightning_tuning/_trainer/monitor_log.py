"""What monitors write with: scalars, histograms, pictures and charts, for any logger.

Values lie on the host already, so that nothing here waits for a device. What is written changes
nothing that the program itself logs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from lightning_tuning._trainer import custom_scalars
from lightning_tuning._trainer.media_loggers import TensorBoard, png_of, sink_of, sinks
from lightning_tuning._trainer.report import real_loggers, run_folder
from lightning_tuning._trainer.tensorboard_events import Measured, write_curve, write_measured
from lightning_tuning._trainer.without_collection import without_collection

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_scalars(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    """Give numbers to every logger; in one event for TensorBoard."""
    log_measured(trainer, lambda: (values, {}), step)


def log_measured(trainer: Trainer, measured: Callable[[], Measured], step: int) -> None:
    """Give numbers to every logger, and histograms to those that take them.

    TensorBoard gets those of a step in one event, and what is measured within a second at once,
    or when the logger is flushed.

    Args:
        trainer: The trainer.
        measured: Makes numbers and histograms by their tags.
        step: Their place on the axis of ``self.log``.
    """
    if not trainer.is_global_zero:
        return
    custom_scalars.write(trainer)
    measured = functools.cache(measured)
    for logger in real_loggers(trainer):
        if write_measured(logger, measured, step):
            continue
        scalars, histograms = measured()
        if scalars:
            logger.log_metrics(dict(scalars), step)
        sink = sink_of(logger)
        if histograms and sink is not None:
            sink.histograms(histograms, step)


def log_curve(trainer: Trainer, curve: Mapping[str, Sequence[float]]) -> None:
    """Give TensorBoard curves of a measurement before the fit, each over its own steps.

    Other loggers have one axis for all values, which the fit's own steps need.
    """
    if trainer.is_global_zero:
        for logger in real_loggers(trainer):
            write_curve(logger, curve)


def log_image(trainer: Trainer, tag: str, image: np.ndarray[Any, Any], step: int) -> None:
    """Give an image of bytes (height, width, 3) to the loggers that take images.

    It becomes a PNG in the run's folder too: one for each step where no logger takes images, else
    the latest alone. Without a logger nothing is written.
    """
    takers = sinks(trainer)
    for sink in takers:
        sink.image(tag, image, step)
    folder = run_folder(trainer)
    if folder is not None:
        from matplotlib.image import imsave

        number = "" if takers else f"_{step:06d}"
        imsave(folder / f"{_file_name(tag)}{number}.png", image)


def log_figure(
    trainer: Trainer,
    tag: str,
    draw: Callable[[], Figure],
    step: int = 0,
    *,
    file: str | None = None,
) -> None:
    """Give a figure to the loggers that take figures, and write it into the run's folder.

    It is drawn once for both. Without a logger nothing is drawn.

    Args:
        trainer: The trainer.
        tag: Its name for loggers.
        draw: Makes the figure.
        step: The place on the axis of ``self.log``.
        file: Name of the PNG, without its ending; None to make one from the tag. A later figure
            replaces that before.
    """
    folder, takers = run_folder(trainer), sinks(trainer)
    if folder is None and not takers:
        return
    with without_collection():
        figure = draw()
        picture = png_of(figure, dots=120)
        if folder is not None:
            (folder / f"{file or _file_name(tag)}.png").write_bytes(picture)
        for sink in takers:
            if not (isinstance(sink, TensorBoard) and sink.drawn(tag, picture, step)):
                sink.figure(tag, figure, step)


def takes_figures(trainer: Trainer) -> bool:
    """Whether a logger of this process takes figures, so that drawing one is worth it."""
    return bool(sinks(trainer))


def keeps_figures(trainer: Trainer) -> bool:
    """Whether a figure that is drawn now comes to a logger or a folder."""
    return takes_figures(trainer) or run_folder(trainer) is not None


def chart(trainer: Trainer, layout: custom_scalars.Layout) -> None:
    """Ask for charts in TensorBoard's tab "custom scalars"; in ``on_train_start``.

    TensorBoard reads one layout of a run, so those of all monitors are merged, and written before
    the first value that one of them logs. Charts of one name become one with the lines of both.

    Args:
        trainer: The trainer.
        layout: As ``SummaryWriter.add_custom_scalars`` takes it:
            ``{category: {title: ["Multiline", [tags]]}}``, or ``["Margin", [value, low, high]]``.
            Tags are regular expressions there.
    """
    custom_scalars.add(trainer, layout)


def tag_suffix(trainer: Trainer, callback: Callback) -> str:
    """Return what keeps apart the tags of several callbacks of one class.

    Nothing for the first, then ``"_2"``, ``"_3"``; to be put behind the first part of a tag.
    """
    same = [other for other in vars(trainer)["callbacks"] if type(other) is type(callback)]
    number = next((n for n, other in enumerate(same, start=1) if other is callback), 1)
    return "" if number == 1 else f"_{number}"


def _file_name(tag: str) -> str:
    return "_".join("".join(c if c.isalnum() or c in "-_. " else "_" for c in tag).split())
