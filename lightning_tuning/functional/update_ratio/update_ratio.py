"""How far each step moves each tensor of weights, relative to its size."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Matrix = npt.NDArray[np.float64]
Rows = tuple[tuple[float, ...], ...]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_MAGNITUDES = ("weight_g", "original0")
"""Names of the magnitudes that weight normalization, old and new, keeps apart from directions."""


def parameter_kind(name: str, parameter: Tensor, layer: nn.Module | None = None) -> str:
    """Return what a parameter is, since not every kind is to move by a thousandth in a step.

    Args:
        name: Its path.
        parameter: It itself.
        layer: The module that has it, where that is known.

    Returns:
        ``"weight"``, ``"embedding"``, ``"norm"``, ``"bias"``, ``"scalar"``, or ``"vector"`` for
        others that are no matrix.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> parameter_kind("net.weight", layer.weight, layer)
        'weight'
        >>> parameter_kind("net.bias", layer.bias, layer)
        'bias'
    """
    own = name.rsplit(".", 1)[-1]
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and parameter.dim() > 1:
        return "embedding"
    if isinstance(layer, _NORMS) or ("Norm" in type(layer).__name__ and parameter.dim() == 1):
        return "norm"
    if parameter.numel() == 1:
        return "scalar"
    if parameter.dim() < 2:
        return "bias" if "bias" in own else "vector"
    return "vector" if own in _MAGNITUDES else "weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateRatioResult:
    r"""What ``UpdateRatioMonitor`` measured: steps times tensors, NaN where nothing was to measure.

    Attributes:
        steps: The measured optimizer steps, as on the axis of the loggers.
        names: Paths of the parameters.
        kinds: What each of them is, see :func:`parameter_kind`; ``"zero_init"`` for
            matrices that were zero when they were first measured.
        log10_ratios: :math:`\log_{10}(\|\Delta W\| / \|W\|)`; minus infinity where a step left the
            tensor as it was.
        weight_norms: :math:`\|W\|` before the step.
        update_norms: :math:`\|\Delta W\|`.
        gradient_norms: Norm of each tensor's gradient before clipping.
        before_clipping: Norm of all gradients of each optimizer, before clipping.
        after_clipping: The same, as the optimizer took them.
        learning_rates: Of each parameter group.

    Example:
        >>> result = UpdateRatioResult(
        ...     steps=(0, 1),
        ...     names=("net.weight",),
        ...     kinds=("weight",),
        ...     log10_ratios=((-3.0,), (-2.0,)),
        ...     weight_norms=((1.0,), (1.0,)),
        ...     update_norms=((0.001,), (0.01,)),
        ...     gradient_norms=((0.5,), (0.5,)),
        ...     before_clipping=((0.5,), (2.0,)),
        ...     after_clipping=((0.5,), (1.0,)),
        ...     learning_rates=((0.1,), (0.1,)),
        ... )
        >>> result.clipped_share
        0.5
        >>> summary(result.log10_ratios[1], result.kinds)["median"]
        -2.0
    """

    steps: tuple[int, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    log10_ratios: Rows
    weight_norms: Rows
    update_norms: Rows
    gradient_norms: Rows
    before_clipping: Rows
    after_clipping: Rows
    learning_rates: Rows

    @property
    def clipped_share(self) -> float | None:
        """On which share of the measured steps clipping made the gradient smaller.

        None where nobody saw it before clipping, as under manual optimization.
        """
        coefficients = self.clip_coefficients
        return float(np.mean(coefficients < 0.999)) if len(coefficients) else None

    @property
    def clip_coefficients(self) -> Matrix:
        """What was left of the gradient's norm after clipping, at each step where that is known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.divide(matrix(self.after_clipping), matrix(self.before_clipping))
        return np.asarray(ratios[np.isfinite(ratios)])

    def plot(self) -> Figure:
        """Draw the ratios of all tensors over time; see ``plot_update_ratios``."""
        from lightning_tuning.plot_update_ratios import plot_update_ratios

        return plot_update_ratios(self)

    def to_json(self) -> str:
        """Return everything as JSON; null stands where nothing was measured, or nothing moved."""
        return json.dumps(_plain(vars(self)))


def summary(log10_ratios: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    """Return median and 10th and 90th percentile over the matrices that moved; none, no entry.

    Args:
        log10_ratios: Of one step.
        kinds: What the tensors are.

    Example:
        >>> {k: round(v, 2) for k, v in summary([-4.0, -3.0, -2.0], ["weight"] * 3).items()}
        {'low': -3.8, 'median': -3.0, 'high': -2.2}
    """
    pairs = zip(log10_ratios, kinds, strict=True)
    values = [ratio for ratio, kind in pairs if kind == "weight" and math.isfinite(ratio)]
    if not values:
        return {}
    # it asks for two values
    tenths = statistics.quantiles(
        values if len(values) > 1 else values * 2, n=10, method="inclusive"
    )
    return {"low": tenths[0], "median": tenths[4], "high": tenths[8]}


def log10_ratio(update: float, weight: float) -> float:
    """Return the logarithm of a ratio of norms; NaN where the weights are zero or not finite.

    Example:
        >>> log10_ratio(0.002, 2.0)
        -3.0
        >>> log10_ratio(0.0, 2.0)
        -inf
    """
    if not weight > 0 or not math.isfinite(weight) or not math.isfinite(update):
        return math.nan
    return math.log10(update) - math.log10(weight) if update > 0 else -math.inf


def matrix(rows: Sequence[Sequence[float]], width: int = 0) -> Matrix:
    """Return rows as an array of two dimensions; where there is none, of the given width."""
    width = len(rows[0]) if rows else width
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), width)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
