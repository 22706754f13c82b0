"""Activation functions and raw weights, seen as torch's functions are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.activations.attention_rows import attention_rows, multi_head_rows
from lightning_tuning.functional.activations.activation_stats import ACTIVATIONS

_CONVOLUTIONS = frozenset(f"conv{kind}{dims}d" for kind in ("", "_transpose") for dims in (1, 2, 3))
_PRODUCTS = frozenset({"linear", "matmul", "mm", "__matmul__", "bmm", "embedding", *_CONVOLUTIONS})
_ATTENTIONS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})


class SeesFunction(Protocol):
    """Takes an activation function's output."""

    def __call__(self, function: str, value: Tensor, *, rows: Sequence[Tensor] = ()) -> None:
        """See it; ``rows`` are the numbers of saturated and of all rows, for attention."""


class SeesRawLayer(Protocol):
    """Takes the output of a layer that a program makes by hand."""

    def __call__(self, name: str, value: Tensor, *, channels_first: bool) -> None:
        """See it."""


class SeesAttention(Protocol):
    """Takes the rows of an attention inside of a layer."""

    def __call__(self, rows: Sequence[Tensor]) -> None:
        """See them: the numbers of saturated and of all rows; nothing where they are not known."""


class FunctionCalls(TorchFunctionMode):
    """Shows calls of activation functions, and of products with raw weights.

    Args:
        function: Takes the output of an activation function.
        raw_layer: Takes the output of a product with a raw weight.
        raw: Name and parameter of raw weights, by identity.
        inside: Takes what is known of the attention in ``nn.MultiheadAttention``.
    """

    def __init__(
        self,
        function: SeesFunction,
        raw_layer: SeesRawLayer,
        raw: Mapping[int, tuple[str, nn.Parameter]],
        inside: SeesAttention,
    ) -> None:
        super().__init__()
        self._function = function
        self._raw_layer = raw_layer
        self._raw = raw
        self._inside = inside
        self._known = {f"{name}{end}": name for name in ACTIVATIONS for end in ("", "_")}
        del self._known["softmax_"]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call, then look at its result."""
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        known = self._known.get(name)
        if known is None and name not in _PRODUCTS and name not in _ATTENTIONS:
            return value
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return value
        # what is measured here is none of the program's own calls, for other modes neither
        with torch._C.DisableTorchFunction():
            if known == "softmax":
                self._softmax(value, args, kwargs)
            elif known is not None:
                if isinstance(value, torch.Tensor):
                    self._function(known, value)
            elif name in _PRODUCTS:
                if self._raw:
                    self._product(name, value, args, kwargs)
            elif name == "multi_head_attention_forward":
                self._multi_head(args, kwargs)
            elif isinstance(value, torch.Tensor):
                self._attention(value, args, kwargs)
        return value

    def _product(
        self, name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        for candidate in (*args[:2], *kwargs.values()):
            known = self._raw.get(id(candidate))
            if known is not None and isinstance(value, torch.Tensor):
                self._raw_layer(known[0], value, channels_first=name in _CONVOLUTIONS)
                return

    def _softmax(self, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if not isinstance(value, torch.Tensor) or value.dim() < 3 or value.size(-1) < 3:
            return
        if dim not in (-1, value.dim() - 1):
            return
        top = value.detach().reshape(-1, value.size(-1))
        top = top[:: max(1, top.size(0) // 4096)].amax(-1)
        rows = ((top >= ACTIVATIONS["softmax"].high).sum(), torch.full_like(top, 1.0).sum())
        self._function("softmax", value, rows=rows)

    def _multi_head(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._inside(multi_head_rows(args, kwargs) or ())

    def _attention(self, value: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        rows = attention_rows(
            given["query"].detach(),
            given["key"].detach(),
            mask=given.get("attn_mask"),
            causal=bool(given.get("is_causal", False)),
            scale=given.get("scale"),
        )
        if rows is not None:
            self._function("softmax", value, rows=rows)
