"""Which activation function made a tensor, as a program's calls are seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

ACTIVATIONS = frozenset(
    {
        *("softmax", "log_softmax", "softmin", "gumbel_softmax", "sigmoid", "sigmoid_"),
        *("logsigmoid", "hardsigmoid", "tanh", "tanh_", "hardtanh", "relu", "relu_", "relu6"),
        *("leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"),
        *("hardswish", "exp", "exp_", "log", "log_", "normalize"),
    }
)
"""Functions whose name is remembered, under the name that torch gives them."""

_SHAPES = frozenset(
    {
        *("view", "reshape", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_", "flatten", "ravel"),
        *("transpose", "transpose_", "permute", "movedim", "moveaxis", "swapaxes", "swapdims"),
        *("t", "__get__", "__getitem__", "contiguous", "clone", "to", "float", "double", "half"),
        *("bfloat16", "type", "type_as", "unflatten", "narrow", "select", "view_as", "reshape_as"),
        *("clamp", "clamp_", "clip", "clamp_min", "clamp_max", "requires_grad_", "cpu", "cuda"),
    }
)
"""Functions that leave the values as they are, or hold them within bounds."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """The activation function that a tensor is the result of.

    Attributes:
        name: Its name in torch, such as ``"softmax"``.
        dim: The dimension that it was told; None if none.
        input: What went in, detached.
        before: The activation that made its input in turn.
    """

    name: str
    dim: int | None
    input: Tensor
    before: Origin | None

    def chain(self) -> tuple[str, ...]:
        """Return the names, the last function first: ``("log", "softmax")``."""
        rest = () if self.before is None else self.before.chain()
        return (self.name, *rest)


class Origins:
    """Remembers the activations of one step; what they made lives no longer for it.

    Example:
        >>> import torch
        >>> origins = Origins()
        >>> logits = torch.zeros(2, 3)
        >>> probabilities = origins.note(torch.softmax, (logits, 1), {}, torch.softmax(logits, 1))
        >>> origins.of(probabilities).chain()
        ('softmax',)
    """

    def __init__(self) -> None:
        self._known: MutableMapping[Tensor, Origin] = WeakTensorKeyDictionary()

    def of(self, tensor: Tensor) -> Origin | None:
        """Return what made the tensor; None for anything but an activation."""
        return self._known.get(tensor)

    def note(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        value: Any,
    ) -> Any:
        """Remember a call; return its value."""
        name = getattr(function, "__name__", "")
        if not isinstance(value, Tensor) or name not in ACTIVATIONS | _SHAPES:
            return value
        source = args[0] if args else kwargs.get("input")
        if not isinstance(source, Tensor):
            return value
        before = self.of(source)
        if name in ACTIVATIONS:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            origin = Origin(
                name=name,
                dim=dim if type(dim) is int else None,
                input=source.detach(),
                before=before,
            )
            self._known[value] = origin
        elif before is not None:
            self._known[value] = before
        return value
