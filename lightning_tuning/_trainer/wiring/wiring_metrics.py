"""How a program compares its outputs with labels where it does not train by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.step_trace import DATA, MODEL, StepTrace, TracedCall, batch_size
from lightning_tuning._trainer.wiring.meetings import Meetings, spread_over_each_other
from lightning_tuning._trainer.wiring.metric_dims import winners_of_other_dims
from lightning_tuning._trainer.wiring.metric_shares import Shares
from lightning_tuning._trainer.wiring.seen_losses import SeenStep, seen_steps
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.loss_calls import LOSS_FUNCTIONS
from lightning_tuning.functional.wiring import wiring_metrics as rules
from lightning_tuning.functional.wiring.wiring_metrics import MetricEvidence, MetricFault

_WRONG = 4
_WINNERS = ("argmax", "max", "topk", "softmax", "log_softmax", "amax")
_OVER_ONE = ("argmax",)
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or")
_DIFFERENCES = ("sub", "rsub")
_VALUES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


class _Winners:
    """Marks what is taken over the batch, and notes where that meets labels.

    Args:
        stage: What is traced.
        classes: Classes and further sizes of the program's logits; None where there are none.
    """

    def __init__(self, stage: str, classes: tuple[int, ...] | None) -> None:
        self.faults: list[MetricFault] = []
        self.comparisons = 0
        self._stage = stage
        self._classes = classes
        self._taken: MetricFault | None = None

    def __call__(self, call: TracedCall) -> None:
        if call.name in _WINNERS:
            self._mark(call)
        elif call.name in _COMPARISONS:
            self._compare(call)

    def _mark(self, call: TracedCall) -> None:
        source, dim = call.argument(0, "input"), _dim(call)
        if not isinstance(source, Tensor) or call.trace.marks(source) & 3 != MODEL | DATA:
            return
        if not source.is_floating_point() or not self._is_wrong(call, source, dim):
            return
        self._taken = MetricFault(
            stage=self._stage, function=call.name, shape=tuple(source.shape), dim=dim
        )
        values = [call.value] if isinstance(call.value, Tensor) else list(call.value)
        for tensor in values:
            call.trace.mark(tensor, _WRONG)

    def _is_wrong(self, call: TracedCall, source: Tensor, dim: int | None) -> bool:
        size = batch_size(call.trace.batch)
        if size is None or size < 2 or source.dim() < 2 or source.size(0) != size:
            return False
        if dim is not None and source.size(dim) == 1:
            return call.name in _OVER_ONE
        if self._classes is None or tuple(source.shape[1:]) != self._classes:
            return False
        return dim == 0 or (dim is None and call.name == "argmax")

    def _compare(self, call: TracedCall) -> None:
        first, second = call.argument(0, "input"), call.argument(1, "other")
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        marks = {call.trace.marks(first), call.trace.marks(second)}
        if DATA not in marks or len(marks) != 2:
            return
        self.comparisons += 1
        if any(mark & _WRONG for mark in marks) and self._taken is not None:
            self.faults.append(self._taken)


class _Spreads:
    """Notes outputs without gradient that spread over the targets of other examples.

    Args:
        stage: What is traced.
        differences: Whether differences and losses count besides comparisons.
    """

    def __init__(self, stage: str, *, differences: bool) -> None:
        self.faults: list[MetricFault] = []
        self._stage = stage
        self._names = _COMPARISONS + (_DIFFERENCES if differences else ())
        self._losses = _VALUES if differences else ()

    def __call__(self, call: TracedCall) -> None:
        known = call.name in self._losses and LOSS_FUNCTIONS[call.name] is call.function
        if call.name not in self._names and not known:
            return
        first = call.argument(0, "input")
        second = call.argument(1, "target" if known else "other")
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        marks = call.trace.marks
        size = batch_size(call.trace.batch)
        for output, target in ((first, second), (second, first)):
            pair = marks(output) & 3 == MODEL | DATA and marks(target) == DATA
            if pair and spread_over_each_other(output, target, size):
                self.faults.append(
                    MetricFault(
                        stage=self._stage,
                        function=call.name,
                        shape=tuple(output.shape),
                        other=tuple(target.shape),
                    )
                )


def measure(probe: Probe) -> MetricEvidence:
    """Trace training steps and a validation."""
    meetings = Meetings()
    steps = seen_steps(probe, after=[meetings])
    classes = _classes(steps)
    size = batch_size(steps[0].batch) if steps else None
    loss_is_right = not any(
        spread_over_each_other(m.output, m.target, size) for m in meetings.seen
    ) and not any(
        spread_over_each_other(s.call.input, s.call.target, s.batch_size)
        for step in steps
        for s in step.trained
    )
    winners = [_Winners("training", classes), _Winners("validation", classes)]
    spreads = [
        _Spreads("training", differences=False),
        _Spreads("validation", differences=loss_is_right),
    ]
    shares = [Shares("training"), Shares("validation")]
    seen_steps(probe, after=[winners[0], spreads[0], shares[0]])
    _validate(probe, StepTrace(probe.module, after=[winners[1], spreads[1], shares[1]]))
    faults = [fault for w in winners for fault in w.faults]
    faults += [fault for spread in spreads for fault in spread.faults]
    faults += [fault for share in shares for fault in share.faults]
    faults += winners_of_other_dims(probe)
    return MetricEvidence(
        faults=tuple(dict.fromkeys(faults)), comparisons=sum(w.comparisons for w in winners)
    )


def _validate(probe: Probe, trace: StepTrace) -> None:
    try:
        with torch.no_grad():
            probe.validate(num_batches=2, watch=[trace])
    except (StepError, CannotProbeError):
        return


def _classes(steps: Sequence[SeenStep]) -> tuple[int, ...] | None:
    """Return the shape of one example's logits, where the program trains by a softmax loss."""
    shapes = {
        tuple(seen.call.input.shape[1:])
        for step in steps
        for seen in step.trained
        if seen.call.name in ("cross_entropy", "nll_loss")
        and seen.call.input.dim() > 1
        and seen.call.input.size(0) == seen.batch_size
        and seen.target_marks == DATA
    }
    return shapes.pop() if len(shapes) == 1 else None


def _dim(call: TracedCall) -> int | None:
    dim = call.argument(2 if call.name == "topk" else 1, "dim")
    source = call.argument(0, "input")
    if call.name == "topk" and dim is None:
        dim = -1
    return dim % max(source.dim(), 1) if isinstance(dim, int) else None


TOPIC = Topic(measure=measure, rules={"metric_wrong": rules.metric_wrong})
