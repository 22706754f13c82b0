"""Where a loss first is no number."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_tuning._trainer.ordinary_run import OrdinaryRun, ordinary_run, within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.step_trace import StepTrace, tensors_in
from lightning_tuning._trainer.wiring.first_non_finite import FirstNonFinite, norm_of
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.wiring import wiring_non_finite as rules
from lightning_tuning.functional.wiring.wiring_non_finite import NonFiniteEvidence

_BATCHES = 3


def measure(probe: Probe) -> NonFiniteEvidence:
    """Look at first steps and at a short training; where one is bad, find the operation."""
    batches = probe.batches(_BATCHES)
    if not all(_is_finite(batch.data) for batch in batches):
        return NonFiniteEvidence(reason="the data themselves hold values that are not finite")
    probe.rewind()
    for batch in batches:
        first = FirstNonFinite(probe.module)
        trace = StepTrace(probe.module, after=[first])
        try:
            step = probe.step(batch, backward=True, watch=[first.following(), trace])
        except StepError as error:
            return NonFiniteEvidence(reason=str(error))
        bad_loss = step.loss is not None and not bool(torch.isfinite(step.loss))
        if bad_loss or (first.bad_gradient and _scaler(probe) is None):
            return _evidence(first, steps=0, growth=1.0, losses=())
    own = ordinary_run(probe)
    bad = [step for step, loss in enumerate(own.run.losses) if not math.isfinite(loss)]
    if not bad and not own.run.error:
        return NonFiniteEvidence(steps=len(own.run.losses))
    return _located(probe, own, bad[0] if bad else len(own.run.losses))


def _located(probe: Probe, own: OrdinaryRun, step: int) -> NonFiniteEvidence:
    """Train once more up to the bad step, and look at what it computes."""
    first = FirstNonFinite(probe.module, on=step <= 1)
    probe.rewind()
    start = norm_of(probe.module)
    in_time = within_time(probe)

    def until(number: int, loss: Tensor) -> bool:
        # the gradient of the step before may be what made the weights bad
        first.on = number >= step - 2
        return in_time(number, loss)

    trace = StepTrace(probe.module, after=[first])
    probe.run(step + 1, watch=[first.following(), trace], until=until)
    growth = first.weights / max(start, 1e-12) if first.operation else 1.0
    if first.operation == "" and own.run.error:
        return NonFiniteEvidence(reason=own.run.error)
    return _evidence(first, steps=step, growth=growth, losses=own.run.losses[:step])


def _evidence(
    first: FirstNonFinite, *, steps: int, growth: float, losses: tuple[float, ...]
) -> NonFiniteEvidence:
    largest = max((abs(loss) for loss in losses), default=0.0)
    return NonFiniteEvidence(
        steps=steps,
        found=True,
        operation=first.operation,
        module=first.module,
        backward=first.backward,
        largest_input=first.largest_input,
        largest_gradient=first.largest_gradient,
        growth=growth,
        loss_growth=largest / max(abs(losses[0]), 1.0) if losses else 1.0,
    )


def _scaler(probe: Probe) -> Any:
    # fp16 scales until something overflows, and skips those steps
    return getattr(probe.trainer.precision_plugin, "scaler", None)


def _is_finite(data: Any) -> bool:
    floats = [tensor for tensor in tensors_in(data) if tensor.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in floats)


TOPIC = Topic(measure=measure, rules={"non_finite": rules.non_finite})
