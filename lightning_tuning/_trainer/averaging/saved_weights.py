"""The two sets of weights that a checkpoint holds, and how they come into a module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_tuning._trainer.averaging.two_sets import TwoSets, named_sets
from lightning_tuning._trainer.shards import is_sharded, load_state, local_part, local_part_of
from lightning_tuning.functional.checkpoint_weights import ENTRIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds for one callback.

    Attributes:
        averaged: The averaged weights; empty if Lightning has loaded them from shards.
        raw: The raw weights; None if it holds one set alone.
        tracks: Steps and the like, for each optimizer; None if there was no average.
        average: Averages in a precision of their own, or of a callback that does not judge.
    """

    averaged: Mapping[str, Any]
    raw: Mapping[str, Any] | None
    tracks: list[dict[str, Any]] | None
    average: dict[str, Tensor]

    @property
    def entry(self) -> dict[str, Any]:
        """What a checkpoint must hold for the same resume."""
        return {"tracks": self.tracks, "average": self.average}


def saved_in(checkpoint: Mapping[str, Any], place: int) -> Saved:
    """Return what a checkpoint holds for the callback at a place among those of its class."""
    entries = checkpoint.get(ENTRIES, [])
    averaged, raw = checkpoint.get("state_dict", {}), checkpoint.get("current_model_state")
    if place < len(entries):
        entry = entries[place]
        return Saved(averaged=averaged, raw=raw, tracks=entry["tracks"], average=entry["average"])
    tracks = None
    if place == 0 and "averaging_state" in checkpoint:
        # one of Lightning's own callbacks made it
        updates = int(checkpoint["averaging_state"]["n_averaged"])
        since = updates - 1 if updates else None
        steps = checkpoint.get("global_step", updates)
        tracks = [{"steps": steps, "since": since, "skipped": 0, "retained": 1.0, "batches": 0}]
    return Saved(averaged=averaged, raw=raw, tracks=tracks, average={})


class LoadedWeights:
    """Both sets of a checkpoint whose averaged weights Lightning has loaded into a module.

    Args:
        module: The module. If this callback judges, it holds the raw weights afterwards.
        saved: What the checkpoint holds.
        judges: Whether the module is judged by this average.

    Attributes:
        saved: What the checkpoint holds.
        averages: The averages by path; local parts of sharded ones.
    """

    def __init__(self, module: LightningModule, saved: Saved, *, judges: bool) -> None:
        self.saved = saved
        self._module = module
        own = _tensors(module)
        self._dtypes = {name: tensor.dtype for name, tensor in own.items()}
        self.averages = _averages(own, saved.averaged) if judges else {}
        self.averages |= {
            name: local_part_of(value, like=own[name])
            for name, value in saved.average.items()
            if name in own
        }
        if judges and saved.raw is not None:
            load_state(module, saved.raw)

    def sets(self) -> TwoSets:
        """Return both sets, as the module holds the raw one."""
        return named_sets(self._module, own="raw", others=self.averages)

    @torch.no_grad()
    def load_raw_once_more(self) -> None:
        """Load what was rounded because the module had another precision then."""
        if is_sharded(self._module):
            return
        for name, tensor in _tensors(self._module).items():
            value = (self.saved.raw or {}).get(name)
            if value is not None and value.dtype == tensor.dtype != self._dtypes.get(name):
                tensor.copy_(value)


def raw_beside(module: LightningModule, saved: Saved) -> TwoSets | None:
    """Return both sets, as the module holds the averaged one; None if the checkpoint has but one.

    All processes must call it.
    """
    own = _tensors(module)
    raw = {
        name: local_part_of(value, like=own[name]).to(own[name].dtype)
        for name, value in (saved.raw or {}).items()
        if name in own
    }
    return named_sets(module, own="ema", others=raw) if raw else None


def _tensors(module: LightningModule) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _averages(own: Mapping[str, Tensor], averaged: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the averages from the file, which may be more precise, or else from the module."""
    averages: dict[str, Tensor] = {}
    for name, tensor in own.items():
        value, local = averaged.get(name), local_part(tensor)
        if isinstance(value, Tensor) and local is tensor and _loaded(tensor, value):
            averages[name] = value
        else:
            averages[name] = local.detach().clone()
    return averages


def _loaded(tensor: Tensor, value: Tensor) -> bool:
    """Whether a tensor holds a value of a file, and not something that the module made of it."""
    value = value.to(tensor.device, tensor.dtype)
    return value.shape == tensor.shape and torch.equal(value, tensor.detach())
