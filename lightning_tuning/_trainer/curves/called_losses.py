"""The loss functions that a batch calls, seen without changing what it computes."""

from __future__ import annotations

import inspect
import sys
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn._reduction import legacy_get_string

from lightning_tuning.functional.loss_calls import LOSS_FUNCTIONS, LossCall

_NAMES: dict[CodeType, str] = {inspect.unwrap(f).__code__: n for n, f in LOSS_FUNCTIONS.items()}


class CalledLosses:
    """Notes each call of a loss function between ``begin`` and ``end``, by Python's profiler hook.

    A ``TorchFunctionMode`` would see them too, but under one ``nn.TransformerEncoder`` and
    ``nn.MultiheadAttention`` leave their fast path, whose results differ, and ``torch.compile``
    makes other graphs. A call inside of another is not seen, nor one inside a compiled graph. Of
    what a model gave only the shape is kept: it would stay in memory through the backward pass.

    Example:
        >>> calls = CalledLosses()
        >>> calls.begin()
        True
        >>> _ = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(2, 3), torch.ones(2, 3))
        >>> [call] = calls.end()
        >>> call.name, call.options["label_smoothing"]
        ('cross_entropy', 0.1)
    """

    def __init__(self) -> None:
        self._calls: list[LossCall] = []
        self._inside: FrameType | None = None
        self._given: dict[str, Any] = {}

    def begin(self) -> bool:
        """Watch this thread; False where a profiler has the hook already."""
        if sys.getprofile() is not None:
            return False
        sys.setprofile(self._event)
        return True

    def end(self) -> list[LossCall]:
        """Stop watching, and return the calls in their order."""
        if sys.getprofile() == self._event:
            sys.setprofile(None)
        calls, self._calls, self._inside, self._given = self._calls, [], None, {}
        return calls

    def _event(self, frame: FrameType, event: str, value: Any) -> None:
        if event == "call":
            if self._inside is None and frame.f_code in _NAMES:
                self._inside, self._given = frame, dict(frame.f_locals)
        elif event == "return" and frame is self._inside:
            given, self._inside, self._given = self._given, None, {}
            self._note(_NAMES[frame.f_code], given, value)

    def _note(self, name: str, given: dict[str, Any], value: Any) -> None:
        output, target = given.pop("input"), given.pop("target")
        tensors = all(isinstance(part, Tensor) for part in (output, target, value))
        if not tensors or _is_no_step(value):
            return
        average, reduce = given.pop("size_average", None), given.pop("reduce", None)
        if average is not None or reduce is not None:
            given["reduction"] = legacy_get_string(average, reduce, emit_warning=False)
        # other monitors may have a function mode on
        with torch._C.DisableTorchFunction():
            shape = torch.empty(1, dtype=output.dtype, device=output.device).expand(output.shape)
            call = LossCall(
                name=name,
                input=shape,
                target=target.detach(),
                options={k: v.detach() if isinstance(v, Tensor) else v for k, v in given.items()},
                value=value.detach(),
                result=value,
            )
        self._calls.append(call)


def _is_no_step(value: Tensor) -> bool:
    """Whether torch only learns shapes, stands for many examples, or computes a part again."""
    return (
        torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
        or torch._C._functorch.is_functorch_wrapped_tensor(value)
        or torch._C._current_graph_task_id() != -1
    )
