"""The plain Python state of a program: lists, counters, generators, metrics' tensors.

A training step changes more than weights: a module appends to ``self.outputs``, a torchmetrics
metric counts in attributes that are in no ``state_dict``, a data set draws from a generator of its
own. :class:`ObjectState` walks from some objects through everything they hold, remembers the
contents of each mutable thing, and writes them back **in place**, so that whoever else holds it
sees it restored.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

# Types of these packages are left alone: their objects are shared machinery (a trainer, a thread, a
# compiled graph, an image, a table), not the state of one training program.
_FOREIGN = {
    *("PIL", "asyncio", "builtins", "concurrent", "datasets", "h5py", "io", "lightning"),
    *("lightning_fabric", "lightning_utilities", "logging", "matplotlib", "multiprocessing"),
    *("numpy", "pandas", "polars", "pyarrow", "pytorch_lightning", "queue", "re", "tensorboard"),
    *("threading", "types", "weakref", "_thread", "_io"),
}
_TORCH_PARTS = ("torch.nn", "torch.optim", "torch.utils.data", "torch.ao")
_PLAIN = (str, bytes, int, float, complex, type)
_DATA = (torch.utils.data.Dataset, torch.utils.data.DataLoader, torch.utils.data.Sampler)
_LONG = 10_000
"""Containers longer than this are remembered, but what they hold is not walked through."""


class ObjectState:
    """Contents of all plain mutable objects that can be reached from some roots.

    Tensors and arrays are remembered too, but not those that a data set, loader or sampler holds:
    they are large, and reading examples does not change them. Parameters, buffers and whatever else
    is in ``skip`` are never copied, nor walked through.

    Args:
        roots: Where the walk starts.
        data: Where it starts for data, whose arrays are not copied.
        skip: Objects that are somebody else's business.

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
        self._walk(data, copy_arrays=False)
        self._walk(roots, copy_arrays=True)

    def restore(self) -> None:
        """Write everything back; may be called again after further changes."""
        for undo in self._undo:
            undo()

    def _walk(self, roots: Iterable[object], *, copy_arrays: bool) -> None:
        pending = list(roots)
        while pending:
            obj = pending.pop()
            if obj is None or isinstance(obj, _PLAIN) or id(obj) in self._seen:
                continue
            if copy_arrays and isinstance(obj, _DATA):
                self._walk([obj], copy_arrays=False)
                continue
            self._seen[id(obj)] = obj
            if isinstance(obj, torch.Tensor | np.ndarray):
                if copy_arrays:
                    self._undo.append(_undo_array(obj))
            elif (undo_generator := _undo_generator(obj)) is not None:
                self._undo.append(undo_generator)
            else:
                pending.extend(self._remember_container(obj))

    def _remember_container(self, obj: Any) -> Iterable[object]:
        """Remember what a container or an object's attributes hold, and return that."""
        if isinstance(obj, dict):
            self._undo.append(_undo_dict(obj))
            return _short(obj.values())
        if isinstance(obj, list | collections.deque):
            self._undo.append(_undo_sequence(obj))
            return _short(obj)
        if isinstance(obj, set):
            self._undo.append(_undo_set(obj))
            return ()
        if isinstance(obj, tuple):
            return _short(obj)
        attributes = getattr(obj, "__dict__", None)
        if not isinstance(attributes, dict) or _is_foreign(type(obj)):
            return ()
        self._undo.append(_undo_dict(attributes))
        return _short(attributes.values())


def _is_foreign(kind: type) -> bool:
    if issubclass(kind, torch.nn.Module):
        return False
    if kind.__module__.startswith("torch."):
        return not kind.__module__.startswith(_TORCH_PARTS)
    return kind.__module__.split(".", maxsplit=1)[0] in _FOREIGN


def _short(values: Any) -> Iterable[object]:
    return list(values) if len(values) <= _LONG else ()


def _undo_dict(obj: dict[Any, Any]) -> Callable[[], None]:
    items = list(obj.items())

    def undo() -> None:
        now = list(obj.items())
        if len(now) == len(items) and all(
            a[0] is b[0] and a[1] is b[1] for a, b in zip(now, items, strict=True)
        ):
            return
        kind = collections.OrderedDict if isinstance(obj, collections.OrderedDict) else dict
        kind.clear(obj)
        kind.update(obj, items)

    return undo


def _undo_sequence(obj: list[Any] | collections.deque[Any]) -> Callable[[], None]:
    items = list(obj)

    def undo() -> None:
        if len(obj) != len(items) or any(a is not b for a, b in zip(obj, items, strict=True)):
            obj.clear()
            obj.extend(items)

    return undo


def _undo_set(obj: set[Any]) -> Callable[[], None]:
    items = frozenset(obj)

    def undo() -> None:
        if obj != items:
            obj.clear()
            obj.update(items)

    return undo


def _undo_array(obj: torch.Tensor | np.ndarray[Any, Any]) -> Callable[[], None]:
    if isinstance(obj, np.ndarray):
        array, kept = obj, obj.copy()

        def undo_array() -> None:
            if array.flags.writeable:
                np.copyto(array, kept)

        return undo_array
    tensor, saved = obj.detach(), obj.detach().clone()

    def undo_tensor() -> None:
        with torch.no_grad():
            tensor.copy_(saved)

    return undo_tensor


def _undo_generator(obj: object) -> Callable[[], None] | None:
    """Return what puts a random generator back, or None for any other object."""
    if isinstance(obj, torch.Generator):
        torch_state = obj.get_state()
        return lambda: _discard(obj.set_state(torch_state))
    if isinstance(obj, np.random.Generator):
        bit_generator = obj.bit_generator
        numpy_state = bit_generator.state
        return lambda: setattr(bit_generator, "state", numpy_state)
    if isinstance(obj, np.random.RandomState):
        legacy_state = obj.get_state()
        return lambda: obj.set_state(legacy_state)
    if isinstance(obj, random.Random):
        python_state = obj.getstate()
        return lambda: obj.setstate(python_state)
    return None


def _discard(_: object) -> None:
    """Turn an expression into a statement."""
