"""Weights that are spread over processes: the part that lies in this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

UNTRIED_STRATEGIES = ("DeepSpeedStrategy", "FSDPStrategy", "XLAStrategy", "XLAFSDPStrategy")
"""Strategies whose weights nobody here has tried to save and put back."""


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lies in this process, sharing its memory.

    A plain tensor is returned as it is.
    """
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def have_moved(tensors: Sequence[Tensor], parts: Sequence[Tensor]) -> bool:
    """Whether parts that were returned by :func:`local_part` are those of the tensors no more.

    FSDP2 may give a shard other memory in its first forward pass.
    """
    return any(
        isinstance(tensor, DTensor) and tensor._local_tensor.data_ptr() != part.data_ptr()
        for tensor, part in zip(tensors, parts, strict=True)
    )


def local_part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor.

    Args:
        whole: All entries, in each process.
        like: A tensor that is spread in the wanted way.
    """
    if not isinstance(like, DTensor):
        return whole
    whole = whole.to(like.device)
    spread = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return spread.to_local().detach()


def whole_tensor(part: Tensor, like: Tensor) -> Tensor:
    """Return all entries of a tensor on the host, given the parts; all processes must call it."""
    if not isinstance(like, DTensor):
        return part.detach().cpu()
    spread = DTensor.from_local(
        part.to(like.device),
        like.device_mesh,
        like.placements,
        shape=like.size(),
        stride=like.stride(),
    )
    return spread.full_tensor().detach().cpu()


def reshard(module: nn.Module) -> None:
    """Free the gathered weights that evaluation or an interrupted step of FSDP2 leaves behind.

    While they are there, what is written to a weight does not reach the one that counts.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether weights are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


@torch.no_grad()
def load_state(module: LightningModule, state: Mapping[str, Tensor]) -> None:
    """Write whole tensors from a file into the module."""
    if not is_sharded(module):
        module.load_state_dict(state, strict=module.strict_loading)
        return
    reshard(module)
    own = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    for name, tensor in own:
        if name in state:
            local_part(tensor).copy_(local_part_of(state[name], like=tensor))
