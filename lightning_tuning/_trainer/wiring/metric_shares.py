"""Whether a share of right answers is taken of all scores instead of all answers."""

from __future__ import annotations

from torch import Tensor

from lightning_tuning._trainer.step_trace import DATA, MODEL, TracedCall
from lightning_tuning.functional.wiring.wiring_metrics import MetricFault

_NUMBERS = ("numel", "nelement")
_COMPARISONS = ("eq", "ne")
_KEEPS = ("float", "double", "long", "int", "to", "detach", "cpu", "and", "logical_and", "mul")
_SUMS = ("sum", "count_nonzero")


class Shares:
    """Notes sums of comparisons with labels that are divided by the number of scores.

    There are several scores to each answer, so that such a share can't reach one.

    Args:
        stage: What is traced.
    """

    def __init__(self, stage: str) -> None:
        self.faults: list[MetricFault] = []
        self._stage = stage
        self._counted: dict[int, tuple[int, ...]] = {}
        self._answers: dict[int, tuple[Tensor, tuple[int, ...]]] = {}

    def __call__(self, call: TracedCall) -> None:
        """Look at a call."""
        given = call.argument(0, "input")
        if not isinstance(given, Tensor):
            return
        if call.name in _NUMBERS and given.is_floating_point():
            if call.trace.marks(given) & 3 == MODEL | DATA:
                self._counted[given.numel()] = tuple(given.shape)
        elif call.name in _COMPARISONS:
            other = call.argument(1, "other")
            if isinstance(other, Tensor) and DATA in map(call.trace.marks, (given, other)):
                self._know(call.value, tuple(call.value.shape))
        elif (known := self._answers.get(id(given))) is not None and known[0] is given:
            self._follow(call, known[1])

    def _follow(self, call: TracedCall, shape: tuple[int, ...]) -> None:
        if call.name in _KEEPS or call.name in _SUMS:
            self._know(call.value, shape)
        elif call.name == "div" and call.args[0].dim() == 0:
            number = call.argument(1, "other")
            scores = self._counted.get(number, ()) if isinstance(number, int) else ()
            if len(scores) == len(shape) + 1 and _without_one(scores, shape):
                self.faults.append(
                    MetricFault(stage=self._stage, function="numel", shape=scores, answers=shape)
                )

    def _know(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        self._answers[id(tensor)] = (tensor, shape)


def _without_one(scores: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a shape is another one less a dimension, that of several classes."""
    return any(scores[:i] + scores[i + 1 :] == shape and n > 1 for i, n in enumerate(scores))
