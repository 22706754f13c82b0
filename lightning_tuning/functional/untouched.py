"""Whether a layer still is as torch made it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_AFFINE = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_MANY = 64


@torch.no_grad()
def untouched(layer: nn.Module) -> bool | None:
    r"""Tell whether the weights of one layer look as if nobody had trained them.

    torch draws the weights and biases of linear, convolutional and recurrent layers uniformly from
    :math:`\pm 1/\sqrt{n}` (n inputs of a unit), biases written by hand are zero, embeddings are
    standard normal, and norms start at one and zero. Training leaves none of that in place.

    Args:
        layer: A module; only its own parameters are looked at, not those of its parts.

    Returns:
        None where that cannot be told.

    Example:
        >>> layer = nn.Linear(16, 16)
        >>> untouched(layer)
        True
        >>> with torch.no_grad():
        ...     _ = layer.weight.mul_(1.5), layer.bias.add_(0.1)
        >>> untouched(layer)
        False
    """
    if isinstance(layer, _AFFINE):
        weight = layer.weight
        bound = 1 / math.sqrt(max(nn.init._calculate_fan_in_and_fan_out(weight)[0], 1))
        if isinstance(layer.bias, Tensor):
            return _is_zero(layer.bias) or (
                _fills(layer.bias, bound) and (weight.numel() < _MANY or _fills(weight, bound))
            )
        return True if _fills(weight, bound) and weight.numel() >= _MANY else None
    if isinstance(layer, nn.RNNBase):
        bound = 1 / math.sqrt(layer.hidden_size)
        return all(_fills(p, bound) for p in layer.parameters())
    if isinstance(layer, _NORMS) and isinstance(layer.weight, Tensor):
        return bool((layer.weight == 1).all()) and _is_zero(layer.bias)
    if isinstance(layer, nn.Embedding):
        return _is_normal(layer.weight)
    return None


def _is_zero(tensor: Tensor | None) -> bool:
    return tensor is None or bool((tensor == 0).all())


def _fills(tensor: Tensor, bound: float) -> bool:
    """Whether values are uniform on an interval around zero, as far as their number tells."""
    values = tensor.detach().float().flatten()
    top = float(values.abs().max())
    if top > bound * (1 + 1e-3):
        return False
    if len(values) < _MANY:
        return True
    # mean square of the uniform distribution: a third; six standard errors around it
    error = 6 * math.sqrt(4 / 45 / len(values))
    return abs(float((values / bound).square().mean()) - 1 / 3) < error


def _is_normal(weight: Tensor) -> bool | None:
    values = weight.detach().float().flatten()
    if len(values) < _MANY:
        return None
    error = 6 * math.sqrt(2 / len(values))
    return abs(float(values.square().mean()) - 1) < error and abs(float(values.mean())) < error
