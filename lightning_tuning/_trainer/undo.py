"""How one mutable thing is remembered and written back in place."""

from __future__ import annotations

import array
import collections
import random
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def slots(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    """Return the attributes that a class written in Python keeps outside ``__dict__``."""
    return tuple(
        member
        for base in kind.__mro__
        if "__slots__" in vars(base)
        for member in vars(base).values()
        if isinstance(member, types.MemberDescriptorType)
    )


def _slot_value(slot: types.MemberDescriptorType, obj: object) -> Any:
    try:
        return slot.__get__(obj)
    except AttributeError:
        return _UNSET


_UNSET = object()


class UndoSlots:
    def __init__(self, obj: object, members: tuple[types.MemberDescriptorType, ...]) -> None:
        self._obj = obj
        self._slots = members
        self.values = self._now()

    def _now(self) -> dict[types.MemberDescriptorType, Any]:
        values = {slot: _slot_value(slot, self._obj) for slot in self._slots}
        return {slot: value for slot, value in values.items() if value is not _UNSET}

    def __call__(self) -> None:
        now = self._now()
        for slot in self._slots:
            if slot not in self.values and slot in now:
                slot.__delete__(self._obj)
            elif slot in self.values and now.get(slot, self) is not self.values[slot]:
                slot.__set__(self._obj, self.values[slot])


def undo_dict(obj: dict[Any, Any]) -> Callable[[], None]:
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


def undo_sequence(obj: list[Any] | collections.deque[Any]) -> Callable[[], None]:
    items = list(obj)

    def undo() -> None:
        if len(obj) != len(items) or any(a is not b for a, b in zip(obj, items, strict=True)):
            obj.clear()
            obj.extend(items)

    return undo


def undo_set(obj: set[Any]) -> Callable[[], None]:
    items = frozenset(obj)

    def undo() -> None:
        if obj != items:
            obj.clear()
            obj.update(items)

    return undo


def undo_bytes(obj: bytearray | array.array[Any]) -> Callable[[], None]:
    items = obj[:]

    def undo() -> None:
        obj[:] = items  # type: ignore[assignment]

    return undo


def undo_array(obj: np.ndarray[Any, Any]) -> Callable[[], None]:
    kept = obj.copy()

    def undo() -> None:
        obj.flags.writeable = True
        np.copyto(obj, kept)

    return undo


def undo_generator(obj: object) -> Callable[[], None] | None:
    """Return what puts a random generator back, or None for any other object."""
    if isinstance(obj, torch.Generator):
        torch_state = obj.get_state()
        return lambda: _discard(obj.set_state(torch_state))
    if isinstance(obj, np.random.Generator | np.random.BitGenerator):
        bit_generator = obj if isinstance(obj, np.random.BitGenerator) else obj.bit_generator
        numpy_state = bit_generator.state
        return lambda: setattr(bit_generator, "state", numpy_state)
    if isinstance(obj, np.random.RandomState):
        legacy_state = obj.get_state()
        return lambda: obj.set_state(legacy_state)
    if isinstance(obj, random.Random) and not isinstance(obj, random.SystemRandom):
        python_state = obj.getstate()
        return lambda: obj.setstate(python_state)
    return None


def _discard(_: object) -> None:
    """Turn an expression into a statement."""
