"""Which way the loss goes as the outputs come closer to their targets."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.ordinary_run import within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.step_trace import MODEL, StepTrace, TracedCall, scaled_backward
from lightning_tuning._trainer.wiring.seen_losses import SeenLoss, SeenStep, seen_steps
from lightning_tuning._trainer.wiring.target_pairs import TargetPairs
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.wiring import wiring_loss_flow as rules
from lightning_tuning.functional.wiring.wiring_loss_flow import SignEvidence

_STEPS = 100
_ENDS = 5


class _Slopes:
    """Notes, for each backward pass of a step, how its pairs pull."""

    def __init__(self) -> None:
        self.pairs = TargetPairs()
        self.steps: list[list[float]] = []

    def __call__(self, call: TracedCall) -> None:
        self.pairs(call)
        if call.function is Tensor.backward:
            self.steps.append(self.pairs.take().towards())


def measure(probe: Probe) -> SignEvidence:
    """Look at the slopes of known losses, and at both ways of training with hand-written ones."""
    optimizers = probe.trainer.optimizers
    upwards = {bool(group.get("maximize")) for o in optimizers for group in o.param_groups}
    if len(optimizers) != 1 or len(upwards) > 1:
        return SignEvidence(reason="several optimizers or groups may pull against each other")
    if not _last_layer_learns(probe):
        return SignEvidence(reason="the last layer is frozen, so it may be an attack on it")
    return _seen(probe, -1.0 if upwards == {True} else 1.0)


def _seen(probe: Probe, sign: float) -> SignEvidence:
    slopes = _Slopes()
    steps = seen_steps(probe, after=[slopes])
    if any(step.error for step in steps):
        return SignEvidence(reason=next(step.error for step in steps if step.error))
    if any(step.trained for step in steps):
        return SignEvidence(negated=_negated(steps, sign), pairs=1)
    pairs = [slope * sign for step in slopes.steps for slope in step]
    away = len(slopes.steps) == len(steps) and all(
        step and all(slope * sign > 0 for slope in step) for step in slopes.steps
    )
    if not away:
        return SignEvidence(pairs=len(pairs))
    fall, agreement = _trained(probe, 1.0)
    change, agreement_negated = _trained(probe, -1.0)
    return SignEvidence(
        pairs=len(pairs),
        away=True,
        fall=fall * sign,
        rise=-change * sign,
        agreement=agreement,
        agreement_negated=agreement_negated,
    )


def _last_layer_learns(probe: Probe) -> bool:
    """Whether the last layer with parameters of its own that a step calls has one that learns."""
    called: list[nn.Module] = []
    [batch] = probe.batches(1)
    probe.rewind()
    with contextlib.suppress(StepError):
        probe.step(batch, mode="silent", watch=[_noting_calls(probe.module, called)])
    return not called or any(p.requires_grad for p in called[-1].parameters(recurse=False))


@contextlib.contextmanager
def _noting_calls(module: nn.Module, called: list[nn.Module]) -> Iterator[None]:
    layers = [m for m in module.modules() if next(m.parameters(recurse=False), None) is not None]

    def note(layer: nn.Module, _: object) -> None:
        called.append(layer)

    # a rewind takes hooks away, so they stand around the step alone
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _negated(steps: Sequence[SeenStep], sign: float) -> str:
    """Return the loss function whose negative is the loss in each step, by one factor."""
    factors = []
    names = set()
    for step in steps:
        if len(step.trained) != 1 or step.loss is None:
            return ""
        [seen] = step.trained
        total = seen.call.value.double().sum()
        if seen.target_marks & MODEL or not _pulls_down(seen, sign) or float(total) == 0:
            return ""
        factors.append(float(-step.loss.double() * sign / total) * seen.call.value.numel())
        names.add(seen.call.name)
    alike = max(factors) - min(factors) <= 0.1 * abs(max(factors))
    return names.pop() if min(factors) > 0 and alike and len(names) == 1 else ""


def _pulls_down(seen: SeenLoss, sign: float) -> bool:
    """Whether the loss falls as this value rises, by the same for each of its elements."""
    grad = seen.call.result.grad
    if grad is None:
        return False
    slope = grad.double() * sign
    alike = slope.max() - slope.min() <= 1e-3 * slope.abs().max()
    return bool((slope < 0).all()) and bool(alike)


def _trained(probe: Probe, factor: float) -> tuple[float, float]:
    """Train for a while; return by how much the loss fell and the agreement rose, as a share."""
    pairs = TargetPairs()
    agreements: list[Tensor] = []
    in_time = within_time(probe)

    def note(step: int, loss: Tensor) -> bool:
        agreement = pairs.take().agreement()
        if agreement is not None:
            agreements.append(agreement)
        return in_time(step, loss)

    trace = StepTrace(probe.module, after=[pairs])
    run = probe.run(_STEPS, watch=[scaled_backward(factor), trace], until=note)
    losses = [loss for loss in run.losses if math.isfinite(loss)]
    known = torch.stack(agreements).tolist() if agreements else []
    known = [value for value in known if math.isfinite(value)]
    if len(losses) < 2 * _ENDS or len(known) < 2 * _ENDS:
        return 0.0, 0.0
    fall = sum(losses[:_ENDS]) - sum(losses[-_ENDS:])
    first, last = sum(known[:_ENDS]), sum(known[-_ENDS:])
    return fall / _ENDS, (last - first) / max(abs(first), abs(last), 1e-12)


TOPIC = Topic(measure=measure, rules={"loss_sign_flipped": rules.loss_sign_flipped})
