"""What the activation monitor gives to loggers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer

from lightning_tuning._trainer.drawing_pace import DrawingPace
from lightning_tuning._trainer.monitor_log import (
    chart,
    log_figure,
    log_histograms,
    log_image,
    log_scalars,
    takes_figures,
)
from lightning_tuning._trainer.report import logged_step, real_loggers, run_folder
from lightning_tuning.functional.activations.activation_non_finite import CHECK
from lightning_tuning.functional.activations.activation_result import (
    ActivationRecord,
    ActivationResult,
)
from lightning_tuning.functional.activations.activation_step import ActivationStep, Sampled
from lightning_tuning.functional.histogram import Histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BY_LAYER = {
    "activation_mean": "mean",
    "activation_std": "std",
    "dead_fraction": "dead",
    "saturated_fraction": "saturated",
    "gradient_norm_by_layer": "gradient_norm",
}


class ActivationWriter:
    """Writes measured steps, and figures where there is time for them.

    Args:
        suffix: Keeps apart the tags of several monitors.
    """

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._pace = DrawingPace()
        self._numbers: dict[str, int] = {}

    def start(self, trainer: Trainer) -> None:
        """Ask for one chart for each kind of number, with a line for each layer."""
        charts = {
            f"{tag}{self._suffix}": ["Multiline", [f"{tag}{self._suffix}/.*"]] for tag in _BY_LAYER
        }
        chart(trainer, {f"Activations{self._suffix.replace('_', ' ')}": charts})

    def write(self, trainer: Trainer, step: ActivationStep) -> None:
        """Write numbers and histograms of a step."""
        if not trainer.is_global_zero or not real_loggers(trainer):
            return
        scalars: dict[str, float] = {}
        histograms: dict[str, Histogram] = {}

        def add(tag: str, name: str, sampled: Sampled | None) -> None:
            histogram = None if sampled is None else sampled.histogram()
            if histogram is not None:
                histograms[f"{tag}{self._suffix}/{name}"] = histogram

        for layer in step.layers:
            number = self._numbers.setdefault(layer.name, len(self._numbers))
            for tag, field in _BY_LAYER.items():
                value = getattr(layer, field)
                # the number keeps the layers in order
                name = f"{number:03d}_{layer.name}" if "by_layer" in tag else layer.name
                if not math.isnan(value):
                    scalars[f"{tag}{self._suffix}/{name}"] = value
            add("activations", layer.name, layer.activations)
            add("gradients", layer.name, layer.gradients)
        for weight in step.weights:
            add("weight_gradients", weight.name, weight.gradients)
        log_scalars(trainer, scalars, step.step)
        log_histograms(trainer, histograms, step.step)

    def draw_in_between(self, trainer: Trainer, record: ActivationRecord) -> None:
        """Draw if it takes a hundredth of the time at most; all ranks may call it."""
        if trainer.is_global_zero and takes_figures(trainer) and self._pace.allows():
            with self._pace.spending():
                figure = record.result().plot()
                log_figure(trainer, f"{self._tag}/layers", figure, logged_step(trainer))

    def draw(self, trainer: Trainer, result: ActivationResult) -> None:
        """Draw the whole fit; all ranks must call it."""
        from matplotlib.image import imsave

        folder = run_folder(trainer)
        if folder is None or not result.layers:
            return
        (folder / f"{self._tag}.json").write_text(result.to_json())
        image = _pixels(result.plot())
        imsave(folder / f"{self._tag}.png", image)
        if takes_figures(trainer):
            log_image(trainer, f"{self._tag}/layers", image, logged_step(trainer))

    @property
    def _tag(self) -> str:
        return f"{CHECK}{self._suffix}"


def _pixels(figure: Figure) -> np.ndarray[Any, Any]:
    """Render a figure once, for the file and for all loggers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(np.asarray(pixels)[..., :3])
