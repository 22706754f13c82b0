"""The update of an exponential moving average: one fused operation over many tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 2**24
"""Entries of low-precision weights that are converted at a time: 64 MiB in float32."""


def averaging_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which weights of ``dtype`` are averaged: float32 at least.

    bfloat16 has 8 bits: with a decay of 0.9999, an update of the average is rounded away.

    Example:
        >>> averaging_dtype(torch.bfloat16)
        torch.float32
    """
    small = dtype.is_floating_point and dtype.itemsize < 4
    return torch.float32 if small else dtype


@dataclasses.dataclass(frozen=True)
class AverageGroup:
    """Tensors of one device and precision, which one fused operation updates.

    Attributes:
        average: The averages.
        weights: The weights, in the same order and shapes.
        converted: Room for the weights in the averages' precision; empty where it is theirs.
    """

    average: list[Tensor]
    weights: list[Tensor]
    converted: list[Tensor]


def group_tensors(average: Sequence[Tensor], weights: Sequence[Tensor]) -> list[AverageGroup]:
    """Sort averages and their weights by device and precision.

    Low-precision weights come in chunks that share the room for their conversion, so that it takes
    64 MiB, or as much as the largest tensor, however large the model is.

    Args:
        average: The averages, each on the device of its weight.
        weights: The weights.

    Example:
        >>> weights = [torch.zeros(2), torch.zeros(3), torch.zeros(2, dtype=torch.float64)]
        >>> groups = group_tensors([w.clone() for w in weights], weights)
        >>> [len(group.weights) for group in groups]
        [2, 1]
    """
    places: dict[tuple[torch.device, torch.dtype, torch.dtype], list[int]] = {}
    for index, (ours, theirs) in enumerate(zip(average, weights, strict=True)):
        places.setdefault((ours.device, ours.dtype, theirs.dtype), []).append(index)
    groups = []
    for (_, dtype, weight_dtype), indices in places.items():
        group = AverageGroup([average[i] for i in indices], [weights[i] for i in indices], [])
        if dtype == weight_dtype:
            groups.append(group)
        else:
            groups += _converting_groups(group.average, group.weights)
    return groups


@torch.no_grad()
def update_average(groups: Sequence[AverageGroup], decay: float | Tensor) -> None:
    """Set each average to ``decay * average + (1 - decay) * weights``, in place.

    Nothing waits for the device.

    Args:
        groups: From :func:`group_tensors`.
        decay: From 0 to 1; a scalar tensor where only the device knows it.

    Example:
        >>> weights, average = [torch.ones(2)], [torch.zeros(2)]
        >>> update_average(group_tensors(average, weights), 0.75)
        >>> average
        [tensor([0.2500, 0.2500])]
    """
    for group in groups:
        source = group.weights
        if group.converted:
            torch._foreach_copy_(group.converted, group.weights)
            source = group.converted
        if isinstance(decay, Tensor):
            share = (1.0 - decay).to(group.average[0])
            torch._foreach_lerp_(group.average, source, [share] * len(source))
        else:
            torch._foreach_lerp_(group.average, source, 1.0 - decay)


def _converting_groups(average: list[Tensor], weights: list[Tensor]) -> list[AverageGroup]:
    chunks: list[list[int]] = [[]]
    size = largest = 0
    for index, tensor in enumerate(average):
        if size + tensor.numel() > _CHUNK and chunks[-1]:
            chunks.append([])
            size = 0
        chunks[-1].append(index)
        size += tensor.numel()
        largest = max(largest, size)
    room = torch.empty(largest, dtype=average[0].dtype, device=average[0].device)
    groups = []
    for chunk in chunks:
        ours = [average[i] for i in chunk]
        parts = torch.split(room[: sum(a.numel() for a in ours)], [a.numel() for a in ours])
        converted = [
            part.as_strided(a.size(), a.stride()) if _is_dense(a) else part.view(a.size())
            for part, a in zip(parts, ours, strict=True)
        ]
        groups.append(AverageGroup(ours, [weights[i] for i in chunk], converted))
    return groups


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries fill the memory between the first and the last without gaps."""
    return tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
