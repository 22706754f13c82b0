"""Which layers that differ between training and evaluation are called, and in which mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

_DROPOUTS = frozenset(
    {
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"),
        "feature_alpha_dropout",
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModeCall:
    """One call of dropout or BatchNorm.

    Attributes:
        layer: Path of the layer it belongs to; the innermost one where it is a function.
        kind: ``"dropout"`` or ``"batch_norm"``.
        live: Whether it does what it does in training.
        of_layer: Whether the layer itself is a dropout or BatchNorm layer.
        on_data: Whether no layer with parameters came before it in this step.
        with_grad: Whether gradients were being recorded.
        off_from: Path of the outermost module around it that is in evaluation mode; None where all
            are in training mode.
    """

    layer: str
    kind: str
    live: bool
    of_layer: bool
    on_data: bool
    with_grad: bool
    off_from: str | None


class ModeRecorder(TorchFunctionMode):
    """Notes calls of dropout and BatchNorm while it is active.

    Args:
        module: The module whose layers they are.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._paths = {id(part): path for path, part in module.named_modules()}
        self._stack: list[nn.Module] = []
        self._touched = False
        self._inputs: dict[tuple[int, tuple[int, ...]], list[Tensor]] = {}
        self.calls: list[ModeCall] = []
        self.repeats = False

    def begin(self) -> None:
        """A new batch begins."""
        self._touched = False
        self._inputs = {}

    def __enter__(self) -> ModeRecorder:
        self._handles = [
            register_module_forward_pre_hook(self._on_enter),
            register_module_forward_hook(self._on_leave, always_call=True),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, and note it if it differs between the modes."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _DROPOUTS and args and isinstance(args[0], Tensor):
            self._note_dropout(args, kwargs)
        elif func is F.batch_norm:
            given = dict(zip(_BATCH_NORM, args, strict=False)) | dict(kwargs)
            if given.get("running_mean") is not None:
                self._add("batch_norm", live=bool(given.get("training", False)))
        elif func is F.scaled_dot_product_attention:
            if (args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)) > 0:
                self._add("dropout", live=True)
        elif func is F.multi_head_attention_forward:
            given = dict(zip(_ATTENTION, args, strict=False)) | dict(kwargs)
            if given.get("dropout_p", 0.0) > 0:
                self._add("dropout", live=bool(given.get("training", True)))
        if not self._touched and any(isinstance(a, nn.Parameter) for a in args):
            self._touched = True
        return func(*args, **kwargs)

    def _note_dropout(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        given = dict(zip(("input", "p", "training"), args, strict=False)) | dict(kwargs)
        if 0 < float(given.get("p", 0.5)) < 1:
            self._add("dropout", live=bool(given.get("training", True)))

    def _add(self, kind: str, *, live: bool) -> None:
        layer = next((m for m in reversed(self._stack) if id(m) in self._paths), None)
        path = "" if layer is None else self._paths[id(layer)]
        self.calls.append(
            ModeCall(
                layer=path,
                kind=kind,
                live=live,
                of_layer=isinstance(layer, _DropoutNd | _BatchNorm | nn.MultiheadAttention),
                on_data=not self._touched,
                with_grad=torch.is_grad_enabled(),
                off_from=self._off_from(path),
            )
        )

    def _off_from(self, path: str) -> str | None:
        parts = path.split(".") if path else []
        above = [".".join(parts[:i]) for i in range(len(parts) + 1)]
        return next((p for p in above if not self._module.get_submodule(p).training), None)

    def _on_enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(module)
        if isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1:
            self._add("dropout", live=module.training)
        has_own = next(module.parameters(recurse=False), None) is not None
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if has_own and first is not None and not self.repeats:
            self._look_for_repeats(module, first)

    def _look_for_repeats(self, module: nn.Module, value: Tensor) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            known = self._inputs.setdefault((id(module), tuple(value.shape)), [])
            same = sum(torch.equal(value, other) for other in known)
            self.repeats = same >= _PASSES - 1 or (not self._touched and _repeats_itself(value))
            if len(known) < _PASSES:
                known.append(value.detach())

    def _on_leave(self, module: nn.Module, _args: Any, _result: Any) -> None:
        if self._stack and self._stack[-1] is module:
            self._stack.pop()


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training")
_ATTENTION = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight"),
    *("in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight"),
    *("out_proj_bias", "training"),
)


_PASSES = 3
"""So many passes over the same input are an average over masks; two may be loss and metric."""


def _repeats_itself(value: Tensor) -> bool:
    """Whether the rows come several times, one block after the other or each in a row."""
    rows = value.size(0) if value.dim() > 1 else 0
    for count in range(_PASSES, min(rows // 2, 256) + 1):
        if rows % count == 0:
            blocks = value.reshape(count, rows // count, *value.shape[1:])
            if torch.equal(blocks, blocks[:1].expand_as(blocks)):
                return not torch.equal(value, value[:1].expand_as(value))
            in_a_row = value.reshape(rows // count, count, *value.shape[1:])
            if torch.equal(in_a_row, in_a_row[:, :1].expand_as(in_a_row)):
                return not torch.equal(value, value[:1].expand_as(value))
    return False
