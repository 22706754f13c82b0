"""The size of the signal: of the data, through the network, and of the gradient back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

LARGE_INPUT = 5.0
SMALL_INPUT = 0.02
OFFSET = 5.0
UNEQUAL = 30.0
EXPLODES = 10.0
VANISHES = 0.02
FADES = 1e-3
ROUNDING = 1e-6
DEAD = 0.5
FLAT = 0.5
STEEP = 1e3
FORGETS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputScale:
    """The data at the first layer with weights that they enter.

    Attributes:
        name: The path of the layer's weight.
        size: Root mean square of all values.
        offset: Median over features of their mean, in deviations.
        unequal: Largest deviation of a feature over the median deviation, or that over the
            smallest, whichever is larger.
    """

    name: str
    size: float
    offset: float
    unequal: float

    @property
    def is_odd(self) -> bool:
        """Whether networks are known to train badly on such data."""
        return (
            self.size > LARGE_INPUT
            or 0 < self.size < SMALL_INPUT
            or self.offset > OFFSET
            or self.unequal > UNEQUAL
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSignal:
    """What a layer with weights gave and got back, over a few batches before the first step.

    Attributes:
        name: The path of its weight.
        output: Root mean square of its outputs.
        spread: The same about each unit's mean.
        gradient: Norm of its weight's gradient; None where it got none.
    """

    name: str
    output: float
    spread: float
    gradient: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rectified:
    """The units of a ReLU.

    Attributes:
        after: The path of the weight before it.
        dead: The share of its units that were zero for every example.
        units: Their number.
    """

    after: str
    dead: float
    units: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squashed:
    """The units of a tanh or sigmoid between two layers.

    Attributes:
        after: The path of the weight before it.
        flat: The share of its values where its slope is below 0.0014.
    """

    after: str
    flat: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recurrence:
    """The matrix of a plain recurrent network.

    Attributes:
        name: Its path.
        norm: Its largest singular value.
        steps: So many time steps it was applied.
    """

    name: str
    norm: float
    steps: int

    @property
    def memory(self) -> float:
        """The most that is left of a gradient after all steps, ``norm ** steps``."""
        return math.exp(min(self.steps * math.log(max(self.norm, 1e-30)), 700.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signal:
    """Sizes before the first step.

    Attributes:
        inputs: The data, where they enter.
        layers: In the order of their calls.
        rectified: ReLUs.
        squashed: Tanhs and sigmoids between layers.
        recurrences: Plain recurrent networks.
        logits: Root mean square of what enters a softmax or sigmoid loss, about its mean over the
            classes.
    """

    inputs: tuple[InputScale, ...] = ()
    layers: tuple[LayerSignal, ...] = ()
    rectified: tuple[Rectified, ...] = ()
    squashed: tuple[Squashed, ...] = ()
    recurrences: tuple[Recurrence, ...] = ()
    logits: float | None = None

    @property
    def odd_inputs(self) -> tuple[InputScale, ...]:
        """Data of an unfortunate scale."""
        return tuple(scale for scale in self.inputs if scale.is_odd)

    @property
    def dead(self) -> tuple[Rectified, ...]:
        """ReLUs that let through nothing by half of their units or more.

        Weights next to nothing beside ordinary biases make dead units too, and are another fault.
        """
        constant = {
            layer.name
            for layer in self.layers
            if layer.spread < VANISHES * layer.output and layer.output < 1
        }
        return tuple(
            r for r in self.rectified if r.dead >= DEAD and r.units > 1 and r.after not in constant
        )

    @property
    def flat(self) -> tuple[Squashed, ...]:
        """Tanhs and sigmoids that are flat for half of their values or more."""
        return tuple(squashed for squashed in self.squashed if squashed.flat >= FLAT)

    @property
    def loud(self) -> tuple[LayerSignal, ...]:
        """Layers whose outputs vary by far more than one and than the data."""
        loud = max(1.0, *(scale.size for scale in self.inputs), 0.0) * EXPLODES
        return tuple(layer for layer in self.layers if not layer.spread <= loud)

    @property
    def faint(self) -> tuple[LayerSignal, ...]:
        """Layers before the last whose outputs are next to nothing, yet not zero.

        Of the first layer it is what varies that counts, since biases hide the rest.
        """
        if not self.layers:
            return ()
        sizes = [self.layers[0].spread, *(layer.output for layer in self.layers[1:])]
        pairs = zip(self.layers[:-1], sizes[:-1], strict=True)
        return tuple(layer for layer, size in pairs if 0 < size < self._unit * VANISHES)

    @property
    def fading(self) -> tuple[LayerSignal, ...]:
        """Layers before the last behind which all examples look the same."""
        return tuple(
            layer
            for layer in self.layers[:-1]
            if ROUNDING * layer.output < layer.spread < self._unit * FADES
        )

    @property
    def _unit(self) -> float:
        return min(1.0, *(scale.size for scale in self.inputs if scale.size > 0), 1.0)

    @property
    def slope(self) -> float | None:
        """Norm of the first layer's gradient over the largest of all; None where it is zero."""
        sizes = [layer.gradient for layer in self.layers if layer.gradient]
        if len(sizes) < 3 or not self.layers[0].gradient:
            return None
        first, last = self.layers[0].gradient, sizes[-1]
        return first / last if math.isfinite(first) and math.isfinite(last) else math.inf

    @property
    def forgetful(self) -> tuple[Recurrence, ...]:
        """Recurrent matrices that leave nothing of a gradient."""
        return tuple(r for r in self.recurrences if r.memory < FORGETS)

    def symptom(self) -> str:
        """Return the code of what is nearest to the root; empty where nothing is odd."""
        slope = self.slope
        vanishing = bool(self.forgetful) or (slope is not None and slope < 1 / STEEP)
        found = (
            ("saturated_activations", bool(self.flat)),
            ("dead_relu", bool(self.dead) and not self.loud),
            ("bad_init_scale", bool(self.loud or self.faint) or (self.logits or 0.0) > EXPLODES),
            ("vanishing_gradients", vanishing),
            ("exploding_gradients", slope is not None and slope > STEEP),
            ("bad_init_scale", bool(self.fading)),
        )
        return next((code for code, is_so in found if is_so), "")


def input_scale(name: str, mean: Sequence[float], std: Sequence[float]) -> InputScale | None:
    """Return the scale of data by mean and deviation of each feature; None for constants alone.

    Features that don't vary count for the size alone.

    Args:
        name: The path of the layer's weight.
        mean: Of each feature.
        std: Of each feature.

    Example:
        >>> input_scale("fc.weight", [0.0, 0.0, 0.0], [1.0, 1.0, 1000.0]).unequal
        1000.0
    """
    largest = max(std, default=0.0)
    size = math.sqrt(sum(m * m + s * s for m, s in zip(mean, std, strict=True)) / max(len(std), 1))
    kept = [(m, s) for m, s in zip(mean, std, strict=True) if s > 1e-7 * max(largest, abs(m))]
    if not kept:
        return None
    deviations = sorted(s for _, s in kept)
    offsets = sorted(abs(m) / s for m, s in kept)
    middle = deviations[len(kept) // 2]
    return InputScale(
        name=name, size=size, offset=offsets[len(kept) // 2], unequal=deviations[-1] / middle
    )
