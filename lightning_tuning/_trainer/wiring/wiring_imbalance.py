"""Counts the classes; where one is rare, sees whether it is ever predicted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.ordinary_run import STEPS
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.step_trace import Intercept
from lightning_tuning._trainer.wiring.data_leaves import first_pass, leaves, target_path
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.loss_calls import LossCall
from lightning_tuning.functional.wiring.wiring_imbalance import ImbalanceEvidence, class_imbalance

_BATCHES = 400
_SECONDS = 4.0
_KEPT = 12
_LONGER = 3
_BINARY = ("binary_cross_entropy_with_logits", "binary_cross_entropy")
_OPTIONS = ("weight", "pos_weight")


def measure(probe: Probe) -> ImbalanceEvidence:
    """Count classes; train as it is and with classes weighed alike; count what is recognised."""
    probe.rewind()
    calls = [c for c in probe.step(probe.batches(1)[0], mode="silent").calls if c.trained]
    path = target_path(probe) if len(calls) == 1 and _one_class_each(calls[0]) else None
    if path is None or len(probe.trainer.optimizers) != 1:
        return ImbalanceEvidence(examples=0)
    counts, kept = _counted(probe, path, len(calls[0].target))
    total, rare = int(counts.sum()), int(counts.sum() - counts.max())
    evidence = ImbalanceEvidence(
        examples=total, rare=rare / max(total, 1), rare_count=rare, remedy=_remedy(calls[0])
    )
    if not evidence.is_extreme:
        return evidence
    common = int(counts.argmax())
    steps = STEPS
    started = time.monotonic()
    recall, _ = _recalls(probe, kept, common, steps)
    if recall == 0.0 and time.monotonic() - started < _SECONDS:
        # what is rare takes its time
        steps *= _LONGER
        recall, _ = _recalls(probe, kept, common, steps)
    evidence = dataclasses.replace(evidence, recall=recall)
    if not evidence.is_missed:
        return evidence
    weights = counts.sum() / (counts.clamp(min=1) * len(counts))
    with _weighed(weights):
        weighted, others = _recalls(probe, kept, common, steps)
    return dataclasses.replace(evidence, recall_weighted=weighted, common_weighted=others)


def _weighed(of_classes: Tensor) -> Intercept:
    """Return what gives the loss functions weights by class."""

    def instead(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if name not in ("cross_entropy", *_BINARY):
            return func(*args, **kwargs)
        output = args[0] if args else kwargs["input"]
        target = args[1] if len(args) > 1 else kwargs["target"]
        weights = of_classes.to(output.device, output.dtype)
        if name in _BINARY:
            weights = weights[target.detach().round().long()]
        elif len(weights) < output.size(1):
            weights = torch.cat([weights, weights.new_ones(output.size(1) - len(weights))])
        options = {k: v for k, v in kwargs.items() if k not in ("input", "target", "weight")}
        return func(output, target, weight=weights, **options)

    return Intercept(instead)


def _one_class_each(call: LossCall) -> bool:
    if call.name == "cross_entropy":
        return not call.target.is_floating_point() and call.target.dim() == 1
    if call.name not in _BINARY or call.target.dim() == 0:
        return False
    values = call.target.detach()
    single = values.numel() == values.size(0)
    return single and bool(((values == 0) | (values == 1)).all())


def _remedy(call: LossCall) -> str:
    if call.reduction == "none":
        return "weights of its own"
    given = {name: call.options.get(name) for name in _OPTIONS}
    return next((name for name, weights in given.items() if _weighs(name, weights)), "")


def _weighs(name: str, weights: Tensor | None) -> bool:
    """Whether classes weigh differently by an option of the loss function."""
    if weights is None or not weights.numel():
        return False
    alike = 1.0 if name == "pos_weight" else weights.flatten()[0]
    return bool((weights != alike).any())


def _counted(probe: Probe, path: str, size: int) -> tuple[Tensor, list[ProbeBatch]]:
    """Return the examples of each class, and the batches with most that are rare."""
    counts = torch.zeros(0, dtype=torch.float64)
    kept: list[tuple[int, ProbeBatch]] = []
    for batch in first_pass(probe, limit=_BATCHES, seconds=_SECONDS):
        leaf = dict(leaves(batch.data)).get(path)
        if leaf is None or not size:
            continue
        labels = leaf.detach().flatten().long()
        here = torch.bincount(labels[labels >= 0], minlength=len(counts)).double()
        counts = here + torch.nn.functional.pad(counts, (0, len(here) - len(counts)))
        rare = int((labels != int(counts.argmax())).sum())
        if rare:
            kept = sorted([*kept, (rare, batch)], key=lambda pair: -pair[0])[:_KEPT]
    return counts, [batch for _, batch in kept]


def _recalls(
    probe: Probe, batches: Sequence[ProbeBatch], common: int, steps: int
) -> tuple[float, float]:
    """Return the shares of rare and of common examples that are recognised after some steps."""
    probe.settle(steps)
    rare, others = [], []
    for batch in batches:
        for call in probe.step(batch, mode="silent").calls:
            if not call.trained or not _one_class_each(call):
                continue
            target = call.target.flatten().long()
            right = (_predicted(call) == target).double()
            rare.append(right[target != common])
            others.append(right[target == common])
    if not rare:
        return 1.0, 0.0
    return float(torch.cat(rare).mean()), float(torch.cat(others).mean())


def _predicted(call: LossCall) -> Tensor:
    output = call.input.detach()
    if call.name == "cross_entropy":
        return output.argmax(1)
    threshold = 0.0 if call.name == _BINARY[0] else 0.5
    return (output.flatten() > threshold).long()


TOPIC = Topic(measure=measure, rules={"class_imbalance": class_imbalance})
