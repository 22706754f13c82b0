"""Many small tensors brought to the host at once."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor


class OneTransfer:
    """Collects tensors of any shape and type, and brings them to the host in one copy a device.

    Example:
        >>> transfer = OneTransfer()
        >>> one, two = transfer.put(torch.tensor(3)), transfer.put(torch.tensor([0.5, 1.5]))
        >>> values = transfer.fetch()
        >>> values[one], values[two]
        ([3.0], [0.5, 1.5])
    """

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def put(self, tensor: Tensor) -> int:
        """Take a tensor; returns its place in what :meth:`fetch` returns."""
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def fetch(self) -> list[list[float]]:
        """Return all numbers, tensor by tensor."""
        kinds: dict[torch.device, dict[torch.dtype | int, list[int]]] = defaultdict(dict)
        for place, tensor in enumerate(self._tensors):
            kind = tensor.dtype if tensor.dim() == 0 else place
            kinds[tensor.device].setdefault(kind, []).append(place)
        result: list[list[float]] = [[] for _ in self._tensors]
        for groups in kinds.values():
            parts = [self._vector(kind, places) for kind, places in groups.items()]
            wide = any(part.dtype == torch.float64 for part in parts)
            dtype = torch.float64 if wide else torch.float32
            numbers = torch.cat([part.to(dtype) for part in parts]).tolist()
            start = 0
            for places in groups.values():
                for place in places:
                    count = self._tensors[place].numel()
                    result[place] = numbers[start : start + count]
                    start += count
        return result

    def _vector(self, kind: torch.dtype | int, places: list[int]) -> Tensor:
        if isinstance(kind, int):
            return self._tensors[kind].reshape(-1)
        return torch.stack([self._tensors[place] for place in places])
