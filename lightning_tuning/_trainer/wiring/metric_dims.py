"""Which dimension of a layer's output a metric takes its winners over, and which the loss does."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.step_trace import DATA, StepTrace, TracedCall
from lightning_tuning._trainer.wiring.numbered_layers import (
    EXACT_INTEGERS,
    CalledLayers,
    Numbered,
)
from lightning_tuning.functional.loss_calls import LossCall
from lightning_tuning.functional.wiring.wiring_metrics import MetricFault

_TRIED_LAYERS = 3
_OTHER_WINNERS = 4
_WINNERS = ("argmax", "max")
_COMPARISONS = ("eq", "ne")


def winners_of_other_dims(probe: Probe) -> tuple[MetricFault, ...]:
    """Follow the outputs of a layer, by number, into the training's softmax and a metric.

    Only of layers that answer for several positions of each example: what is compared with labels
    has to be the winner among what the softmax normalises.
    """
    called = CalledLayers(probe.module)
    batch = probe.batches(1)[0]
    probe.rewind()
    try:
        probe.step(batch, mode="eval", seed=1, watch=[called])
        names = [n for n, times in called.times.items() if times == 1]
        for name in names[::-1][:_TRIED_LAYERS]:
            numbered = Numbered(probe.module.get_submodule(name))
            step = probe.step(batch, mode="eval", seed=1, watch=[numbered])
            trained = [call for call in step.calls if call.trained]
            classes = {_softmax_dim(call, numbered.shape) for call in trained}
            if len(classes) == 1 and None not in classes:
                return _in_validation(probe, name, next(iter(classes)))
    except (StepError, CannotProbeError):
        pass
    return ()


def _softmax_dim(call: LossCall, shape: torch.Size | None) -> int | None:
    """Return the dimension of the layer's output that a softmax loss normalises over."""
    if call.name != "cross_entropy" or call.input.dim() < 2 or shape is None or len(shape) < 3:
        return None
    dims = _varying(call.input, 1, shape)
    return dims[0] if len(dims) == 1 and shape[dims[0]] == call.input.size(1) else None


def _varying(tensor: Tensor, dim: int, shape: torch.Size) -> list[int]:
    """Return the dimensions of the layer's output that a tensor of its numbers runs over."""
    with torch._C.DisableTorchFunction():
        values = tensor.detach().float()
        source = values.round()
        known = bool(((values == source) & (source >= 0) & (source < shape.numel())).all())
        if not known or shape.numel() >= EXACT_INTEGERS or _repeats(source):
            return []
        indices = torch.unravel_index(source.long().movedim(dim, -1), shape)
        return [i for i, index in enumerate(indices) if bool((index != index[..., :1]).any())]


def _repeats(source: Tensor) -> bool:
    return bool((source.flatten().sort().values.diff() == 0).any())


def _in_validation(probe: Probe, name: str, classes: int | None) -> tuple[MetricFault, ...]:
    assert classes is not None
    numbered = Numbered(probe.module.get_submodule(name))
    winners = _Winners(numbered, classes)
    with torch.no_grad():
        trace = StepTrace(probe.module, after=[winners])
        probe.validate(num_batches=2, watch=[numbered, trace])
    return tuple(winners.faults)


class _Winners:
    """Notes winners over another dimension than the classes that are compared with labels."""

    def __init__(self, numbered: Numbered, classes: int) -> None:
        self.faults: list[MetricFault] = []
        self._numbered = numbered
        self._classes = classes
        self._taken: MetricFault | None = None

    def __call__(self, call: TracedCall) -> None:
        if call.name in _WINNERS:
            self._mark(call)
        elif call.name in _COMPARISONS and self._taken is not None:
            operands = (call.argument(0, "input"), call.argument(1, "other"))
            marks = {call.trace.marks(t) for t in operands if isinstance(t, Tensor)}
            if DATA in marks and any(mark & _OTHER_WINNERS for mark in marks):
                self.faults.append(self._taken)

    def _mark(self, call: TracedCall) -> None:
        source, dim = call.argument(0, "input"), call.argument(1, "dim")
        shape = self._numbered.shape
        if not isinstance(source, Tensor) or not isinstance(dim, int) or shape is None:
            return
        if not source.is_floating_point() or source.dim() < 2:
            return
        over = _varying(source, dim, shape)
        others = [d for d in range(source.dim()) if d != dim % source.dim()]
        across = [_varying(source, d, shape) for d in others]
        if over and self._classes not in over and [self._classes] in across:
            self._taken = MetricFault(
                stage="validation", function=call.name, shape=tuple(source.shape), dim=dim
            )
            indices = call.value if call.name == "argmax" else call.value[1]
            call.trace.mark(indices, _OTHER_WINNERS)
