"""Processes that were started together, before a trainer knows of them."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist


class Ranks:
    """Lets rank zero decide for all, where several processes run the same script.

    They are known by the variables that ``torchrun`` and Lightning's launcher set. The group that
    it makes is the one that a trainer then uses.
    """

    def __init__(self) -> None:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
        self._several = world > 1
        self._group: Any = None
        if self._several:
            if not dist.is_initialized():
                dist.init_process_group("gloo", rank=self.rank, world_size=world)
            self._group = dist.new_group(backend="gloo")

    @property
    def decides(self) -> bool:
        """Whether this is the process that decides."""
        return self.rank == 0

    def agreed(self, decision: Any) -> Any:
        """Return what rank zero has decided; others give anything."""
        if not self._several:
            return decision
        box = [decision]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]
