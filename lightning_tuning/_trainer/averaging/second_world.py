"""What a second validation has of its own: a world in which it runs, and what it remembers."""

from __future__ import annotations

import copy
import enum
import functools
import logging
import re
import threading
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn, optim
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric, MetricCollection

from lightning_tuning._trainer.object_state import _DATA, _LONG, _PLAIN, _is_foreign
from lightning_tuning._trainer.undo import slots

_METRIC = (Metric, MetricCollection)
_SHARED = (
    *(nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler, *_DATA),
    *(Trainer, Callback, LightningDataModule, Logger),
)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
# what is copied although its type stands in a package whose objects are left alone
_COPIED = (
    *(*_CONTAINERS, bytearray, np.ndarray, types.MethodType, RemovableHandle, torch.Generator),
    *(np.random.Generator, np.random.BitGenerator, np.random.RandomState),
)
_LARGE = 2**28  # bytes of a tensor or array; what is larger is taken for data, and shared

# what never changes, or is the same in both worlds, and holds no module
_ATOMS = (
    *(*_PLAIN, enum.Enum, np.generic, np.dtype, torch.dtype, torch.device, torch.layout),
    *(types.NoneType, types.EllipsisType, type(threading.Lock()), type(threading.RLock())),
    *(logging.Logger, re.Pattern),
)
_MODULE_CONTAINERS = (nn.ModuleList, nn.ModuleDict)
_MANY = 100_000  # objects, and
_BYTES = 2**24  # bytes of tensors and arrays, that one attribute may hold to be remembered

Exchanged = tuple[Any, str, Any]  # an owner, an attribute, its value in the other pass
_Slot = tuple[bool, str]  # whether it is an entry of _modules instead of an attribute; its name


class _Absent(enum.Enum):
    MISSING = enum.auto()
    UNKNOWN = enum.auto()


_MISSING, _UNKNOWN = _Absent.MISSING, _Absent.UNKNOWN


class _Marks(NamedTuple):
    """What tells whether a thing has changed: the objects in it, and how often each was written."""

    parts: list[Any]
    counts: list[Any]

    def equals(self, other: _Marks) -> bool:
        """Whether both are of the same objects, not of equal ones."""
        same = len(self.parts) == len(other.parts) and all(map(is_, self.parts, other.parts))
        return same and self.counts == other.counts


class _Memory(NamedTuple):
    module: weakref.ref[nn.Module]
    slot: _Slot
    second: Any
    marks: _Marks


class History:
    """What the second pass remembers from one validation to the next.

    Each attribute of a module, and each metric, is looked at for itself. If the first pass's is the
    one it was at the end of the last validation, the second pass goes on with what it had then. If
    somebody has changed it since, as training may, that is news for both passes, and the second
    gets a copy of it. So it does of whatever can't be compared for little: what holds a module, a
    parameter, a random generator, or much. Buffers belong to the weights, not in here.

    A history belongs to one fit; it keeps no module alive.
    """

    def __init__(self) -> None:
        self._left: list[tuple[weakref.ref[nn.Module], dict[_Slot, Any]]] = []
        self._kept: list[_Memory] = []
        self._reset: frozenset[int] = frozenset()

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out: it belongs to one fit in one process."""
        return vars(History())

    def remember(self, worlds: Iterable[tuple[nn.Module, dict[str, Any]]]) -> None:
        """Take what the second pass leaves of its world, the ``__dict__`` of each submodule."""
        for module, world in worlds:
            found = {k: _UNKNOWN if _marks(v) is None else v for k, v in _slots(world).items()}
            self._left.append((weakref.ref(module), found))

    def compare(self, logged: Iterable[Metric]) -> None:
        """Note what the first pass leaves; Lightning will then reset the metrics logged."""
        reset = frozenset(map(id, logged))
        left, self._left = self._left, []
        if left:
            self._kept, self._reset = [], reset
        for ref, seconds in left:
            if (module := ref()) is None:
                continue
            firsts = _slots(vars(module))
            for slot in {**firsts, **seconds}:
                first, second = (values.get(slot, _MISSING) for values in (firsts, seconds))
                if second is _UNKNOWN or second is first:
                    continue
                if (marks := _marks(first, reset)) is not None:
                    self._kept.append(_Memory(ref, slot, second, marks))

    def recall(self, modules: list[nn.Module]) -> Iterator[tuple[int, _Slot, Any, Any]]:
        """Yield (index of a module, slot, the first pass's value, the second pass's), once."""
        kept, self._kept, self._left = self._kept, [], []
        firsts = {id(m): (i, _slots(vars(m))) for i, m in enumerate(modules)}
        for ref, slot, second, marks in kept:
            index, values = firsts.get(id(ref()), (-1, {}))
            first = values.get(slot, _MISSING)
            now = None if index < 0 else _marks(first, self._reset, is_over=True)
            if now is not None and now.equals(marks):
                yield index, slot, first, second


def second_world(module: LightningModule, history: History) -> list[Exchanged]:
    """Return a second ``__dict__`` for every submodule, and second contents for every buffer.

    Args:
        module: The module that is to have a second world.
        history: What the validations before have left in theirs.
    """
    closed = (*_METRIC, torch.jit.ScriptModule)
    inner = {id(m) for c in module.modules() if isinstance(c, closed) for m in c.modules()}
    modules = [m for m in module.modules() if id(m) not in inner]
    found = [b for m in modules for b in m._buffers.values() if b is not None]
    # not a tensor whose memory can't be exchanged: a copy takes its place
    buffers = [b for b in dict.fromkeys(found) if type(b) is Tensor and not b.is_inference()]
    shared = [*module.parameters(), *buffers, *modules, *(m._parameters for m in modules)]
    memo: dict[int, Any] = {id(obj): obj for obj in shared}
    # a hook that one pass registers or removes is none of the other's business
    hooks = [v for m in modules for k, v in vars(m).items() if k.startswith("_") and "_hooks" in k]
    memo |= {id(v): v.copy() for v in hooks if isinstance(v, dict)}
    remembered = list(history.recall(modules))
    for _, _, first, second in remembered:
        if not isinstance(first, _ATOMS):
            memo.setdefault(id(first), second)
    _decide(memo, [value for m in modules for value in vars(m).values()])
    worlds = [{name: copied(value, memo) for name, value in vars(m).items()} for m in modules]
    for index, (is_child, name), _, second in remembered:
        values = worlds[index]["_modules"] if is_child else worlds[index]
        if second is _MISSING:
            values.pop(name, None)
        else:
            values[name] = second
    # the metrics' names by their ids: Lightning finds those of the copies anew
    worlds[0]["_metric_attributes"] = None
    return [
        *((m, "__dict__", world) for m, world in zip(modules, worlds, strict=True)),
        *((buffer, "data", buffer.clone()) for buffer in buffers if buffer.nbytes <= _LARGE),
    ]


def _slots(world: dict[str, Any]) -> dict[_Slot, Any]:
    own = {(False, k): v for k, v in world.items() if k not in _names_of_lightning()}
    return own | {(True, name): child for name, child in world["_modules"].items()}


@functools.cache
def _names_of_lightning() -> frozenset[str]:
    return frozenset(vars(LightningModule()))


@functools.cache
def _names_of_torchmetrics() -> frozenset[str]:
    class Bare(Metric):
        def update(self) -> None:
            pass

        def compute(self) -> None:
            pass

    return frozenset(vars(Bare()))


def _marks(
    root: Any, reset: frozenset[int] = frozenset(), *, is_over: bool = False
) -> _Marks | None:
    """Return what tells whether a thing has changed; None if that would take long, or can't be.

    The metrics in ``reset`` are told as they are once they are reset, which may be over.
    """
    marks, size = _Marks([], []), 0
    pending: list[tuple[Any, bool]] = [(root, False)]
    seen: set[int] = set()
    while pending:
        obj, is_reset = pending.pop()
        marks.parts.append(obj)
        if isinstance(obj, _ATOMS) or id(obj) in seen:
            continue
        seen.add(id(obj))
        is_reset = is_reset or id(obj) in reset
        size += _size(obj)
        if size > _BYTES or not _can_be_compared(obj):
            return None
        marks.counts.append(0 if is_reset and not is_over else _count(obj))
        held = _parts(obj, with_states=not is_reset)
        if len(marks.parts) + len(pending) + len(held) > _MANY:
            return None
        pending += [(part, is_reset) for part in held]
    return marks


def _size(obj: Any) -> int:
    if isinstance(obj, Tensor) and obj.layout == torch.strided:
        return obj.untyped_storage().nbytes()
    return obj.nbytes if isinstance(obj, Tensor | np.ndarray) else 0


def _can_be_compared(obj: Any) -> bool:
    kind = type(obj)
    if isinstance(obj, Tensor):
        return kind is Tensor and obj.layout == torch.strided and not obj.requires_grad
    if isinstance(obj, np.ndarray):
        return kind is np.ndarray and not obj.dtype.hasobject
    if isinstance(obj, types.FunctionType):
        return obj.__closure__ is None
    if isinstance(obj, (*_METRIC, *_CONTAINERS, types.MethodType)) or kind in _MODULE_CONTAINERS:
        return True
    # its attributes are all it has: copy and pickle need no help
    is_open = all(getattr(kind, k) is getattr(object, k) for k in ("__reduce_ex__", "__reduce__"))
    return is_open and not _is_shared(obj) and (hasattr(obj, "__dict__") or bool(slots(kind)))


def _count(obj: Any) -> Any:
    if isinstance(obj, Metric):
        return obj._update_count
    if isinstance(obj, Tensor):
        # nobody can write to what inference mode made, out of it
        return 0 if obj.is_inference() else obj._version
    if isinstance(obj, np.ndarray):
        return obj.tobytes()
    return len(obj) if isinstance(obj, _CONTAINERS) else 0


def _parts(obj: Any, *, with_states: bool) -> list[Any]:
    if isinstance(obj, Metric):
        left_out = _names_of_torchmetrics() | (set() if with_states else obj._defaults.keys())
        return [v for k, v in vars(obj).items() if k not in left_out] + [*obj._modules.values()]
    if isinstance(obj, nn.Module):
        return list(obj._modules.values())
    if isinstance(obj, Tensor | np.ndarray | types.FunctionType):
        return []
    return [*_held(obj), *obj] if isinstance(obj, dict) else _held(obj)


def _decide(memo: dict[int, Any], roots: list[Any]) -> None:
    """Fill the memo with everything that deepcopy would copy wrongly, or could not copy."""
    pending = list(roots)
    seen: dict[int, object] = {}
    while pending:
        obj = pending.pop()
        if isinstance(obj, _PLAIN) or id(obj) in memo or id(obj) in seen:
            continue
        # holding the objects keeps their ids from being given to others
        seen[id(obj)] = obj
        if _is_shared(obj):
            memo[id(obj)] = obj
        elif isinstance(obj, Tensor):
            # deepcopy would copy all that a view is a part of
            memo[id(obj)] = obj.clone()
        elif isinstance(obj, _CONTAINERS) and len(obj) > _LONG:
            memo[id(obj)] = copy.copy(obj)
        elif held := _held(obj):
            pending += held
        else:
            memo[id(obj)] = copied(obj, {})


def _is_shared(obj: Any) -> bool:
    if isinstance(obj, Tensor | np.ndarray):
        return obj.nbytes > _LARGE or not getattr(obj, "is_leaf", True)
    # what is told of its end holds a file, a connection, a bar on the screen
    if isinstance(obj, _SHARED) or hasattr(type(obj), "__del__"):
        return not isinstance(obj, _METRIC)
    return _is_foreign(type(obj)) and not isinstance(obj, _COPIED)


def _held(obj: Any) -> list[Any]:
    held = list(getattr(obj, "__dict__", {}).values())
    held += [getattr(obj, slot.__name__, None) for slot in slots(type(obj))]
    if isinstance(obj, _CONTAINERS):
        held += obj.values() if isinstance(obj, dict) else obj
    return [*held, obj.__self__] if isinstance(obj, types.MethodType) else held


def copied(obj: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy, or the thing itself if that fails."""
    try:
        return copy.deepcopy(obj, memo)
    except Exception:
        return obj
