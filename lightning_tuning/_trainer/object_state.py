"""The plain Python state of a program: lists, counters, generators, metrics' tensors.

A training step changes more than weights: a module appends to ``self.outputs``, a torchmetrics
metric counts in attributes that are in no ``state_dict``, a data set draws from a generator of its
own. :class:`ObjectState` walks from some objects through everything they hold, remembers the
contents of each mutable thing, and writes them back **in place**, so that whoever else holds it
sees it restored.
"""

from __future__ import annotations

import array
import collections
import functools
import io
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.tensor_state import TensorState
from lightning_tuning._trainer.undo import (
    UndoSlots,
    slots,
    undo_array,
    undo_bytes,
    undo_dict,
    undo_generator,
    undo_sequence,
    undo_set,
)

# Types of these packages are left alone: their objects are shared machinery (a trainer, a thread, a
# compiled graph, an image, a table), not the state of one training program.
_FOREIGN = {
    *("PIL", "asyncio", "builtins", "concurrent", "datasets", "h5py", "io", "lightning"),
    *("lightning_fabric", "lightning_utilities", "logging", "matplotlib", "multiprocessing"),
    *("numpy", "pandas", "polars", "pyarrow", "pytorch_lightning", "queue", "re", "tensorboard"),
    *("threading", "types", "weakref", "_thread", "_io"),
}
_TORCH_PARTS = (
    *("torch.nn", "torch.optim", "torch.utils.data", "torch.ao", "torch.quasirandom"),
    "torch.distributed.algorithms",  # the states of DDP's communication hooks
)
_PLAIN = (str, bytes, int, float, complex, type)
_DATA = (torch.utils.data.Dataset, torch.utils.data.DataLoader, torch.utils.data.Sampler)
_LONG = 10_000
"""Containers longer than this are remembered, but what they hold is not walked through."""
_SMALL = 2**20
_SMALL_ALTOGETHER = 2**26
"""Bytes of an array of data, and of all of them, up to which they are copied nevertheless."""


class ObjectState:
    """Contents of all plain mutable objects that can be reached from some roots.

    Tensors and arrays are remembered too, but not the large ones that a data set, loader or sampler
    holds: reading examples does not change them. Parameters, buffers and whatever else is in
    ``skip`` are never copied, nor walked through.

    Args:
        roots: Where the walk starts.
        data: Where it starts for data.
        skip: Objects that are somebody else's business.

    Raises:
        CannotProbeError: A root holds an iterator, which nobody can rewind.

    Example:
        >>> counts = {"steps": [1]}
        >>> state = ObjectState([counts])
        >>> counts["steps"].append(2)
        >>> state.restore()
        >>> counts
        {'steps': [1]}
    """

    def __init__(
        self,
        roots: Iterable[object],
        *,
        data: Iterable[object] = (),
        skip: Iterable[object] = (),
    ) -> None:
        # holding the objects keeps their ids from being given to others
        self._seen: dict[int, object] = {id(obj): obj for obj in skip}
        self._undo: list[Callable[[], None]] = []
        self._small_left = _SMALL_ALTOGETHER
        tensors: list[torch.Tensor] = []
        self._walk(data, tensors, is_data=True)
        self._walk(roots, tensors, is_data=False)
        self._tensors = TensorState(tensors)

    def restore(self) -> None:
        """Write everything back; may be called again after further changes."""
        for undo in self._undo:
            undo()
        self._tensors.restore()

    def _walk(self, roots: Iterable[object], tensors: list[torch.Tensor], *, is_data: bool) -> None:
        pending = list(roots)
        while pending:
            obj = pending.pop()
            if obj is None or isinstance(obj, _PLAIN) or id(obj) in self._seen:
                continue
            if not is_data and isinstance(obj, _DATA):
                self._walk([obj], tensors, is_data=True)
                continue
            self._seen[id(obj)] = obj
            if isinstance(obj, torch.Tensor | np.ndarray):
                if is_data and not self._is_small(obj):
                    continue
                if isinstance(obj, torch.Tensor):
                    tensors.append(obj)
                elif obj.flags.writeable:
                    self._undo.append(undo_array(obj))
            elif (undo := undo_generator(obj)) is not None:
                self._undo.append(undo)
            else:
                held = self._remember_container(obj)
                if not is_data:
                    _refuse_iterators(obj, held)
                pending.extend(held)

    def _is_small(self, obj: torch.Tensor | np.ndarray[Any, Any]) -> bool:
        """Whether an array of data is a counter, a table of weights, not the data itself."""
        if obj.nbytes > min(_SMALL, self._small_left):
            return False
        self._small_left -= obj.nbytes
        return True

    def _remember_container(self, obj: Any) -> list[Any]:
        """Remember what a container and an object's attributes hold, and return that."""
        held = self._remember_items(obj)
        kind = type(obj)
        if _is_foreign(kind):
            return held
        attributes = getattr(obj, "__dict__", None)
        if isinstance(attributes, dict):
            self._undo.append(undo_dict(attributes))
            # the iterator of a loader is the fit's own, and under way
            own = isinstance(obj, torch.utils.data.DataLoader)
            held += _short([v for k, v in attributes.items() if not (own and k == "_iterator")])
        if members := slots(kind):
            self._undo.append(undo := UndoSlots(obj, members))
            held += undo.values.values()
        return held

    def _remember_items(self, obj: Any) -> list[Any]:
        if isinstance(obj, dict):
            self._undo.append(undo_dict(obj))
            return _short(obj.values())
        if isinstance(obj, list | collections.deque):
            self._undo.append(undo_sequence(obj))
            return _short(obj)
        if isinstance(obj, set):
            self._undo.append(undo_set(obj))
            return _short(obj)
        if isinstance(obj, bytearray | array.array):
            self._undo.append(undo_bytes(obj))
            return []
        return _held_by_constant(obj)


def _is_foreign(kind: type) -> bool:
    if issubclass(kind, torch.nn.Module | torch.amp.GradScaler):
        return False
    package = str(kind.__module__)
    if package.startswith("torch."):
        return not package.startswith(_TORCH_PARTS)
    return package.split(".", maxsplit=1)[0] in _FOREIGN


def _held_by_constant(obj: Any) -> list[Any]:
    """Return what a thing holds that does not change itself."""
    if isinstance(obj, tuple | frozenset):
        return _short(obj)
    if isinstance(obj, types.MethodType):
        return [obj.__self__]
    if isinstance(obj, functools.partial):
        return [obj.func, *obj.args, *obj.keywords.values()]
    return []


def _short(values: Any) -> list[Any]:
    return list(values) if len(values) <= _LONG else []


def _refuse_iterators(holder: object, held: list[Any]) -> None:
    for obj in held:
        # an iterator written in Python keeps its place in attributes, and those are put back
        is_opaque = isinstance(obj, Iterator) and not hasattr(obj, "__dict__")
        if isinstance(obj, _BaseDataLoaderIter) or (
            is_opaque and not isinstance(obj, io.IOBase) and not slots(type(obj))
        ):
            names = [name for name, v in getattr(holder, "__dict__", {}).items() if v is obj]
            attribute = f" (its attribute {names[0]!r})" if names else ""
            raise CannotProbeError(
                f"a {type(holder).__name__} of the program holds a {type(obj).__name__}{attribute},"
                " an iterator that can be read only once"
            )
