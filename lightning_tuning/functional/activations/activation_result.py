"""Layers over a fit: what was measured, step by step."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_tuning.functional.activations.activation_step import (
    ActivationStep,
    LayerStep,
    Sampled,
)
from lightning_tuning.functional.histogram import Histogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 300
_ROWS = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerHistory:
    """One layer over the measured steps; what could not be measured is NaN.

    Attributes:
        name: Path of the layer, or that of the layer before it and the function.
        kind: ``"weight"``, the name of an activation function, or nothing.
        steps: The measured steps in which it was called.
        mean: Mean of its output.
        std: Standard deviation of its output.
        low: Smallest value of its output.
        high: Largest value of its output.
        dead: Share of its units that were silent for all examples of a window of steps.
        saturated: Share of its values where the slope is next to zero.
        gradient_norm: Norm of the loss's gradient with respect to its output.
        input_rms: Root mean square of its input at the first measured step.
        rms: Root mean square of the sample behind each histogram, the unit of its bins.
        counts: Counts of each histogram; no counts where a value was not finite.
        gradient_rms: The same of the gradient with respect to its output.
        gradient_counts: The same.
    """

    name: str
    kind: str
    steps: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dead: tuple[float, ...]
    saturated: tuple[float, ...]
    gradient_norm: tuple[float, ...]
    input_rms: float
    rms: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]
    gradient_rms: tuple[float, ...]
    gradient_counts: tuple[tuple[int, ...], ...]

    def histogram(self, index: int = -1) -> Histogram | None:
        """Return the histogram of one measured step; None where a value was not finite."""
        return Sampled(
            rms=self.rms[index],
            low=self.low[index],
            high=self.high[index],
            total=self.mean[index] * sum(self.counts[index]),
            non_finite=0,
            counts=self.counts[index],
        ).histogram()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightGradientHistory:
    """The gradient of one weight over the measured steps.

    Attributes:
        name: Path of the weight.
        steps: The measured steps in which it had a gradient.
        norm: Norm of its gradient, before clipping.
    """

    name: str
    steps: tuple[int, ...]
    norm: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationResult:
    """What :class:`~lightning_tuning.ActivationMonitor` measured.

    Attributes:
        every_n_steps: Optimizer steps from one measurement to the next.
        measured: How many steps were measured; of a long fit evenly spread ones are kept.
        layers: In the order of their first calls.
        weight_gradients: In the order of the module's parameters.
    """

    every_n_steps: int
    measured: int
    layers: tuple[LayerHistory, ...]
    weight_gradients: tuple[WeightGradientHistory, ...]

    def plot(self) -> Figure:
        """Draw the histograms of all layers over time, and their dead or saturated share.

        Returns:
            A ``matplotlib.figure.Figure`` that belongs to no window.
        """
        from lightning_tuning.plot_activations import plot_activations

        return plot_activations(self)

    def to_json(self) -> str:
        """Return all of it as JSON; values that are not finite become null."""
        return json.dumps(_plain(self), allow_nan=False)


class ActivationRecord:
    """Takes measured steps, and forgets some evenly where there are too many.

    Args:
        every_n_steps: Optimizer steps between them.
    """

    def __init__(self, every_n_steps: int) -> None:
        self._every = every_n_steps
        self._kept: list[ActivationStep] = []
        self._latest: ActivationStep | None = None
        self._stride = 1
        self._count = 0

    def add(self, step: ActivationStep) -> None:
        """Take a step; histograms of weight gradients are for loggers alone, and are dropped."""
        weights = tuple(dataclasses.replace(weight, gradients=None) for weight in step.weights)
        step = dataclasses.replace(step, weights=weights)
        if self._count % self._stride == 0:
            self._kept.append(step)
        self._count += 1
        self._latest = step
        rows = max(len(step.layers) + len(step.weights), 1)
        if len(self._kept) > max(min(_POINTS, _ROWS // rows), 40):
            self._kept = self._kept[::2]
            self._stride *= 2

    def steps(self) -> tuple[ActivationStep, ...]:
        """Return those that are kept: the first, the latest, and some between."""
        if self._latest is None or self._kept[-1] is self._latest:
            return tuple(self._kept)
        return (*self._kept, self._latest)

    def result(self) -> ActivationResult:
        """Return them by layer.

        Example:
            >>> record = ActivationRecord(every_n_steps=10)
            >>> layer = LayerStep(name="fc", kind="weight", std=0.5)
            >>> record.add(ActivationStep(step=0, layers=(layer,), weights=(), loss=2.3))
            >>> record.result().layers[0].std
            (0.5,)
        """
        layers: dict[str, list[tuple[int, LayerStep]]] = {}
        weights: dict[str, list[tuple[int, float]]] = {}
        for step in self.steps():
            for layer in step.layers:
                layers.setdefault(layer.name, []).append((step.step, layer))
            for weight in step.weights:
                weights.setdefault(weight.name, []).append((step.step, weight.norm))
        return ActivationResult(
            every_n_steps=self._every,
            measured=self._count,
            layers=tuple(_history(name, rows) for name, rows in layers.items()),
            weight_gradients=tuple(
                WeightGradientHistory(
                    name=name,
                    steps=tuple(step for step, _ in rows),
                    norm=tuple(norm for _, norm in rows),
                )
                for name, rows in weights.items()
            ),
        )


def _history(name: str, rows: Sequence[tuple[int, LayerStep]]) -> LayerHistory:
    layers = [layer for _, layer in rows]

    def column(field: str) -> tuple[float, ...]:
        return tuple(getattr(layer, field) for layer in layers)

    return LayerHistory(
        name=name,
        kind=layers[0].kind,
        steps=tuple(step for step, _ in rows),
        **{
            field: column(field)
            for field in ("mean", "std", "low", "high", "dead", "saturated", "gradient_norm")
        },
        input_rms=layers[0].input_rms,
        rms=tuple(math.nan if a is None else a.rms for a in column_of(layers, "activations")),
        counts=tuple(() if a is None else a.counts for a in column_of(layers, "activations")),
        gradient_rms=tuple(
            math.nan if g is None else g.rms for g in column_of(layers, "gradients")
        ),
        gradient_counts=tuple(
            () if g is None else g.counts for g in column_of(layers, "gradients")
        ),
    )


def column_of(layers: Sequence[LayerStep], field: str) -> list[Sampled | None]:
    """Return one sampled field of each step."""
    return [getattr(layer, field) for layer in layers]


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple):
        # rows of counts are many, and hold nothing but integers
        return value if value and type(value[0]) is int else [_plain(part) for part in value]
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in _fields(value)}
    return value


def _fields(value: object) -> tuple[dataclasses.Field[object], ...]:
    assert dataclasses.is_dataclass(value)
    return dataclasses.fields(value)
