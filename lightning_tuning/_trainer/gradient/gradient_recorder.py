"""The calls of hand-written ``torch.autograd.Function``s that a training step sends backward."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.utils._pytree import tree_map

from lightning_tuning._trainer.uninterrupted import Uninterrupted
from lightning_tuning.functional.gradient.gradient_alone import FunctionCall

_SAME_KIND = 3
_OF_ONE_CLASS = 12
_NODES = 20_000
"""So many nodes of a graph are walked through in search of the parameters behind a call."""
_GENERATED = "GeneratedBackwardFor_"
"""What torch names the Functions behind the gradients that ``torch.library`` is given."""
_TORCHS_OWN = ("prims_", "rngprims_", "_c10d", "streams_", "onnx_", "flex_lib_", "debug_mode_")


class FunctionRecorder:
    """Notes each call of somebody's own Function that gets a gradient, while it is active.

    ``forward``, ``setup_context`` and ``backward`` of the classes are wrapped meanwhile, which also
    sees an ``apply`` that was bound to another name before.

    Args:
        names: Names of the parameters, by ``id``.

    Attributes:
        calls: A few calls of each class with different arguments.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.calls: list[FunctionCall] = []
        self._names = names
        self._begun: dict[int, tuple[Any, tuple[Any, ...]]] = {}
        self._seen: dict[tuple[Any, ...], int] = {}
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> FunctionRecorder:
        recorder = self

        def wrap_new(cls: type[Function], /, **_: Any) -> None:
            recorder._wrap(cls)

        # a class may be made within the training step
        base: Any = Function
        base.__init_subclass__ = classmethod(wrap_new)
        self._undo.append(lambda: delattr(Function, "__init_subclass__"))
        for cls in _subclasses(Function):
            self._wrap(cls)
        return self

    def __exit__(self, *_: object) -> None:
        with Uninterrupted():
            while self._undo:
                self._undo.pop()()
        self._begun.clear()

    def _wrap(self, cls: type[Function]) -> None:
        if not is_hand_written(cls):
            return
        # from Python alone one can't tell whose forward an inherited one is, so each class has one
        if cls.setup_context is not Function.setup_context:
            self._replace(cls, "setup_context", self._around_setup)
        else:
            self._replace(cls, "forward", self._around_forward)
        name = "backward" if cls.vjp is Function.vjp else "vjp"
        self._replace(cls, name, functools.partial(self._around_backward, cls))

    def _replace(self, cls: type, name: str, around: Callable[[Any], Any]) -> None:
        own = vars(cls).get(name)
        original = getattr(cls, name)
        setattr(cls, name, staticmethod(functools.wraps(original)(around(original))))
        if own is None:
            self._undo.append(lambda: delattr(cls, name))
        else:
            self._undo.append(lambda: setattr(cls, name, own))

    def _around_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noting(ctx: Any, *args: Any, **kwargs: Any) -> Any:
            self._begin(ctx, args)
            return forward(ctx, *args, **kwargs)

        return noting

    def _around_setup(self, setup: Callable[..., Any]) -> Callable[..., Any]:
        def noting(ctx: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            self._begin(ctx, inputs)
            return setup(ctx, inputs, output)

        return noting

    def _around_backward(
        self, cls: type[Function], backward: Callable[..., Any]
    ) -> Callable[..., Any]:
        def noting(ctx: Any, *cotangents: Any) -> Any:
            with contextlib.suppress(Exception):  # what torch.func passes is no node of a graph
                self._finish(cls, ctx, cotangents)
            return backward(ctx, *cotangents)

        return noting

    def _begin(self, ctx: Any, args: tuple[Any, ...]) -> None:
        with contextlib.suppress(Exception):
            if any(ctx.needs_input_grad):
                # holding ctx keeps its id from being given to another
                self._begun[id(ctx)] = ctx, tree_map(_copied, tuple(args))

    def _finish(self, cls: type[Function], ctx: Any, cotangents: tuple[Any, ...]) -> None:
        if id(ctx) not in self._begun:
            return
        _, args = self._begun.pop(id(ctx))
        kind = (cls, *map(_kind, args))
        self._seen[kind] = self._seen.get(kind, 0) + 1
        of_class = sum(call.function is cls for call in self.calls)
        if self._seen[kind] > _SAME_KIND or of_class >= _OF_ONE_CLASS:
            return
        needed = [
            i
            for i, (arg, needs) in enumerate(zip(args, ctx.needs_input_grad, strict=True))
            if needs and isinstance(arg, Tensor) and arg.is_floating_point()
        ]
        edges = iter(ctx.next_functions)
        nodes = [next(edges)[0] if isinstance(arg, Tensor) else None for arg in args]
        call = FunctionCall(
            function=cls,
            args=args,
            wanted=tuple(needed),
            cotangents=tuple(map(_copied, cotangents)),
            reached=tuple(tuple(self._parameters(nodes[i])) for i in needed),
        )
        if call.wanted:
            self.calls.append(call)

    def _parameters(self, node: Any) -> Iterator[str]:
        """Yield the names of the parameters behind a node of the graph, nearest first."""
        pending, seen = deque([node]), {node}
        while pending and len(seen) < _NODES:
            node = pending.popleft()
            if node is None:
                continue
            name = self._names.get(id(getattr(node, "variable", None)))
            if name is not None:
                yield name
            for following, _ in node.next_functions:
                if following not in seen:
                    seen.add(following)
                    pending.append(following)


def is_hand_written(cls: type[Function]) -> bool:
    """Whether a Function is somebody's own, not one of torch's.

    Example:
        >>> from torch.utils.checkpoint import CheckpointFunction
        >>> is_hand_written(CheckpointFunction)
        False
    """
    if cls.__name__.startswith(_GENERATED):
        return not cls.__name__.removeprefix(_GENERATED).startswith(_TORCHS_OWN)
    return cls.__module__.split(".")[0] not in ("torch", "functorch")


def _subclasses(cls: type) -> Iterator[type[Function]]:
    children: list[Any] = cls.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _kind(value: Any) -> Any:
    """What distinguishes one argument from another: a shape, or a plain value."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return value if isinstance(value, bool | int | float | str | None) else type(value)
