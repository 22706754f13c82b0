"""Where a program that writes its losses by hand lets an output meet a target."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from lightning_tuning._trainer.step_trace import DATA, MODEL, TracedCall
from lightning_tuning.functional.origins import Origin

_ELEMENTWISE = ("sub", "rsub", "mul", "rmul", "div", "rdiv", "add", "radd")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or")
_DISTANCES = ("pow", "abs", "norm", "mul")


@dataclasses.dataclass(kw_only=True, eq=False)
class Meeting:
    """An elementwise operation of an output and a tensor without gradient.

    Attributes:
        name: The operation.
        output: What the model gave.
        target: The other.
        target_marks: Where that comes from.
        result: What came out; its ``grad`` is there after the backward pass, if it counts.
        origin: The activation that made the output.
        explicit: Whether the program put a dimension into one of them just before.
        distance: Whether a power or the magnitude of the result was taken.
    """

    name: str
    output: Tensor
    target: Tensor
    target_marks: int
    result: Tensor
    origin: Origin | None
    explicit: bool
    distance: bool = False


class Meetings:
    """Notes the meetings of a step, for a :class:`StepTrace`.

    Args:
        comparisons: Whether comparisons count, which have no gradient.
    """

    def __init__(self, *, comparisons: bool = False) -> None:
        self.seen: list[Meeting] = []
        self._names = _ELEMENTWISE + (_COMPARISONS if comparisons else ())
        self._needs_grad = not comparisons
        self._widened: dict[int, Tensor] = {}

    def __call__(self, call: TracedCall) -> None:
        """Note the call if an output meets a target in it."""
        if _widens(call):
            self._widened[id(call.value)] = call.value
        if call.name in _DISTANCES:
            self._note_distance(call)
        if call.name in self._names:
            self._note(call)

    def _note_distance(self, call: TracedCall) -> None:
        first, second = call.argument(0, "input"), call.argument(1, "other")
        for meeting in self.seen:
            if meeting.result is first and (call.name != "mul" or second is first):
                meeting.distance = True

    def _note(self, call: TracedCall) -> None:
        first, second = call.argument(0, "input"), call.argument(1, "other")
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        for output, target in ((first, second), (second, first)):
            if self._is_output(call, output) and self._is_target(call, target):
                self._keep(call, output, target)
                return

    def _is_output(self, call: TracedCall, tensor: Tensor) -> bool:
        graph = tensor.requires_grad or not self._needs_grad
        return graph and call.trace.marks(tensor) == MODEL | DATA

    def _is_target(self, call: TracedCall, tensor: Tensor) -> bool:
        marks = call.trace.marks(tensor)
        if self._needs_grad:
            return not tensor.requires_grad and marks != 0
        return marks == DATA

    def _keep(self, call: TracedCall, output: Tensor, target: Tensor) -> None:
        result = call.value
        if result.requires_grad:
            result.retain_grad()
        self.seen.append(
            Meeting(
                name=call.name,
                output=output,
                target=target,
                target_marks=call.trace.marks(target),
                result=result,
                origin=call.trace.origins.of(output),
                explicit=id(output) in self._widened or id(target) in self._widened,
            )
        )


def _widens(call: TracedCall) -> bool:
    if call.name == "unsqueeze":
        return True
    if call.name != "getitem":
        return False
    index = call.args[1]
    return any(i is None for i in index) if isinstance(index, tuple) else index is None


def spread_over_each_other(output: Tensor, target: Tensor, size: int | None) -> bool:
    """Whether a column meets a row of the same examples, which gives all pairs of a batch.

    Args:
        output: The one.
        target: The other.
        size: Examples in the batch.

    Example:
        >>> spread_over_each_other(torch.zeros(4, 1), torch.zeros(4), 4)
        True
        >>> spread_over_each_other(torch.zeros(4, 3), torch.zeros(4, 1), 4)
        False
    """
    if not size or size < 2 or output.dim() == target.dim():
        return False
    if [d for d in output.shape if d != 1] != [d for d in target.shape if d != 1]:
        return False
    try:
        result = torch.broadcast_shapes(output.shape, target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return bool(math.prod(result) == size * output.numel())
