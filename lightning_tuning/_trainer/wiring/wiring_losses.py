"""What enters the loss functions of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.step_trace import Intercept, TracedCall
from lightning_tuning._trainer.wiring.seen_losses import (
    SeenLoss,
    SeenStep,
    by_place,
    finite,
    seen_steps,
)
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.chance_loss import class_dim
from lightning_tuning.functional.wiring import wiring_losses as rules
from lightning_tuning.functional.wiring.wiring_losses import LossEvidence, LossInput

_CLASSES = ("cross_entropy", "nll_loss")
_RESCUE_STEPS = 100
_KNOWS = 0.9
"""What knows something of the targets has a loss below this share of chance."""


class _Softmaxes:
    """Notes softmaxes of softmaxes, and those over one entry, in the steps that train."""

    def __init__(self) -> None:
        self.twice: list[tuple[str, Tensor]] = []
        self.over_one: list[tuple[str, Tensor]] = []
        self.no_gradient = True

    def __call__(self, call: TracedCall) -> None:
        value = call.value
        if call.function is Tensor.backward:
            self._look_at(call.trace.module.parameters())
        elif call.name in ("log_softmax", "logsumexp", "softmax") and value.requires_grad:
            self._note(call, value)

    def _note(self, call: TracedCall, value: Tensor) -> None:
        source, dim = call.argument(0, "input"), call.argument(1, "dim")
        if not isinstance(dim, int) or source.dim() == 0:
            return
        origin = call.trace.origins.of(source)
        if call.name != "softmax" and origin is not None and origin.name == "softmax":
            value.retain_grad()
            self.twice.append((call.name, value))
        if call.name != "logsumexp" and source.size(dim) == 1:
            self.over_one.append((call.name, value))

    def _look_at(self, parameters: Any) -> None:
        grads = [p.grad for p in parameters if p.grad is not None]
        if any(bool((grad != 0).any()) for grad in grads) or not grads:
            self.no_gradient = False

    def takes_twice(self) -> str:
        return next((name for name, value in self.twice if value.grad is not None), "")

    def only_over_one(self) -> str:
        return self.over_one[0][0] if self.over_one and self.no_gradient else ""


def measure(probe: Probe) -> LossEvidence:
    """Trace a few steps, and look at the input of each loss that they train by."""
    softmaxes = _Softmaxes()
    steps = seen_steps(probe, after=[softmaxes])
    inputs = [_loss_input(steps, seen) for seen in by_place(steps)]
    inputs = [_with_rescue(probe, seen) for seen in inputs]
    return LossEvidence(
        inputs=tuple(inputs),
        log_of_probabilities=softmaxes.takes_twice(),
        softmax_over_one=softmaxes.only_over_one(),
        batches=len(steps),
    )


def _loss_input(steps: Sequence[SeenStep], seen: Sequence[SeenLoss]) -> LossInput:
    first = seen[0].call
    values = torch.cat([finite(s.call.input) for s in seen])
    dims = [_dim_of_classes(s) for s in seen]
    sums, log_sums = [], []
    for s, dim in zip(seen, dims, strict=True):
        given = s.call.input.detach().float()
        if dim is not None and s.call.input.dim() > 0:
            sums.append((given.sum(dim) - 1).abs().amax())
            log_sums.append(given.logsumexp(dim).abs().amax())
    chains = {s.call.origin.chain() if s.call.origin else () for s in seen}
    return LossInput(
        name=first.name,
        chain=chains.pop() if len(chains) == 1 else (),
        classes=first.input.size(dims[0]) if dims[0] is not None and first.input.dim() else 1,
        lowest=float(values.amin()) if len(values) else float("nan"),
        highest=float(values.amax()) if len(values) else float("nan"),
        sum_error=float(torch.stack(sums).amax()) if sums else float("inf"),
        log_sum_error=float(torch.stack(log_sums).amax()) if log_sums else float("inf"),
        is_all=all(step.is_all(s) for step in steps for s in step.losses if s in seen),
    )


def _dim_of_classes(seen: SeenLoss) -> int | None:
    if seen.call.name in _CLASSES:
        return class_dim(seen.call)
    if seen.call.name != "kl_div":
        return seen.call.input.dim() - 1 if seen.call.input.dim() > 1 else None
    target = seen.call.target.detach().float()
    if seen.call.options.get("log_target"):
        target = target.exp()
    for dim in (target.dim() - 1, min(1, target.dim() - 1)):
        if dim >= 0 and target.size(dim) > 1 and bool((target.sum(dim) - 1).abs().amax() < 1e-2):
            return dim
    return None


def _with_rescue(probe: Probe, seen: LossInput) -> LossInput:
    """Try the function that takes probabilities, where only the values tell of them."""
    name = "binary_cross_entropy_with_logits"
    if seen.name != name or not seen.within_unit or seen.chain or not seen.is_all:
        return seen
    run = probe.run(_RESCUE_STEPS, watch=[Intercept(_of_probabilities)])
    ordinary = ordinary_run(probe)
    own, chance = ordinary.run, ordinary.chance
    if len(run.losses) < len(own.losses) or not own.losses:
        return seen
    last = len(own.losses) // 5 + 1
    before, after = sum(own.losses[-last:]) / last, sum(run.losses[-last:]) / last
    # logits that hardly vary may lie near the targets' mean, and know nothing as probabilities
    if chance is not None and after > _KNOWS * chance:
        return seen
    return LossInput(**{**vars(seen), "rescue": (before - after) / max(abs(own.losses[0]), 1e-12)})


def _of_probabilities(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    if function is not functional.binary_cross_entropy_with_logits:
        return function(*args, **kwargs)
    options = {k: v for k, v in kwargs.items() if k in ("input", "target", "weight", "reduction")}
    return functional.binary_cross_entropy(*args[:3], **options)


TOPIC = Topic(
    measure=measure,
    rules={
        "softmax_before_ce": rules.softmax_before_ce,
        "sigmoid_before_bce_logits": rules.sigmoid_before_bce_logits,
        "single_logit_softmax": rules.single_logit_softmax,
    },
)
