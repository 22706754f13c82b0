"""What was seen of layers in one step: scalars and samples that stay on the device."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_tuning._trainer.activations.activation_samples import Histograms
from lightning_tuning._trainer.activations.one_transfer import Array, OneTransfer
from lightning_tuning._trainer.activations.silent_units import SilentUnits, window
from lightning_tuning._trainer.activations.weight_gradients import WeightGradient
from lightning_tuning.functional.activations.activation_stats import (
    Activation,
    loudness,
    moments,
    sample,
    saturated,
)
from lightning_tuning.functional.activations.activation_step import (
    LayerStep,
    Sampled,
    WeightStep,
    moments_of,
)


@dataclasses.dataclass(kw_only=True, eq=False)
class Calls:
    """The calls of one layer in one step.

    Attributes:
        key: The layer and its place.
        kind: As of :class:`LayerStep`.
        activation: What is known of its values.
        late: Whether its first call was made in the backward pass.
    """

    key: tuple[str, str]
    kind: str
    activation: Activation | None
    late: bool
    calls: int = 0
    values: int = 0
    examples: int = 0
    parts: list[list[Tensor]] = dataclasses.field(default_factory=list)
    samples: list[Tensor] = dataclasses.field(default_factory=list)
    loud: Tensor | None = None
    flat: list[Tensor] = dataclasses.field(default_factory=list)
    judged: list[Tensor] = dataclasses.field(default_factory=list)
    judged_values: int = 0
    backward: int = 0
    gradient_norms: list[Tensor] = dataclasses.field(default_factory=list)
    gradient_samples: list[Tensor] = dataclasses.field(default_factory=list)
    input_norm: Tensor | None = None
    input_values: int = 0

    def output(self, tensor: Tensor, unit_dim: int) -> None:
        """Measure an output; nothing of it is kept."""
        self.calls += 1
        self.values += tensor.numel()
        self.parts.append(moments(tensor))
        activation = self.activation
        if _is_power_of_two(self.calls):
            self.samples.append(sample(tensor))
            if activation is not None and activation.saturates and not activation.attention:
                self.judged_values += self.samples[-1].numel()
                self.flat.append(saturated(self.samples[-1], activation))
        if activation is not None and activation.silences and tensor.dim() > 1:
            loud = loudness(tensor, activation, unit_dim)
            if self.loud is None:
                self.loud, self.examples = loud, tensor.size(0)
            elif self.loud.shape == loud.shape:
                self.loud = torch.maximum(self.loud, loud)

    def gradient(self, tensor: Tensor) -> None:
        """Measure a gradient with respect to an output."""
        self.backward += 1
        self.gradient_norms.append(_norm(tensor))
        if _is_power_of_two(self.backward):
            self.gradient_samples.append(sample(tensor))

    def first_input(self, tensor: Tensor) -> None:
        """Measure what went in."""
        if self.input_norm is None:
            self.input_norm, self.input_values = _norm(tensor), tensor.numel()

    def scalars(self) -> list[Tensor]:
        """Return what :meth:`read` takes, still on the device."""
        given = [] if self.input_norm is None else [self.input_norm]
        # moments of one kind stand side by side
        moments = [value for kind in zip(*self.parts, strict=True) for value in kind]
        return [*moments, *self.flat, *self.judged, *self.gradient_norms, *given]

    def read(
        self,
        numbers: Sequence[float],
        *,
        scale: float,
        dead: float,
        activations: Sampled | None,
        gradients: Sampled | None,
    ) -> LayerStep:
        """Return the layer's step.

        Args:
            numbers: Those of :meth:`scalars`.
            scale: What gradients are multiplied by.
            dead: The share of dead units.
            activations: Histogram of the output.
            gradients: Histogram of its gradient, multiplied by the scale.
        """
        left = iter(numbers)

        def take(of: Sequence[object]) -> list[float]:
            return [next(left) for _ in of]

        sums, norms, lows, highs = (take(self.parts) for _ in range(4))
        mean, std = moments_of(self.values, sums, norms)
        flat, judged = sum(take(self.flat)), self.judged_values + sum(take(self.judged))
        gradient = math.hypot(*take(self.gradient_norms)) / scale
        given = next(left, math.nan)
        return LayerStep(
            name=self.key[0],
            kind=self.kind,
            calls=self.calls,
            mean=mean,
            std=std,
            low=_least(lows),
            high=-_least([-high for high in highs]),
            dead=dead,
            saturated=flat / judged if judged else math.nan,
            gradient_norm=gradient if self.gradient_norms else math.nan,
            input_rms=given / self.input_values**0.5 if self.input_values else math.nan,
            activations=activations,
            gradients=_unscaled(gradients, scale),
        )


class StepTransfer:
    """Brings the calls of a step to the host.

    Args:
        bins: Of each histogram.
        silent: Remembers silent units from step to step.
    """

    def __init__(self, bins: int, silent: dict[torch.device, SilentUnits]) -> None:
        self._bins = bins
        self._silent = silent

    @torch.no_grad()
    def run(
        self,
        found: Iterable[Calls],
        weights: Iterable[WeightGradient],
        *,
        scale: Tensor | None,
        loss: Tensor | None,
    ) -> tuple[list[tuple[Calls, LayerStep]], list[WeightStep], float, float]:
        """Return what is known of layers and weights, the loss, and its scale."""
        found, weights = list(found), list(weights)
        transfer = OneTransfer()
        counted = Histograms(transfer, self._bins)
        alone = [tensor.detach().reshape(()) for tensor in (loss, scale) if tensor is not None]
        alone_place = transfer.put(alone)
        dead = self._dead(found, transfer)
        seen = [
            (
                calls,
                transfer.put(calls.scalars()),
                counted.put(calls.samples),
                counted.put(calls.gradient_samples),
            )
            for calls in found
        ]
        norms = transfer.put([weight.norm for weight in weights])
        rows = [counted.put(_parts(weight.sample)) for weight in weights]
        counted.count()
        numbers, arrays = transfer.fetch()
        sampled = counted.read(arrays)

        left = iter(numbers[alone_place])
        value = math.nan if loss is None else next(left)
        factor = next(left, 1.0)
        layers = [
            (
                calls,
                calls.read(
                    numbers[place],
                    scale=factor,
                    dead=self._share(calls, dead, arrays),
                    activations=None if outputs is None else sampled[outputs],
                    gradients=None if gradients is None else sampled[gradients],
                ),
            )
            for calls, place, outputs, gradients in seen
        ]
        grads = [
            WeightStep(name=weight.name, norm=norm, gradients=None if row is None else sampled[row])
            for weight, norm, row in zip(weights, numbers[norms], rows, strict=True)
        ]
        return layers, grads, value, factor

    def _dead(self, found: Sequence[Calls], transfer: OneTransfer) -> dict[object, tuple[int, int]]:
        devices: dict[torch.device, list[Calls]] = defaultdict(list)
        for calls in found:
            if calls.loud is not None:
                devices[calls.loud.device].append(calls)
        places: dict[object, tuple[int, int]] = {}
        for device, group in devices.items():
            steps = window(min(calls.examples for calls in group))
            silent = self._silent.setdefault(device, SilentUnits())
            loud = [(calls.key, calls.loud) for calls in group if calls.loud is not None]
            place = transfer.put_array(silent.update(loud, steps))
            for number, calls in enumerate(group):
                if silent.seen[calls.key] >= steps:
                    places[calls.key] = (place, number)
        return places

    @staticmethod
    def _share(calls: Calls, dead: dict[object, tuple[int, int]], arrays: Sequence[Array]) -> float:
        if calls.loud is None or calls.key not in dead:
            return math.nan
        place, row = dead[calls.key]
        return float(arrays[place][row]) / calls.loud.numel()


def _parts(sampled: Tensor) -> list[Tensor]:
    return [sampled] if sampled.numel() else []


def _norm(tensor: Tensor) -> Tensor:
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=wide)
    return norm


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _least(values: Sequence[float]) -> float:
    """Return the smallest number; NaN if one is."""
    return math.nan if any(value != value for value in values) else min(values)  # noqa: PLR0124


def _unscaled(sampled: Sampled | None, scale: float) -> Sampled | None:
    if sampled is None or scale == 1.0:
        return sampled
    return dataclasses.replace(
        sampled,
        rms=sampled.rms / scale,
        low=sampled.low / scale,
        high=sampled.high / scale,
        total=sampled.total / scale,
    )


def display_names(found: Mapping[tuple[str, str], Calls]) -> dict[tuple[str, str], str]:
    """Return a name for each record: that of the layer, or of its place where it has several.

    A module such as ``act`` that is called after ``fc1`` and ``fc2`` is two layers, ``fc1.act``
    and ``fc2.act``.
    """
    places: dict[str, set[str]] = {}
    for name, place in found:
        places.setdefault(name, set()).add(place)
    return {
        (name, place): name
        if len(places[name]) == 1 or not place
        else f"{place}.{name.rpartition('.')[2]}"
        for name, place in found
    }
