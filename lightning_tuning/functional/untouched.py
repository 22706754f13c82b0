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
_LEAST, _PART = 4, 256
_ERRORS = 4.5
"""Standard errors that a random table keeps within."""
_EDGE = 1.08
"""Random tables of 256 numbers and more stay below 1.07 of the edge, trained ones leave it soon."""


@torch.no_grad()
def untouched(layer: nn.Module) -> bool | None:
    r"""Tell whether the weights of one layer look as if nobody had trained them.

    torch draws the weights and biases of linear, convolutional and recurrent layers uniformly from
    :math:`\pm 1/\sqrt{n}` (n inputs of a unit), biases written by hand are zero, embeddings are
    standard normal, and norms start at one and zero. Training leaves none of that in place.
    Embeddings are often drawn anew at another scale: then they are as independent as before, and
    their largest singular value is :math:`\sigma(\sqrt{m} + \sqrt{n})` (Marchenko and Pastur),
    while each step that trains them adds a direction.

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
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return _is_normal(layer.weight) or _is_drawn(layer.weight)
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


def _is_drawn(weight: Tensor) -> bool | None:
    """Whether a table holds independent normal or uniform values of any scale around zero."""
    rows, columns = (_PART if size > _PART else size for size in weight.shape)
    if min(rows, columns) < _LEAST or rows * columns < 4 * _MANY:
        return None
    # a part of independent values is independent too
    values = weight.detach()[:rows, :columns].double()
    values = values[values.square().sum(1) > 0]  # a row for padding is zero
    scale = values.square().mean().sqrt()
    if not scale > 0:
        return False
    scaled, number = values / scale, values.numel()
    excess = (float(scaled.pow(4).mean()) - 3) * math.sqrt(number / 24)
    uniform = abs(float(scaled.pow(4).mean()) - 1.8) * math.sqrt(number / 24)
    edge = math.sqrt(len(values)) + math.sqrt(columns)
    return (
        abs(float(scaled.mean())) * math.sqrt(number) < _ERRORS
        and (abs(excess) < _ERRORS or uniform < 1.5)
        and float(torch.linalg.svdvals(scaled)[0]) < _EDGE * edge
    )


def _is_normal(weight: Tensor) -> bool | None:
    values = weight.detach().float().flatten()
    if len(values) < _MANY:
        return None
    error = 6 * math.sqrt(2 / len(values))
    return abs(float(values.square().mean()) - 1) < error and abs(float(values.mean())) < error
