"""Finds activation functions whose result is thrown away."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.examples import leaves

_ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish"),
        *("tanh", "softplus", "softsign", "hardtanh", "hardswish"),
    }
)


class DiscardedActivations(TorchFunctionMode):
    """Follows what becomes of the results of activation functions in a step.

    A result counts as thrown away if nothing was computed from it, no module made of others
    returned it and nobody holds it at the end, although its input went into another function.
    """

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[int, tuple[weakref.ref[Tensor], str, Tensor]] = {}
        self._used_on: set[int] = set()
        self.names: list[str] = []

    def __enter__(self) -> DiscardedActivations:
        self._handle = register_module_forward_hook(self._returned)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._handle.remove()
        for result, name, given in self._open.values():
            if result() is None and id(given) in self._used_on:
                self.names.append(name)
        self._open = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, and note what it uses."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        for tensor in _tensors((*args, *kwargs.values())):
            if name not in ("__get__", "size", "dim"):
                self._used_on.add(id(tensor))
            self._forget(tensor)
        result = func(*args, **kwargs)
        given = args[0] if args else kwargs.get("input")
        if (
            name in _ACTIVATIONS
            and isinstance(result, Tensor)
            and isinstance(given, Tensor)
            and result.requires_grad
            and result.data_ptr() != given.data_ptr()
        ):
            self._used_on.discard(id(given))
            self._open[len(self._open)] = (weakref.ref(result), name, given)
        return result

    def _forget(self, tensor: Tensor) -> None:
        for number in [n for n, (ref, _, _) in self._open.items() if ref() is tensor]:
            del self._open[number]

    def _returned(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if next(module.children(), None) is not None:
            for tensor in leaves(output):
                self._forget(tensor)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            with contextlib.suppress(RuntimeError):
                yield from _tensors(value.values())
