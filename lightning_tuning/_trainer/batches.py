"""Batches for a probe, from loaders of their own, so that the fit's loaders stay untouched."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.utilities.combined_loader import CombinedLoader
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
        self._loader.flattened = [_clone(dataloader) for dataloader in loader.flattened]
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

    def generators(self) -> list[torch.Generator]:
        """Return the generators that the data order is drawn from, besides torch's global one."""
        holders = [
            holder
            for dataloader in self._loader.flattened
            for holder in (dataloader, getattr(dataloader, "sampler", None))
        ]
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def close(self) -> None:
        """Stop the workers and forget the iterators."""
        self._fetcher.teardown()


class KeptBatches:
    """Batches in memory, as a loader that reads the same each time."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def data_holders(loaders: Iterable[CombinedLoader | None]) -> list[object]:
    """Return what holds state about data: loaders, data sets, samplers, generators."""
    return [dl for loader in loaders if loader is not None for dl in loader.flattened]


def _clone(dataloader: Any) -> Any:
    if not isinstance(dataloader, DataLoader):
        return dataloader
    clone = copy.copy(dataloader)
    clone._iterator = None
    if clone.num_workers > 0:
        # DataLoader forbids setting this attribute; workers that live on spare their start-up time
        vars(clone)["persistent_workers"] = True
    return clone


def _refuse_one_shot(dataloader: Any) -> None:
    if isinstance(dataloader, Iterator):
        raise CannotProbeError(f"the loader {type(dataloader).__name__} can be read only once")
    dataset = getattr(dataloader, "dataset", None)
    in_this_process = getattr(dataloader, "num_workers", 0) == 0
    if isinstance(dataset, IterableDataset) and in_this_process:
        for name, value in vars(dataset).items():
            if isinstance(value, Iterator | io.IOBase):
                raise CannotProbeError(
                    f"the data set {type(dataset).__name__} reads from an iterator "
                    f"(its attribute {name!r}) that can be read only once"
                )
