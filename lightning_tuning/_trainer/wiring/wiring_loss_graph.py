"""Whether the loss leads to the parameters, with all its parts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.probe import Probe, Watch
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.step_trace import MODEL, Intercept, StepTrace, TracedCall
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.loss_calls import LOSS_FUNCTIONS
from lightning_tuning.functional.wiring import wiring_loss_flow as rules
from lightning_tuning.functional.wiring.wiring_loss_flow import GraphEvidence, Term

_BATCHES = 2
_CANDIDATES = 8
_NO_GRADIENT = 1e-5
_SAME_LOSS = 1e-6
_SAME_VALUE = ("detach", "get", "clone", "float", "to", "double", "tensor", "cpu")


@dataclasses.dataclass(kw_only=True, eq=False)
class _Backward:
    """What went backward in a step, as it is seen."""

    loss: float = 0.0
    roots: int = 0
    has_graph: bool = False
    reached: set[int] = dataclasses.field(default_factory=set)
    norms: tuple[Tensor, ...] = ()

    def before(self, call: TracedCall) -> None:
        if call.function is Tensor.backward:
            root = call.args[0].detach()
            self.roots += 1
            self.loss += float(root.sum())
            self.has_graph |= call.args[0].grad_fn is not None

    def after(self, call: TracedCall) -> None:
        if call.function is not Tensor.backward:
            return
        for place, parameter in enumerate(call.trace.module.parameters()):
            if parameter.grad is not None:
                self.reached.add(place)
                self.norms += (parameter.grad.detach().float().norm(),)

    def gradient(self) -> Tensor:
        return torch.stack([norm.cpu() for norm in self.norms]) if self.norms else torch.zeros(1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Scalar:
    number: int
    name: str
    value: Tensor
    no_graph: bool


class _Scalars:
    """Notes the single numbers of a step that may be parts of a loss."""

    def __init__(self) -> None:
        self.seen: list[_Scalar] = []
        self._count = 0

    def __call__(self, call: TracedCall) -> None:
        value = call.value
        if not _may_be_a_term(call.function, value):
            return
        self._count += 1
        if value.requires_grad and not value.is_leaf:
            value.retain_grad()
        if value.requires_grad or call.trace.marks(value) & MODEL:
            self.seen.append(
                _Scalar(
                    number=self._count,
                    name=call.name,
                    value=value,
                    no_graph=not value.requires_grad,
                )
            )


def _may_be_a_term(function: Callable[..., Any], value: Any) -> bool:
    """Whether a value is a number that learns, or a loss; Lightning's own logging has neither."""
    if not isinstance(value, Tensor) or value.dim() > 0 or not value.is_floating_point():
        return False
    name = getattr(function, "__name__", "")
    if LOSS_FUNCTIONS.get(name) is function:
        return True
    return value.requires_grad and name.strip("_") not in _SAME_VALUE


def _shifted(number: int, delta: float) -> Intercept:
    """Return what adds to the value of the how-manieth scalar; its gradient stays."""
    count = 0

    def instead(
        function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        nonlocal count
        value = function(*args, **kwargs)
        if _may_be_a_term(function, value):
            count += 1
            if count == number:
                return value + delta
        return value

    return Intercept(instead)


def measure(probe: Probe) -> GraphEvidence:
    """Look at what goes backward; shift the value of what has no gradient, and see who cares."""
    if not any(p.requires_grad for p in probe.module.parameters()):
        return GraphEvidence(reason="no parameter requires a gradient")
    count = len(probe.batches(_BATCHES))
    probe.rewind()
    found = [_looked_at(probe, number) for number in range(count)]
    for evidence in found:
        if evidence.reason:
            return evidence
    return min(found, key=_badness)


def _badness(found: GraphEvidence) -> tuple[bool, bool, bool, int]:
    return not found.has_graph, not found.reaches, found.constant, len(found.terms)


def _looked_at(probe: Probe, batch: int) -> GraphEvidence:
    plain, scalars, error = _step(probe, batch)
    if plain.roots == 0:
        return GraphEvidence(reason=error or "no loss was sent backward")
    if not plain.has_graph or not plain.reached:
        if error and plain.has_graph:
            return GraphEvidence(reason=error)
        return GraphEvidence(has_graph=plain.has_graph, reaches=False)
    if _is_constant(probe, batch, plain):
        return GraphEvidence(constant=True)
    return GraphEvidence(terms=tuple(_terms(probe, batch, plain, scalars)))


def _is_constant(probe: Probe, batch: int, plain: _Backward) -> bool:
    """Whether neither training nor quite other weights change a loss without gradient."""
    if float(plain.gradient().max()) > _NO_GRADIENT:
        return False
    learning = [p for p in probe.module.parameters() if p.requires_grad]
    for factor in (-1.0, 0.3, 2.0):
        changed, _, error = _step(probe, batch, _rewritten(learning, factor))
        moved = not abs(changed.loss - plain.loss) <= _SAME_LOSS
        if error or moved or float(changed.gradient().max()) > _NO_GRADIENT:
            return False
    losses = ordinary_run(probe).run.losses
    return len(losses) > 0 and all(abs(loss - plain.loss) <= _SAME_LOSS for loss in losses)


def _step(probe: Probe, batch: int, *watch: Watch) -> tuple[_Backward, list[_Scalar], str]:
    backward, scalars = _Backward(), _Scalars()
    trace = StepTrace(probe.module, before=[backward.before], after=[scalars, backward.after])
    try:
        data = probe.batches(_BATCHES)[batch]
        probe.step(data, mode="silent", backward=True, watch=[trace, *watch])
    except StepError as error:
        return backward, scalars.seen, str(error)
    return backward, scalars.seen, ""


def _terms(
    probe: Probe, batch: int, plain: _Backward, scalars: Sequence[_Scalar]
) -> Iterator[Term]:
    trainable = [p.requires_grad for p in probe.module.parameters()]
    unreached = [i for i, learns in enumerate(trainable) if learns and i not in plain.reached]
    loose = [s for s in scalars if s.value.grad is None and (not s.no_graph or unreached)]
    for scalar in loose[:_CANDIDATES]:
        share = _share_without_gradient(probe, batch, plain, scalar)
        if share is None or (scalar.no_graph and not _depends(probe, batch, scalar, unreached)):
            continue
        if not _swaps_values(probe, batch, plain, scalars):
            yield Term(name=scalar.name, value=float(scalar.value.detach()), share=share)
        return


def _share_without_gradient(
    probe: Probe, batch: int, plain: _Backward, scalar: _Scalar
) -> float | None:
    """Return how the loss rises with a scalar's value; None if not, or if a gradient changes."""
    delta = 0.1 * abs(float(scalar.value.detach())) + 0.01
    shifted, _, error = _step(probe, batch, _shifted(scalar.number, delta))
    share = (shifted.loss - plain.loss) / delta
    if error or abs(shifted.loss - plain.loss) <= 1e-5 * (1 + abs(plain.loss)):
        return None
    old, new = plain.gradient(), shifted.gradient()
    same = old.shape == new.shape and bool(((old - new).abs() <= 1e-4 * old + 1e-10).all())
    return share if same else None


def _swaps_values(probe: Probe, batch: int, plain: _Backward, scalars: Sequence[_Scalar]) -> bool:
    """Whether a value was exchanged and a gradient kept: ``a + (b - a).detach()``."""
    joined = [s for s in scalars if s.value.grad is not None and float(s.value.grad.abs()) > 1e-3]
    for scalar in joined[-_CANDIDATES:]:
        delta = 0.1 * abs(float(scalar.value.detach())) + 0.01
        shifted, _, error = _step(probe, batch, _shifted(scalar.number, delta))
        assert scalar.value.grad is not None
        slope = float(scalar.value.grad)
        change = (shifted.loss - plain.loss) / delta
        if not error and abs(change - slope) > 0.3 * abs(slope) + 1e-3:
            return True
    return False


def _depends(probe: Probe, batch: int, scalar: _Scalar, places: Sequence[int]) -> bool:
    """Whether a value changes with parameters that get no gradient."""
    parameters = list(probe.module.parameters())
    _, moved, _ = _step(probe, batch, _nudged([parameters[place] for place in places]))
    values = [float(s.value.detach()) for s in moved if s.number == scalar.number]
    return bool(values) and values[0] != float(scalar.value.detach())


@contextlib.contextmanager
def _nudged(parameters: Sequence[Tensor]) -> Iterator[None]:
    # the probe puts the weights back after the step
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.01).add_(0.001)
    yield


@contextlib.contextmanager
def _rewritten(parameters: Sequence[Tensor], factor: float) -> Iterator[None]:
    with torch.no_grad():
        for parameter in parameters:
            ramp = torch.linspace(-1, 1, parameter.numel(), device=parameter.device)
            parameter.mul_(factor).add_(0.2 * ramp.view_as(parameter).to(parameter))
    yield


TOPIC = Topic(measure=measure, rules={"loss_detached": rules.loss_detached})
