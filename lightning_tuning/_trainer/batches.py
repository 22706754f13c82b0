"""Batches for a probe, from loaders of their own, so that the fit's loaders stay untouched."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import LightningModule
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.utilities.combined_loader import (
    CombinedLoader,
    _shutdown_workers_and_reset_iterator,
)
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, IterableDataset

from lightning_tuning._trainer.errors import CannotProbeError


class ProbeBatch(NamedTuple):
    """A batch on the host, and where it stands."""

    data: Any
    position: int
    dataloader_idx: int
    is_last: bool


class ProbeBatches:
    """Passes over copies of a combined loader.

    The copies share data set, sampler and generator with the originals (whose states the sandbox
    puts back) but have iterators and workers of their own; workers live until :meth:`close`.

    Args:
        loader: The loaders that the fit uses.
        limit: At most so many batches of each loader in a pass; None for the fit's own limits.

    Raises:
        CannotProbeError: The data can be read only once.
    """

    def __init__(self, loader: CombinedLoader, *, limit: int | None = None) -> None:
        for dataloader in loader.flattened:
            _refuse_one_shot(dataloader)
        self._loader = copy.copy(loader)
        self._loader._iterator = None
        self._clones: list[DataLoader[Any]] = []
        self._loader.flattened = [self._clone(dataloader) for dataloader in loader.flattened]
        if limit is not None:
            own = loader.limits or [float("inf")] * len(loader.flattened)
            self._loader.limits = [min(limit, n) for n in own]
        self._fetcher = _PrefetchDataFetcher()
        self._fetcher.setup(self._loader)

    def one_pass(self, *, epoch: int) -> Iterator[ProbeBatch]:
        """Yield the batches of one pass; samplers are told ``epoch`` first.

        Raises:
            CannotProbeError: There is no batch.
        """
        for dataloader in self._loader.flattened:
            _set_sampler_epoch(dataloader, epoch)
        fetcher = iter(self._fetcher)
        empty = True
        while not self._fetcher.done:
            try:
                data, index, dataloader_idx = next(fetcher)
            except StopIteration:
                break
            empty = False
            yield ProbeBatch(data, index, dataloader_idx, self._fetcher.done)
        if empty:
            raise CannotProbeError("the data loader yields no batch")

    def reseed(self, number: int) -> None:
        """Give the data order, as far as generators of its own decide it, another random start."""
        for generator in self._generators():
            if isinstance(generator, torch.Generator):
                generator.manual_seed((generator.initial_seed() + number) % 2**63)
            elif isinstance(generator, np.random.Generator):
                other = type(generator.bit_generator)(number)
                generator.bit_generator.state = other.state
            else:
                generator.seed(number)

    def close(self) -> None:
        """Stop the workers and forget the iterators."""
        self._loader._iterator = None
        for clone in self._clones:
            _shutdown_workers_and_reset_iterator(clone)
        self._fetcher = _PrefetchDataFetcher()
        self._fetcher.setup(self._loader)

    def _generators(self) -> list[Any]:
        holders = [
            holder
            for clone in self._clones
            for batches in (clone, clone.sampler, clone.batch_sampler)
            for holder in (batches, getattr(batches, "sampler", None))
        ]
        found = [value for holder in holders for value in getattr(holder, "__dict__", {}).values()]
        kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
        return list({id(value): value for value in found if isinstance(value, kinds)}.values())

    def _clone(self, dataloader: Any) -> Any:
        if isinstance(dataloader, DataLoader):
            clone = copy.copy(dataloader)
            clone._iterator = None
            if clone.num_workers > 0:
                # DataLoader forbids setting this; workers that live on spare their start-up time
                vars(clone)["persistent_workers"] = True
            self._clones.append(clone)
            return clone
        attributes = getattr(dataloader, "__dict__", {})
        inner = {k: v for k, v in attributes.items() if isinstance(v, DataLoader)}
        if not inner:
            return dataloader
        # a loader around a loader: persistent workers of the inner one serve the fit already
        outer = copy.copy(dataloader)
        vars(outer).update({name: self._clone(value) for name, value in inner.items()})
        return outer


class KeptBatches:
    """Batches in memory, as a loader that reads the same each time."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for data in self.data:
            # a validation step may write to its batch
            yield apply_to_collection(data, torch.Tensor, torch.clone)

    def __len__(self) -> int:
        return len(self.data)


def data_holders(loops: Iterable[Any]) -> list[object]:
    """Return what holds the data of some loops: loaders, data modules, and all that they hold."""
    holders: list[object] = []
    for loop in loops:
        if not isinstance(loop._data_source.instance, LightningModule):
            holders.append(loop._data_source.instance)
        if loop._combined_loader is not None:
            holders += loop._combined_loader.flattened
    return holders


def _refuse_one_shot(dataloader: Any) -> None:
    _refuse_iterator(dataloader, "the data loader")
    for name in ("sampler", "batch_sampler"):
        _refuse_iterator(getattr(dataloader, name, None), f"the data loader's {name}")
    in_this_process = getattr(dataloader, "num_workers", 0) == 0
    pending = [getattr(dataloader, "dataset", None)]
    while pending:
        dataset = pending.pop()
        if not isinstance(dataset, IterableDataset):
            continue
        for name, value in vars(dataset).items():
            where = f"the attribute {name!r} of the data set {type(dataset).__name__}"
            # workers have iterators of their own, but share the place in an open file
            if in_this_process or isinstance(value, io.IOBase):
                _refuse_iterator(value, where)
            pending += value if isinstance(value, list | tuple) else [value]


def _refuse_iterator(value: object, where: str) -> None:
    if isinstance(value, Iterator) and not isinstance(value, IterableDataset):
        kind = type(value).__name__
        raise CannotProbeError(f"{where} is a {kind}, an iterator that can be read only once")
