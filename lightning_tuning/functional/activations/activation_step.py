"""What was measured of one layer in one step, on the host."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_tuning.functional.activations.activation_histograms import FACTS, edges
from lightning_tuning.functional.histogram import Histogram


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """The histogram of a sample of a tensor.

    Attributes:
        rms: Root mean square of the sample, the unit of the bins.
        low: Its smallest finite value.
        high: Its largest finite value.
        total: The sum of these.
        non_finite: How many of its values are not finite.
        counts: Of each bin.
    """

    rms: float
    low: float
    high: float
    total: float
    non_finite: int
    counts: tuple[int, ...]

    @classmethod
    def from_rows(cls, rows: np.ndarray[Any, np.dtype[np.floating[Any]]]) -> list[Sampled]:
        """Return what each row of ``activation_histograms.histograms`` says.

        Example:
            >>> rows = np.array([[1.0, -1.0, 1.0, 0.0, 0.0, 2.0, 2.0]])
            >>> [sampled.counts for sampled in Sampled.from_rows(rows)]
            [(2, 2)]
        """
        return [
            cls(
                rms=rms,
                low=low,
                high=high,
                total=total,
                non_finite=int(broken),
                counts=tuple(counts),
            )
            for (rms, low, high, total, broken), counts in zip(
                rows[:, :FACTS].tolist(), rows[:, FACTS:].astype(np.int64).tolist(), strict=True
            )
        ]

    def histogram(self) -> Histogram | None:
        """Return it as loggers take it, from its first bin with a count to its last.

        None where it has no counts. Most of the outer bins are empty, and loggers' time goes by
        bytes.

        Example:
            >>> [row] = Sampled.from_rows(np.array([[1.0, -1.0, 1.0, 0.0, 0.0, 2.0, 2.0]]))
            >>> [round(limit, 1) for limit in row.histogram().limits]
            [0.0, 53.6]
        """
        number = sum(self.counts)
        if not number:
            return None
        used = [place for place, count in enumerate(self.counts) if count]
        first, end = used[0], used[-1] + 1
        limits = [self.rms * edge for edge in edges(len(self.counts))[first + 1 : end + 1]]
        if end == len(self.counts):
            limits[-1] = max(limits[-1], self.high)
        return Histogram(
            limits=tuple(limits),
            counts=self.counts[first:end],
            min=self.low,
            max=self.high,
            num=number,
            sum=self.total,
            sum_squares=number * self.rms**2,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerStep:
    """One layer in one step; what could not be measured is NaN.

    Attributes:
        name: Its path, or that of the layer before and the function.
        kind: ``"weight"``, the name of an activation function, or nothing.
        calls: How often it was called.
        mean: Of all values of its output.
        std: Their standard deviation.
        low: The smallest.
        high: The largest.
        dead: The share of its units that were silent in all steps of the window.
        saturated: The share of values at which its slope is next to zero.
        gradient_norm: Norm of the loss's gradient with respect to its output.
        input_rms: Root mean square of its first input, at the first measured step.
        activations: Histogram of a sample of its output.
        gradients: The same of the gradient with respect to its output.
    """

    name: str
    kind: str
    calls: int = 1
    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    dead: float = math.nan
    saturated: float = math.nan
    gradient_norm: float = math.nan
    input_rms: float = math.nan
    activations: Sampled | None = None
    gradients: Sampled | None = None

    def renamed(self, name: str) -> LayerStep:
        """Return the same under another name."""
        return self if name == self.name else dataclasses.replace(self, name=name)

    @property
    def is_finite(self) -> bool:
        """Whether all values of its output are."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WeightStep:
    """The gradient of the loss with respect to a weight, in one step.

    Attributes:
        name: Path of the weight.
        norm: Norm of its gradient.
        gradients: Histogram of a sample; None where this process holds no part of the weight.
    """

    name: str
    norm: float
    gradients: Sampled | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ActivationStep:
    """All that was measured in one step.

    Attributes:
        step: Its place on the loggers' axis.
        layers: In the order of their first calls.
        weights: In the order of the module's parameters.
        loss: The loss; NaN where it is not known.
        scale: What the loss was multiplied by for the backward pass.
    """

    step: int
    layers: tuple[LayerStep, ...]
    weights: tuple[WeightStep, ...]
    loss: float
    scale: float = 1.0


def moments_of(values: int, sums: Sequence[float], norms: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of all values, given sum and norm of each part.

    Example:
        >>> moments_of(2, [3.0, 4.0], [3.0, 4.0])
        (3.5, 0.5)
    """
    mean = sum(sums) / values
    square = sum(norm * norm for norm in norms) / values
    if not math.isfinite(mean) or not math.isfinite(square):
        return mean, math.nan
    return mean, math.sqrt(max(square - mean * mean, 0.0))
