"""Copies of tensors that are put back in place, on the device where there is room."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_tuning._trainer.shards import local_part

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
        self._tensors = list({id(t): t for t in tensors}.values())
        local = [_local(tensor) for tensor in self._tensors]
        on_host = {device: not _has_room(device, local) for device in {t.device for t in local}}
        self._saved = [
            (t.to("cpu", copy=True) if on_host[t.device] else t.clone()).detach() for t in local
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the saved contents back into the same tensors."""
        plain: tuple[list[Tensor], list[Tensor]] = ([], [])
        for tensor, saved in zip(map(_local, self._tensors), self._saved, strict=True):
            if tensor.is_inference():
                with torch.inference_mode():
                    tensor.copy_(saved)
            elif type(tensor) is Tensor and tensor.layout == torch.strided:
                plain[0].append(tensor)
                plain[1].append(saved)
            else:
                tensor.copy_(saved)
        if plain[0]:
            torch._foreach_copy_(*plain)


def _local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lies in this process, each entry once."""
    if tensor.layout != torch.strided:
        # what is detached from a sparse tensor shares its entries, but not its places
        return tensor
    tensor = local_part(tensor).detach()
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            # torch lets nobody write to an expanded tensor in place
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _has_room(device: torch.device, tensors: list[Tensor]) -> bool:
    if device.type == "cpu":
        return True
    if device.type != "cuda":
        return False
    size = sum(t.numel() * t.element_size() for t in tensors if t.device == device)
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached > _STEP_FACTOR * size
