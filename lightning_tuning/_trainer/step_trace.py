"""What a program's step computes from what: each call of torch, and where its tensors come from."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_tuning.functional.origins import Origins

MODEL = 1
"""Mark of what was computed with parameters of the module."""
DATA = 2
"""Mark of what was computed from the batch."""

_OF_NO_VALUE = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like")
_OPERATORS = {
    "truediv": "div",
    "rtruediv": "rdiv",
    "isub": "sub",
    "imul": "mul",
    "iadd": "add",
    "itruediv": "div",
    "square": "pow",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TracedCall:
    """One call of torch.

    Attributes:
        function: What was called.
        args: Its arguments.
        kwargs: Its arguments by name.
        value: What it returned; None before it did.
        trace: Where it was seen.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    value: Any
    trace: StepTrace

    @functools.cached_property
    def name(self) -> str:
        """The plain name: ``"sub"`` for ``a - b``, ``"rsub"`` for ``1 - b``."""
        name = getattr(self.function, "__name__", "").strip("_")
        return _OPERATORS.get(name, name)

    def argument(self, position: int, name: str) -> Any:
        """Return an argument however it was given; None if it was not."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name)


Observer = Callable[[TracedCall], None]


class StepTrace(TorchFunctionMode):
    """Follows the tensors of a step while it is active, without and with gradients.

    Args:
        module: The program's module.
        before: Told of each call before it runs.
        after: Told of each call with its value.
    """

    def __init__(
        self,
        module: LightningModule,
        *,
        before: Sequence[Observer] = (),
        after: Sequence[Observer] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self.origins = Origins()
        self.batch: Any = None
        self._before = before
        self._after = after
        self._known: dict[int, tuple[Tensor, int]] = {}

    def __enter__(self) -> StepTrace:
        self._start_anew()
        for name in ("training_step", "validation_step"):
            own = getattr(self.module, name)
            self.module.__dict__[name] = self._noting_the_batch(own)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        for name in ("training_step", "validation_step"):
            self.module.__dict__.pop(name, None)
        self._known.clear()
        self.origins = Origins()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, follow its values, tell the observers."""
        call = TracedCall(function=func, args=args, kwargs=kwargs or {}, value=None, trace=self)
        for observer in self._before:
            observer(call)
        value = self.origins.note(func, args, call.kwargs, func(*args, **call.kwargs))
        if func is Tensor.__iter__:
            value = list(value)
        self._mark(call, value)
        call = dataclasses.replace(call, value=value)
        for observer in self._after:
            observer(call)
        return iter(value) if func is Tensor.__iter__ else value

    def marks(self, tensor: Tensor) -> int:
        """Return the marks of a tensor: :data:`MODEL`, :data:`DATA`, both or 0."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known[1]
        return MODEL | DATA if tensor.requires_grad else 0

    def mark(self, tensor: Tensor, marks: int) -> None:
        """Add marks to a tensor, which what is computed from it will bear too."""
        self._known[id(tensor)] = (tensor, self.marks(tensor) | marks)

    def _start_anew(self) -> None:
        self._known = {id(tensor): (tensor, MODEL) for tensor in self.module.parameters()}
        self.origins = Origins()

    def _mark(self, call: TracedCall, value: Any) -> None:
        if call.name in _OF_NO_VALUE or call.name.startswith("new_"):
            return
        if call.name == "broadcast_tensors":
            sources = tuple(tensors_in(call.args))
            for source, tensor in zip(sources, value, strict=True):
                self._known[id(tensor)] = (tensor, self.marks(source))
            return
        results = [value] if isinstance(value, Tensor) else list(tensors_in(value))
        if not results:
            return
        marks = 0
        for tensor in tensors_in((call.args, call.kwargs)):
            marks |= self.marks(tensor)
        for tensor in results:
            self._known[id(tensor)] = (tensor, marks)

    def _noting_the_batch(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._start_anew()
            self.batch = args[0] if args else next(iter(kwargs.values()))
            for tensor in tensors_in(self.batch):
                self._known[id(tensor)] = (tensor, DATA)
            return step(*args, **kwargs)

        return noting


def tensors_in(value: Any, *, depth: int = 4) -> Iterator[Tensor]:
    """Yield the tensors in nested containers, and in the attributes of plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth == 0 or isinstance(value, str | int | float | torch.Size | type(None)):
        return
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner, depth=depth - 1)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from tensors_in(inner, depth=depth - 1)
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        for inner in list(vars(value).values()):
            yield from tensors_in(inner, depth=depth - 1)


def batch_size(batch: Any) -> int | None:
    """Return the leading size that most tensors of a batch share; None where there is none."""
    sizes = [tensor.size(0) for tensor in tensors_in(batch) if tensor.dim() > 0]
    return max(sizes, key=sizes.count) if sizes else None


class Intercept(TorchFunctionMode):
    """Puts something else in the place of torch's functions while it is active.

    Args:
        instead: Given function, arguments and arguments by name; returns the value.
    """

    def __init__(self, instead: Callable[..., Any]) -> None:
        super().__init__()
        self._instead = instead

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what stands in for the call."""
        return self._instead(func, args, kwargs or {})


def scaled_backward(factor: float) -> Intercept:
    """Return what multiplies each loss that goes backward by a factor; its value stays."""

    def instead(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is Tensor.backward:
            return func(args[0] * factor, *args[1:], **kwargs)
        return func(*args, **kwargs)

    return Intercept(instead)
