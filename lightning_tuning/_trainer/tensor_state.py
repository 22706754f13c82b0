"""Copies of tensors that are put back in place, on the device where there is room."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_STEP_FACTOR = 4
"""A step needs gradients and up to two optimizer moments per weight, besides the copy itself."""


class TensorState:
    """The contents of some tensors, to be written back in place, bit for bit.

    Copies stay on the tensors' own device if it has room for them and for a training step beside
    them, else they lie in host memory. Of a sharded tensor (FSDP2) the local shard is kept.

    Args:
        tensors: The tensors to remember.

    Example:
        >>> weight = torch.ones(2)
        >>> state = TensorState([weight])
        >>> _ = weight.zero_()
        >>> state.restore()
        >>> weight
        tensor([1., 1.])
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [t for t in {id(t): t for t in tensors}.values() if not _is_expanded(t)]
        local = [_local(tensor) for tensor in self._tensors]
        on_host = {device: not _has_room(device, local) for device in {t.device for t in local}}
        self._saved = [
            tensor.cpu() if on_host[tensor.device] else tensor.clone() for tensor in local
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the saved contents back into the same tensors."""
        local = [_local(tensor) for tensor in self._tensors]
        dense = [i for i, tensor in enumerate(local) if tensor.layout == torch.strided]
        if dense:
            torch._foreach_copy_([local[i] for i in dense], [self._saved[i] for i in dense])
        for i in set(range(len(local))).difference(dense):
            local[i].copy_(self._saved[i])


def _local(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DTensor):
        return tensor.to_local().detach()
    return tensor.detach()


def _is_expanded(tensor: Tensor) -> bool:
    """Whether entries share memory: torch lets nobody write to such a tensor in place."""
    return tensor.layout == torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _has_room(device: torch.device, tensors: list[Tensor]) -> bool:
    if device.type == "cpu":
        return True
    if device.type != "cuda":
        return False
    size = sum(t.numel() * t.element_size() for t in tensors if t.device == device)
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached > _STEP_FACTOR * size
