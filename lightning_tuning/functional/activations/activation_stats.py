"""What a monitor computes of a tensor on its device, without waiting for it.

Source: CS231n, *Neural Networks Part 2 and 3* (activation and gradient distributions per layer).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

SAMPLE = 2048
"""At most so many values of a tensor go into its histogram; more would not show."""
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
