"""Tensors in batches of any structure, batches of the first pass, examples drawn at random."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.probe import Probe


def leaves(data: Any, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of a batch and how a program would write its place.

    Example:
        >>> [path for path, _ in leaves({"x": torch.zeros(1), "more": (torch.ones(1), "a")})]
        ["batch['x']", "batch['more'][0]"]
    """
    if isinstance(data, Tensor):
        yield path, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(data, tuple) and hasattr(data, "_fields"):
        for name, value in zip(data._fields, data, strict=True):
            yield from leaves(value, f"{path}.{name}")
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from leaves(value, f"{path}[{index}]")
    elif dataclasses.is_dataclass(data) and not isinstance(data, type):
        for field in dataclasses.fields(data):
            yield from leaves(getattr(data, field.name), f"{path}.{field.name}")


def first_pass(probe: Probe, *, limit: int, seconds: float) -> Iterator[ProbeBatch]:
    """Yield the batches of the first pass, as far as time allows; take no steps meanwhile."""
    probe.rewind()
    ends = time.monotonic() + seconds
    one_pass = probe.box._batches.one_pass(epoch=probe.trainer.current_epoch)
    try:
        for batch in itertools.islice(one_pass, limit):
            if batch.data is not None:
                yield batch
            if time.monotonic() > ends:
                break
    finally:
        probe.rewind()


class RandomExamples:
    """Batches of examples drawn at random from the data set that the fit reads.

    Args:
        probe: The probe.

    Raises:
        CannotProbeError: There is not one data set whose examples can be read by number.
    """

    def __init__(self, probe: Probe) -> None:
        combined = probe.trainer.fit_loop._combined_loader
        loaders = [] if combined is None else combined.flattened
        loader = loaders[0] if len(loaders) == 1 else None
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise CannotProbeError("examples can't be drawn at random from the training data")
        self._dataset: Any = loader.dataset
        self._collate = loader.collate_fn
        self._size = loader.batch_size
        self._generator = torch.Generator().manual_seed(0)
        if self._size is None or not hasattr(self._dataset, "__len__"):
            raise CannotProbeError("the training data come as whole batches")

    def __len__(self) -> int:
        return len(self._dataset)

    def draw(self, count: int, *, among: int, seconds: float = 5.0) -> list[ProbeBatch]:
        """Return batches of the loader's size, without repetition as long as there are examples.

        Args:
            count: So many, fewer where the time is over.
            among: The first so many examples are drawn from.
            seconds: The time to stop after.
        """
        assert self._size is not None
        ends = time.monotonic() + seconds
        order: list[int] = []
        batches: list[ProbeBatch] = []
        while len(batches) < count and time.monotonic() < ends:
            while len(order) < self._size:
                order += torch.randperm(among, generator=self._generator).tolist()
            chosen, order = order[: self._size], order[self._size :]
            data = self._collate([self._dataset[i] for i in chosen])
            batches.append(ProbeBatch(data, len(batches), 0, False))
        return batches


def target_path(probe: Probe) -> str | None:
    """Return the place in the batch of what a loss function compares with, one value an example."""
    found: set[str] | None = None
    for batch in probe.batches(2):
        step = probe.step(batch, mode="silent")
        here = {
            path
            for path, leaf in leaves(batch.data)
            if leaf.dim() > 0 and leaf.numel() == leaf.size(0)
            for call in step.calls
            if call.trained and _same(leaf, call.target)
        }
        found = here if found is None else found & here
    return min(found, key=len) if found else None


def _same(leaf: Tensor, target: Tensor) -> bool:
    if leaf.numel() != target.numel():
        return False
    one, other = leaf.detach().flatten().double(), target.detach().flatten().cpu().double()
    with contextlib.suppress(RuntimeError):
        return bool(torch.allclose(one, other, rtol=1e-3))
    return False
