"""Norms of weights, of what a step changes in them, and of gradients, on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

_NARROW = (torch.float16, torch.bfloat16)


def real_part_of(tensor: Tensor) -> Tensor:
    """Return a view of real numbers; of both parts where the tensor is complex."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the Euclidean norm of each, at least as precise as float32; a few kernels for all.

    Example:
        >>> [float(norm) for norm in norms([torch.tensor([3.0, 4.0]), torch.zeros(0)])]
        [5.0, 0.0]
    """
    found: list[Tensor] = [torch.empty(0)] * len(tensors)
    for places in _alike(tensors):
        group = [tensors[i] for i in places]
        dtype = torch.float32 if group[0].dtype in _NARROW else None
        for i, norm in zip(places, torch._foreach_norm(group, 2, dtype=dtype), strict=True):
            found[i] = norm
    return found


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a copy of each; a few kernels for all."""
    made = [torch.empty_like(tensor) for tensor in tensors]
    for places in _alike(tensors):
        torch._foreach_copy_([made[i] for i in places], [tensors[i] for i in places])
    return made


def subtract_(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Take the others away in place."""
    for places in _alike(tensors):
        torch._foreach_sub_([tensors[i] for i in places], [others[i] for i in places])


def stacked(scalars: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return one vector of float64 (float32 where the device has no more)."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if not scalars:
        return torch.zeros(0, dtype=dtype, device=device)
    if all(s.device == device and s.dtype == scalars[0].dtype for s in scalars):
        return torch.stack(list(scalars)).to(dtype)
    return torch.stack([s.to(device, dtype) for s in scalars])


def _alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the places of tensors that share device and dtype, which the fast kernels ask for."""
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault((tensor.device, tensor.dtype), []).append(i)
    return list(places.values())


@dataclasses.dataclass(kw_only=True, eq=False)
class RowsBefore:
    """The rows of an embedding that get a gradient in a step.

    Attributes:
        weights: Their weights before the step.
        counts: 1 for each of these rows that counts, else 0.
        rows: Their indices; None where all rows are kept.
    """

    weights: Tensor
    counts: Tensor
    rows: Tensor | None

    def norm(self) -> Tensor:
        """Return the norm of the weights."""
        norm: Tensor = torch.linalg.vector_norm(row_norms(self.weights) * self.counts)
        return norm

    def update_norm(self, now: Tensor) -> Tensor:
        """Return the norm of what has changed; the weights before are gone afterwards."""
        self.weights.sub_(now if self.rows is None else now.index_select(0, self.rows))
        return self.norm()


def row_norms(tensor: Tensor) -> Tensor:
    """Return the norm of each row.

    Example:
        >>> row_norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [5.0, 1.0]
    """
    dtype = torch.float32 if tensor.dtype in _NARROW else None
    norms_of_rows: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1, dtype=dtype)
    return norms_of_rows


def rows_before(weight: Tensor, gradient: Tensor) -> RowsBefore:
    """Copy the rows of a weight that have a gradient, dense or sparse."""
    if not gradient.is_sparse:
        of_rows = row_norms(gradient)
        return RowsBefore(
            weights=weight.clone(), counts=(of_rows != 0).to(of_rows.dtype), rows=None
        )
    rows, first, of_rows = sparse_rows(gradient)
    return RowsBefore(
        weights=weight.index_select(0, rows), counts=first.to(of_rows.dtype), rows=rows
    )


def sparse_rows(gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of a sparse gradient, which are the first of their kind, and their norms.

    How many rows repeat is known to the device alone, so each one is kept, and counts once:
    nothing waits for the device. Norms stand in the first places, and zeros behind them.
    """
    rows, order = gradient._indices()[0].sort()
    values = gradient._values()[order]
    first = torch.ones_like(rows, dtype=torch.bool)
    first[1:] = rows[1:] != rows[:-1]
    summed = torch.zeros_like(values).index_add_(0, first.cumsum(0) - 1, values)
    return rows, first, row_norms(summed)


def gradient_norms(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the norm of each gradient, dense or sparse."""
    dense = [i for i, gradient in enumerate(gradients) if not gradient.is_sparse]
    found = dict(zip(dense, norms([gradients[i] for i in dense]), strict=True))
    for i, gradient in enumerate(gradients):
        if gradient.is_sparse:
            found[i] = torch.linalg.vector_norm(sparse_rows(gradient)[-1])
    return [found[i] for i in range(len(gradients))]
