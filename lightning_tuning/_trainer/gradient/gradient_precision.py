"""A training program in double precision, and on a few examples."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_tuning._trainer.step_trace import Intercept
from lightning_tuning._trainer.uninterrupted import Uninterrupted

_ROOM = 4
"""Double copies, their gradients and the activations need so many times the weights' memory."""


@contextlib.contextmanager
def in_double(module: LightningModule) -> Iterator[None]:
    """Let a module and all tensors it holds be float64 meanwhile; the old memory is put back."""
    default = torch.get_default_dtype()
    kept = [(t, t.data, t.grad) for t in _held_tensors(module)]
    try:
        for tensor, data, _ in kept:
            tensor.grad = None
            tensor.data = doubled(data)
        torch.set_default_dtype(torch.float64)
        yield
    finally:
        with Uninterrupted():
            torch.set_default_dtype(default)
            for tensor, data, grad in kept:
                tensor.grad = None
                tensor.data = data
                tensor.grad = grad


def float_means_double() -> Intercept:
    """Return what lets a program that says ``.float()`` or ``dtype=torch.float32`` say double.

    Example:
        >>> with float_means_double():
        ...     torch.ones(2, dtype=torch.float32).dtype, torch.tensor([1]).float().dtype
        (torch.float64, torch.float64)
    """
    return Intercept(_in_double_precision)


def _in_double_precision(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    if func in _TO_LESS:
        return args[0].to(torch.float64)
    less = [torch.float64 if _is_less(value) else value for value in args]
    named = {k: torch.float64 if _is_less(v) else v for k, v in kwargs.items()}
    return func(*less, **named)


_TO_LESS = (Tensor.float, Tensor.half, Tensor.bfloat16)


def _is_less(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value.is_floating_point


def has_room(module: LightningModule) -> bool:
    """Whether the memory suffices for a double copy of a module and a training step on it."""
    needed: dict[torch.device, int] = {}
    for tensor in _held_tensors(module):
        needed[tensor.device] = needed.get(tensor.device, 0) + 8 * tensor.numel()
    return all(_ROOM * size < _free(device) for device, size in needed.items())


def doubled(value: Any) -> Any:
    """Return a tensor of floats in double precision; anything else as it is."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    dtype = torch.complex128 if value.is_complex() else torch.float64
    return value.to(dtype, copy=True, memory_format=torch.contiguous_format)


def in_batch(data: Any, *, double: bool) -> Any:
    """Return a copy of a batch, in double precision if told so.

    Example:
        >>> in_batch({"x": torch.ones(1), "y": [torch.ones(1).long()]}, double=True)
        {'x': tensor([1.], dtype=torch.float64), 'y': [tensor([1])]}
    """

    def copied(value: Tensor) -> Tensor:
        return doubled(value) if double and value.is_floating_point() else value.clone()

    return apply_to_collection(data, Tensor, copied)


def first_examples(data: Any, count: int) -> Any | None:
    """Return the first examples of a batch; None where it has no size that can be cut.

    Whatever is as long as the first tensor is long is cut: tensors, and lists of other things.

    Example:
        >>> batch = {"x": torch.zeros(8, 3), "names": list("abcdefgh"), "scale": torch.ones(3)}
        >>> cut = first_examples(batch, 2)
        >>> cut["x"].shape, cut["names"], cut["scale"].shape
        (torch.Size([2, 3]), ['a', 'b'], torch.Size([3]))
    """
    sizes = [leaf.shape[0] for leaf in tree_leaves(data) if isinstance(leaf, Tensor) and leaf.dim()]
    if not sizes or sizes[0] <= count:
        return None
    return _cut(data, sizes[0], count)


def _cut(value: Any, size: int, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[:count] if value.dim() and value.shape[0] == size else value
    if isinstance(value, dict):
        return type(value)((k, _cut(v, size, count)) for k, v in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cut(v, size, count) for v in value))
    if isinstance(value, list | tuple):
        if len(value) == size and not any(isinstance(v, Tensor) and v.dim() for v in value):
            return value[:count]
        return type(value)(_cut(v, size, count) for v in value)
    return value


def _held_tensors(module: nn.Module) -> list[Tensor]:
    """Return parameters, buffers, and the tensors in plain attributes, each once."""
    found = [*module.parameters(), *module.buffers()]
    for part in module.modules():
        found += [leaf for leaf in tree_leaves(dict(vars(part))) if isinstance(leaf, Tensor)]
    return list(
        {
            id(t): t
            for t in found
            if (t.is_floating_point() or t.is_complex())
            and not t.is_inference()
            and t.layout == torch.strided
        }.values()
    )


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return 0.0  # other accelerators have no double precision
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")
