"""Averages of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def average_weights(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the plain average of several sets of weights, name by name.

    Half precisions are averaged in single precision. What is not a float, such as a count of
    batches, is that of the last member.

    Args:
        members: State dicts of the same names and shapes.

    Example:
        >>> average_weights([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}])
        {'w': tensor([2.])}
    """
    return {name: _average([member[name] for member in members]) for name in members[0]}


def _average(tensors: Sequence[Tensor]) -> Tensor:
    last = tensors[-1]
    if not (last.is_floating_point() or last.is_complex()):
        return last.clone()
    precise = torch.promote_types(last.dtype, torch.float32)
    return torch.stack([tensor.to(precise) for tensor in tensors]).mean(0).to(last.dtype)
