"""Which weights are lost."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_tuning._trainer.shards import local_part


@torch.no_grad()
def broken_weights(trainer: Trainer, module: LightningModule) -> tuple[str, ...]:
    """Return the names of weights that are not finite; all ranks must call it.

    It waits for the device, and is asked only once the loss is not finite.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.is_floating_point()]
    if not named:
        return ()
    norms = torch._foreach_norm([local_part(p.detach()) for _, p in named], 2)
    values = torch.stack([norm.float().cpu() for norm in norms]).to(module.device)
    if trainer.world_size > 1:
        values = trainer.strategy.reduce(values, reduce_op="sum")
    finite = values.isfinite().tolist()
    return tuple(name for (name, _), is_so in zip(named, finite, strict=True) if not is_so)
