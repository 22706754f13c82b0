"""A few examples of the training data, of which single ones can be replaced by others."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.probe import Probe

_SIZES = (7, 11, 6, 13, 5, 4, 3, 2)
_TRIED_DONORS = 64


def leaves(data: Any) -> list[Tensor]:
    """Return the tensors of a batch, in a fixed order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    apply_to_collection(data, Tensor, keep)
    return found


def with_leaves(data: Any, tensors: Iterable[Tensor]) -> Any:
    """Return the batch with other tensors, in the order of :func:`leaves`."""
    given = iter(tensors)
    return apply_to_collection(data, Tensor, lambda _: next(given))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """The first examples of a batch, and others that may stand in for them.

    Attributes:
        batch: The batch.
        dims: The dimension of each leaf that counts examples; None where there is none.
        size: How many examples the batch has.
        others: Other examples: the leaves of a batch, and a row in them.
    """

    batch: ProbeBatch
    dims: tuple[int | None, ...]
    size: int
    others: tuple[tuple[tuple[Tensor, ...], int], ...]

    def cut(self, size: int) -> Examples:
        """Return the first examples alone."""
        tensors = [
            leaf if dim is None else leaf.narrow(dim, 0, size)
            for leaf, dim in zip(leaves(self.batch.data), self.dims, strict=True)
        ]
        batch = self.batch._replace(data=with_leaves(self.batch.data, tensors))
        return dataclasses.replace(self, batch=batch, size=size)

    def sizes(self) -> tuple[int, ...]:
        """Return numbers of examples that nothing else in the batch is a multiple of one or two of.

        A dimension of the program's tensors can then be told by its size.
        """
        taken = {
            size
            for leaf, own in zip(leaves(self.batch.data), self.dims, strict=True)
            for dim, size in enumerate(leaf.shape)
            if dim != own
        }
        fitting = [n for n in _SIZES if n <= self.size]
        return tuple(n for n in fitting if not {n, 2 * n} & taken) or tuple(fitting[-1:])

    def replaced(self, row: int) -> ProbeBatch | None:
        """Return the batch with one example replaced by one that differs in most of its leaves.

        None where all others are the same.
        """
        own = leaves(self.batch.data)
        draw = random.Random(row)
        tried = draw.sample(self.others, min(_TRIED_DONORS, len(self.others)))
        best = max(tried, key=lambda other: self._differences(own, row, other), default=None)
        if best is None or self._differences(own, row, best) == 0:
            return None
        return self._with_donor(row, best)

    def doubled(self, row: int, other: int) -> ProbeBatch:
        """Return the batch with one example replaced by another one of the batch."""
        return self._with_donor(row, (tuple(leaves(self.batch.data)), other % self.size))

    def renewed(self, which: Collection[int]) -> ProbeBatch:
        """Return the batch with all examples replaced by others, in some leaves only.

        Args:
            which: The numbers of the leaves.
        """
        tensors = leaves(self.batch.data)
        donors = [self.others[(self.size + i) % len(self.others)] for i in range(self.size)]
        for i in which:
            dim = self.dims[i]
            if dim is not None:
                tensors[i] = torch.stack([t[i].select(dim, row) for t, row in donors], dim)
        return self.batch._replace(data=with_leaves(self.batch.data, tensors))

    def constant(self, which: int) -> bool:
        """Whether a leaf is the same for all examples of each batch that was read."""
        dim = self.dims[which]
        tensors = list({id(t[which]): t[which] for t, _ in self.others}.values())
        return dim is not None and all(_same(t, t.narrow(dim, 0, 1)) for t in tensors)

    def with_noise(self, which: int) -> ProbeBatch | None:
        """Return the batch with noise on one leaf; None for integers, which may be indices."""
        tensors = leaves(self.batch.data)
        leaf = tensors[which]
        if leaf.is_floating_point():
            noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0))
            tensors[which] = leaf + noise.to(leaf)
        elif leaf.dtype == torch.uint8:
            drawn = torch.rand(leaf.shape, generator=torch.Generator().manual_seed(0))
            tensors[which] = torch.where(leaf > 127, leaf - (drawn * 99).byte(), leaf + 1)
        else:
            return None
        return self.batch._replace(data=with_leaves(self.batch.data, tensors))

    def _with_donor(self, row: int, donor: tuple[tuple[Tensor, ...], int]) -> ProbeBatch:
        tensors = [
            leaf if dim is None else _with_row(leaf, dim, row, theirs.select(dim, donor[1]))
            for leaf, dim, theirs in zip(leaves(self.batch.data), self.dims, donor[0], strict=True)
        ]
        return self.batch._replace(data=with_leaves(self.batch.data, tensors))

    def _differences(
        self, own: Sequence[Tensor], row: int, other: tuple[tuple[Tensor, ...], int]
    ) -> int:
        tensors, donor = other
        return sum(
            not _same(leaf.select(dim, row), tensor.select(dim, donor))
            for leaf, dim, tensor in zip(own, self.dims, tensors, strict=True)
            if dim is not None
        )


def take_examples(probe: Probe, *, num_batches: int = 4) -> Examples:
    """Return the examples of the first batch.

    Raises:
        CannotProbeError: Which of the batch's dimensions counts examples is not known, or there is
            but one example.
    """
    batches = [b for b in probe.batches(num_batches) if leaves(b.data)]
    if not batches:
        raise CannotProbeError("a batch has no tensors")
    first = batches[0]
    own = leaves(first.data)
    sizes = _batch_sizes(probe, own)
    alike = [tuple(leaves(b.data)) for b in batches if not b.is_last or b is first]
    alike = [tensors for tensors in alike if len(tensors) == len(own)]
    dims = tuple(_example_dim([tensors[i] for tensors in alike], sizes) for i in range(len(own)))
    counts = [leaf.size(dim) for leaf, dim in zip(own, dims, strict=True) if dim is not None]
    if not counts:
        raise CannotProbeError("no tensor of a batch has an entry for each example")
    if min(counts) < 2:
        raise CannotProbeError("a batch has but one example")
    others = tuple(
        (tensors, row)
        for tensors in alike
        if all(
            dim is None or _rest(mine, dim) == _rest(leaf, dim)
            for mine, leaf, dim in zip(own, tensors, dims, strict=True)
        )
        for row in range(
            min(leaf.size(dim) for leaf, dim in zip(tensors, dims, strict=True) if dim is not None)
        )
    )
    return Examples(batch=first, dims=dims, size=min(counts), others=others)


def _batch_sizes(probe: Probe, own: Sequence[Tensor]) -> set[int]:
    """Return how many examples the loaders put into a batch."""
    combined = probe.trainer.fit_loop._combined_loader
    assert combined is not None
    sizes: set[int] = set()
    for loader in combined.flattened:
        if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
            raise CannotProbeError("the loader does not say how many examples make a batch")
        size = getattr(loader.batch_sampler, "batch_size", None)
        if isinstance(size, int):
            data = loader.dataset
            sizes.add(min(size, len(data)) if hasattr(data, "__len__") else size)
        else:  # batches of different sizes
            lengths = {leaf.size(0) for leaf in own if leaf.dim()}
            if len(lengths) != 1:
                raise CannotProbeError("the loader does not say how many examples make a batch")
            sizes |= lengths
    return sizes


def _example_dim(versions: Sequence[Tensor], sizes: set[int]) -> int | None:
    """Return the dimension of a leaf that has an entry for each example in all batches."""
    if any(v.layout != torch.strided or v.dim() != versions[0].dim() for v in versions):
        return None
    fitting = [
        dim for dim in range(versions[0].dim()) if all(v.size(dim) in sizes for v in versions)
    ]
    if 0 in fitting:
        return 0
    return fitting[0] if len(fitting) == 1 else None


def _rest(tensor: Tensor, dim: int) -> tuple[int, ...]:
    return (*tensor.shape[:dim], *tensor.shape[dim + 1 :])


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _with_row(leaf: Tensor, dim: int, row: int, value: Tensor) -> Tensor:
    result = leaf.clone()
    result.select(dim, row).copy_(value)
    return result
