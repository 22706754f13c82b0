"""What a monitor computes of a tensor on its device, without waiting for it.

Source: CS231n, *Neural Networks Part 2 and 3* (activation and gradient distributions per layer).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE = 2048
"""At most so many values of a tensor go into its histogram; more would not show."""
REACH = 4.0
"""The outermost bins lie at ``expm1(4)``, or 54 times the root mean square."""
_FAINT = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """What counts as silent, and as saturated, at the output of an activation function.

    Attributes:
        low: Saturated at this value and below.
        high: Saturated at this value and above.
        silences: Whether a unit that is on the flat side for all inputs lets nothing through.
        smooth: Whether silence is next to nothing beside the loudest unit, rather than zero.
        attention: Whether it is the largest of each row that counts.
    """

    low: float = -math.inf
    high: float = math.inf
    silences: bool = False
    smooth: bool = False
    attention: bool = False

    @property
    def saturates(self) -> bool:
        """Whether a value of the output tells that the slope is next to zero there."""
        return self.low > -math.inf or self.high < math.inf


_RELU, _SMOOTH = Activation(silences=True), Activation(silences=True, smooth=True)
_TANH, _SIGMOID = Activation(low=-0.99, high=0.99), Activation(low=0.01, high=0.99)
ACTIVATIONS: dict[str, Activation] = {
    "relu": _RELU,
    "relu6": Activation(high=6.0, silences=True),
    "threshold": _RELU,
    "leaky_relu": Activation(),
    "rrelu": Activation(),
    "prelu": Activation(),
    "softplus": Activation(),
    "glu": Activation(),
    "gelu": _SMOOTH,
    "silu": _SMOOTH,
    "mish": _SMOOTH,
    "hardswish": _SMOOTH,
    "elu": Activation(low=-0.99),
    "celu": Activation(low=-0.99),
    "selu": Activation(low=-1.74),
    "tanh": _TANH,
    "softsign": _TANH,
    "hardtanh": Activation(low=-1.0, high=1.0),
    "sigmoid": _SIGMOID,
    "hardsigmoid": Activation(low=0.0, high=1.0),
    "softmax": Activation(high=0.99, attention=True),
}
"""Activation functions by the name of torch's function."""


def stride(numel: int, at_most: int = SAMPLE) -> int:
    """Return the step of a sample that meets all features, channels and positions alike.

    A step that divides one of a tensor's sizes would meet the same few features again and again.

    Example:
        >>> stride(64 * 512), stride(100)
        (17, 1)
    """
    step = max(1, math.ceil(numel / at_most))
    while math.gcd(step, numel) > 1:
        step += 1
    return step


def sample(tensor: Tensor, at_most: int = SAMPLE) -> Tensor:
    """Return values from all over a tensor, as a copy of one dimension in single precision.

    Example:
        >>> sample(torch.arange(8.0).view(2, 4), at_most=3).tolist()
        [0.0, 3.0, 6.0]
    """
    dense = tensor.is_contiguous()
    if not dense and tensor.dim() == 4:
        dense = tensor.is_contiguous(memory_format=torch.channels_last)
    step = stride(tensor.numel(), at_most)
    count = math.ceil(tensor.numel() / step)
    if dense:
        values = tensor.as_strided((count,), (step,), tensor.storage_offset())
    else:
        values = tensor.reshape(-1)[::step]
    return values.to(torch.float32, copy=True)


def moments(tensor: Tensor) -> list[Tensor]:
    """Return sum, Euclidean norm, smallest and largest value, as scalars on the device.

    Example:
        >>> [float(value) for value in moments(torch.tensor([3.0, -4.0]))]
        [-1.0, 5.0, -4.0, 3.0]
    """
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    low, high = torch.aminmax(tensor)
    norm = torch.linalg.vector_norm(tensor, dtype=wide)
    return [tensor.sum(dtype=wide), norm, low, high]


def loudness(tensor: Tensor, activation: Activation, unit_dim: int) -> Tensor:
    """Return a number for each unit that is above zero where the unit speaks for some example.

    Args:
        tensor: The output of the activation.
        activation: Which.
        unit_dim: The dimension of channels or features.

    Example:
        >>> outputs = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
        >>> loudness(outputs, ACTIVATIONS["relu"], -1).tolist()
        [0.0, 2.0]
    """
    others = [dim for dim in range(tensor.dim()) if dim != unit_dim % tensor.dim()]
    peak = tensor.amax(others) if others else tensor
    if activation.smooth:
        peak = torch.maximum(peak, -(tensor.amin(others) if others else tensor))
        peak = peak - _FAINT * peak.amax()
    return peak.float()


def saturated(values: Tensor, activation: Activation) -> Tensor:
    """Return how many of some outputs lie where the slope is next to zero, on the device.

    Example:
        >>> int(saturated(torch.tensor([-1.0, 0.5, 0.995]), ACTIVATIONS["tanh"]))
        2
    """
    if activation.low == -math.inf:
        return (values >= activation.high).sum()
    if activation.high == math.inf:
        return (values <= activation.low).sum()
    return ((values <= activation.low) | (values >= activation.high)).sum()


def histograms(samples: Sequence[Tensor], bins: int) -> Tensor:
    """Count values in bins that are narrow near zero and grow with the distance from it.

    The bins are equal in ``sign(x) * log1p(|x| / rms)``, for each sample with its own root mean
    square; values beyond the last bin count there, and those that are not finite nowhere. Nothing
    waits for the device.

    Args:
        samples: Vectors in single precision on one device, of about equal length.
        bins: Their number.

    Returns:
        A row for each: the root mean square of its finite values over its length, their smallest,
        largest and sum, and the number of values that are not finite, then its counts.

    Example:
        >>> rows = histograms([torch.tensor([-1.0, 1.0, 1.0, 1.0])], 4)
        >>> rows[0].tolist()
        [1.0, -1.0, 1.0, 2.0, 0.0, 0.0, 1.0, 3.0, 0.0]
    """
    # a row is filled up with what is not finite
    padded = torch.nn.utils.rnn.pad_sequence(
        list(samples), batch_first=True, padding_value=math.nan
    )
    lengths, starts = _layout(tuple(map(len, samples)), bins + 1, padded.device)
    low = padded.nan_to_num(math.inf, math.inf, math.inf).amin(1)
    high = padded.nan_to_num(-math.inf, -math.inf, -math.inf).amax(1)
    finite = padded.nan_to_num(0.0, 0.0, 0.0)
    total = finite.sum(1)
    rms = torch.linalg.vector_norm(finite, dim=1) / lengths.sqrt()
    tiny = torch.finfo(padded.dtype).tiny
    ratio = finite.abs().div_(rms.clamp_min(tiny).unsqueeze(1)).log1p_().copysign_(finite)
    place = ratio.mul_(bins / (2 * REACH)).add_(bins / 2 + 1).clamp_(1.0, bins + 0.5)
    # the first bin of a row takes what is not finite: minus itself that is no number
    place += finite.sub_(padded).mul_(0.0)
    index = place.nan_to_num_(0.0).to(torch.int32).add_(starts)
    counts = _counts(index.view(-1), len(samples) * (bins + 1)).view(len(samples), -1)
    counts[:, 0] += lengths - padded.size(1)
    return torch.cat([torch.stack([rms, low, high, total], dim=1), counts], dim=1)


@functools.lru_cache(maxsize=256)
def _layout(lengths: tuple[int, ...], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return lengths as numbers on the device, filled in there, and where each row's bins begin."""
    sizes = [torch.full((), float(length), device=device) for length in lengths]
    starts = torch.arange(0, len(lengths) * width, width, dtype=torch.int32, device=device)
    return torch.stack(sizes), starts.unsqueeze(1)


FACTS = 5
"""Numbers before the counts in a row of :func:`histograms`."""


@functools.cache
def edges(bins: int) -> tuple[float, ...]:
    """Return the edges of the bins, in root mean squares.

    Example:
        >>> [round(edge, 2) for edge in edges(4)]
        [-53.6, -6.39, 0.0, 6.39, 53.6]
    """
    places = [2 * REACH * k / bins - REACH for k in range(bins + 1)]
    return tuple(math.copysign(math.expm1(abs(place)), place) for place in places)


def _counts(index: Tensor, bins: int) -> Tensor:
    """Count how often each bin is named."""
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=bins).float()
    # `bincount` would wait for the device, to see how many bins there are
    counts = torch.zeros(bins, device=index.device)
    ones = torch.ones(1, device=index.device).expand(len(index))
    if not torch.are_deterministic_algorithms_enabled():
        return counts.scatter_add_(0, index.long(), ones)
    # sums of ones are the same in any order, though torch refuses this or sorts on a GPU there
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        return counts.scatter_add_(0, index.long(), ones)
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn)
