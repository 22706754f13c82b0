"""What was seen of layers in one step: scalars and samples that stay on the device."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_tuning._trainer.activations.activation_samples import Histograms
from lightning_tuning._trainer.activations.one_transfer import OneTransfer
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
        loss_place = None if loss is None else transfer.put(loss.detach().reshape(()))
        scale_place = None if scale is None else transfer.put(scale.detach().reshape(()))
        dead = self._dead(found, transfer)
        layers = [
            (
                calls,
                [[transfer.put(value) for value in part] for part in calls.parts],
                [transfer.put(value) for value in calls.flat],
                [transfer.put(value) for value in calls.judged],
                [transfer.put(value) for value in calls.gradient_norms],
                None if calls.input_norm is None else transfer.put(calls.input_norm),
                counted.put(calls.samples),
                counted.put(calls.gradient_samples),
            )
            for calls in found
        ]
        rows = [(w.name, transfer.put(w.norm), counted.put(_parts(w.sample))) for w in weights]
        counted.count()
        numbers = transfer.fetch()

        def number(place: int | None, otherwise: float) -> float:
            return otherwise if place is None else numbers[place][0]

        factor = number(scale_place, 1.0)
        result = []
        for calls, parts, flat, judged, norms, given, outputs, gradients in layers:
            sums, squares, lows, highs = zip(
                *([numbers[place][0] for place in part] for part in parts), strict=True
            )
            mean, std = moments_of(calls.values, sums, squares)
            judged_values = calls.judged_values + sum(numbers[place][0] for place in judged)
            gradient = sum(numbers[place][0] ** 2 for place in norms) ** 0.5 / factor
            step = LayerStep(
                name=calls.key[0],
                kind=calls.kind,
                calls=calls.calls,
                mean=mean,
                std=std,
                low=_least(lows),
                high=-_least([-high for high in highs]),
                dead=self._share(calls, dead, numbers),
                saturated=sum(numbers[place][0] for place in flat) / judged_values
                if judged_values
                else float("nan"),
                gradient_norm=gradient if norms else float("nan"),
                input_rms=float("nan")
                if given is None
                else numbers[given][0] / calls.input_values**0.5,
                activations=counted.read(outputs, numbers),
                gradients=_unscaled(counted.read(gradients, numbers), factor),
            )
            result.append((calls, step))
        grads = [
            WeightStep(name=name, norm=numbers[norm][0], gradients=counted.read(place, numbers))
            for name, norm, place in rows
        ]
        return result, grads, number(loss_place, float("nan")), factor

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
            place = transfer.put(silent.update(loud, steps))
            for number, calls in enumerate(group):
                if silent.seen[calls.key] >= steps:
                    places[calls.key] = (place, number)
        return places

    @staticmethod
    def _share(
        calls: Calls, dead: dict[object, tuple[int, int]], numbers: list[list[float]]
    ) -> float:
        if calls.loud is None or calls.key not in dead:
            return float("nan")
        place, row = dead[calls.key]
        return numbers[place][row] / calls.loud.numel()


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
    return float("nan") if any(value != value for value in values) else min(values)  # noqa: PLR0124


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
