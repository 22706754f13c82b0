"""The first operation of a step whose result or gradient is not finite."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_tuning._trainer.step_trace import TracedCall, tensors_in

_ON_PURPOSE = (
    *("masked_fill", "full", "full_like", "where", "new_full", "tensor", "fill"),
    *("triu", "tril", "setitem", "nan_to_num", "finfo"),
)


class FirstNonFinite:
    """Looks at each call while it is on, for a :class:`StepTrace`.

    Args:
        module: The program's module.
        on: Whether it looks from the start.
    """

    def __init__(self, module: LightningModule, *, on: bool = True) -> None:
        self.on = on
        self.operation = ""
        self.module = ""
        self.backward = False
        self.largest_input = 0.0
        self.largest_gradient = 0.0
        self.weights = 0.0
        self.bad_gradient = False
        self._own = module
        self._stack: list[str] = []
        self._users: dict[int, tuple[str, str, float]] = {}

    def __call__(self, call: TracedCall) -> None:
        """Look at the call's result, and be told of its gradient."""
        if not self.on or (self.operation and not self.backward):
            return
        if call.function is Tensor.backward:
            grads = [p.grad for p in call.trace.module.parameters() if p.grad is not None]
            self.bad_gradient |= any(not bool(torch.isfinite(grad).all()) for grad in grads)
            return
        given = [t for t in tensors_in((call.args, call.kwargs)) if t.is_floating_point()]
        results = [call.value] if isinstance(call.value, Tensor) else list(tensors_in(call.value))
        results = [tensor for tensor in results if tensor.is_floating_point()]
        if not given or not results:
            return
        self._look(call, given, results)

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Know which module is being called."""
        hooks: list[Any] = []
        for name, part in self._own.named_modules():
            hooks.append(part.register_forward_pre_hook(functools.partial(self._enter, name)))
            hooks.append(part.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(self, call: TracedCall, given: list[Tensor], results: list[Tensor]) -> None:
        magnitude = max(_largest(tensor) for tensor in given)
        where = self._stack[-1] if self._stack else ""
        leaves = all(map(_is_finite, given)) and not all(map(_is_finite, results))
        if leaves and call.name not in _ON_PURPOSE:
            self._found(call.name, where, magnitude)
            return
        for tensor in given:
            self._users[id(tensor)] = (call.name, where, magnitude)
        for tensor in results:
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(  # type: ignore[no-untyped-call]
                    functools.partial(self._look_back, id(tensor))
                )

    def _look_back(self, tensor: int, grad: Tensor) -> None:
        if self.operation:
            return
        if _is_finite(grad):
            self.largest_gradient = max(self.largest_gradient, _largest(grad))
            return
        name, where, magnitude = self._users.get(tensor, ("", "", 0.0))
        self.backward = True
        self._found(name, where, magnitude)

    def _found(self, name: str, where: str, magnitude: float) -> None:
        self.operation, self.module, self.largest_input = name, where, magnitude
        self.weights = norm_of(self._own)

    def _enter(self, name: str, *_: object) -> None:
        self._stack.append(name)

    def _leave(self, *_: object) -> None:
        self._stack.pop()


def norm_of(module: nn.Module) -> float:
    """Return the norm of all finite weights."""
    squares = [
        float(p.detach().float().nan_to_num(0, 0, 0).square().sum()) for p in module.parameters()
    ]
    return math.sqrt(sum(squares))


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _largest(tensor: Tensor) -> float:
    values = tensor.detach()
    return float(values.nan_to_num(0, 0, 0).abs().amax()) if values.numel() else 0.0
