"""What the activation monitor gives to loggers."""

from __future__ import annotations

import functools
import math

from lightning.pytorch import Trainer

from lightning_tuning._trainer.custom_scalars import WELL
from lightning_tuning._trainer.drawing_pace import DrawingPace
from lightning_tuning._trainer.monitor_log import (
    chart,
    keeps_figures,
    log_figure,
    log_measured,
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
            f"{tag}{self._suffix}".replace("_", " "): ["Multiline", [f"{tag}{self._suffix}/.*"]]
            for tag in _BY_LAYER
        }
        chart(trainer, {WELL: charts})

    def write(self, trainer: Trainer, step: ActivationStep) -> None:
        """Write numbers and histograms of a step."""
        if trainer.is_global_zero and real_loggers(trainer):
            log_measured(trainer, functools.partial(self._measured, step), step.step)

    def _measured(self, step: ActivationStep) -> tuple[dict[str, float], dict[str, Histogram]]:
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
        return scalars, histograms

    def draw_in_between(self, trainer: Trainer, record: ActivationRecord) -> None:
        """Draw if it takes 0.2 % of the time at most; all ranks may call it."""
        if trainer.is_global_zero and takes_figures(trainer) and self._pace.allows():
            with self._pace.spending():
                self._draw(trainer, record.result())

    def draw(self, trainer: Trainer, result: ActivationResult) -> None:
        """Draw the whole fit; all ranks must call it."""
        if not result.layers or not keeps_figures(trainer):
            return
        folder = run_folder(trainer)
        if folder is not None:
            (folder / f"{self._tag}.json").write_text(result.to_json())
        self._draw(trainer, result)

    def _draw(self, trainer: Trainer, result: ActivationResult) -> None:
        tag, step = f"{self._tag}/layers", logged_step(trainer)
        log_figure(trainer, tag, result.plot, step, file=self._tag)

    @property
    def _tag(self) -> str:
        return f"{CHECK}{self._suffix}"
