"""Many small tensors brought to the host at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


class OneTransfer:
    """Collects scalars and arrays of any type, and brings them to the host in one copy a device.

    Example:
        >>> transfer = OneTransfer()
        >>> one, two = transfer.put([torch.tensor(3)]), transfer.put_array(torch.tensor([0.5]))
        >>> scalars, arrays = transfer.fetch()
        >>> scalars[one], arrays[two].tolist()
        ([3.0], [0.5])
    """

    def __init__(self) -> None:
        self._scalars: list[Tensor] = []
        self._arrays: list[Tensor] = []

    def put(self, scalars: Sequence[Tensor]) -> slice:
        """Take tensors of no dimension; returns their places among the scalars."""
        start = len(self._scalars)
        self._scalars += scalars
        return slice(start, len(self._scalars))

    def put_array(self, tensor: Tensor) -> int:
        """Take a tensor of any shape; returns its place among the arrays."""
        self._arrays.append(tensor)
        return len(self._arrays) - 1

    def fetch(self) -> tuple[list[float], list[Array]]:
        """Return all scalars, and all arrays."""
        scalars: list[float] = [0.0] * len(self._scalars)
        arrays: list[Array] = [np.empty(0)] * len(self._arrays)
        for alike, others in self._by_device():
            # scalars first, those of one type in one stack
            stacks = [torch.stack([self._scalars[i] for i in places]) for places in alike]
            found = _on_host([*stacks, *(self._arrays[i] for i in others)])
            for places, values in zip(alike, found, strict=False):
                for place, value in zip(places, values.tolist(), strict=True):
                    scalars[place] = value
            for place, values in zip(others, found[len(alike) :], strict=True):
                arrays[place] = values.reshape(self._arrays[place].shape)
        return scalars, arrays

    def _by_device(self) -> list[tuple[list[list[int]], list[int]]]:
        """Return for each device the places of its scalars, by type, and of its arrays."""
        scalars: dict[torch.device, dict[torch.dtype, list[int]]] = defaultdict(dict)
        arrays: dict[torch.device, list[int]] = defaultdict(list)
        for place, scalar in enumerate(self._scalars):
            scalars[scalar.device].setdefault(scalar.dtype, []).append(place)
        for place, array in enumerate(self._arrays):
            arrays[array.device].append(place)
        return [
            (list(scalars[device].values()), arrays[device])
            for device in dict.fromkeys([*scalars, *arrays])
        ]


def _on_host(tensors: Sequence[Tensor]) -> list[Array]:
    """Return tensors of one device as vectors on the host."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.float32
    whole = torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    return np.split(whole, ends[:-1])
