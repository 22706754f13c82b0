"""Reads the order of the targets; where they are sorted, trains in a random order as well."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.ordinary_run import STEPS, within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.data_leaves import (
    RandomExamples,
    first_pass,
    leaves,
    target_path,
)
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.wiring.wiring_order import (
    OrderEvidence,
    TargetOrder,
    target_order,
    unshuffled_data,
)

_BATCHES = 400
_SECONDS = 4.0
_MOST_STEPS = 300
_JUDGES = 8
_FEATURES = 64


def measure(probe: Probe) -> OrderEvidence:
    """Read the targets of the first pass, and train in their order and in a random one."""
    if len(probe.trainer.optimizers) != 1:
        raise CannotProbeError("the loss of several optimizers does not tell how well they train")
    probe.rewind()
    order, batches = _order(probe)
    if order is None or not order.is_sorted:
        return OrderEvidence(order=order)
    try:
        examples = RandomExamples(probe)
    except CannotProbeError as error:
        return OrderEvidence(order=order, reason=str(error))
    steps = min(max(batches, STEPS), _MOST_STEPS)
    # values may also rise with time: what comes later is not to be known yet
    among = len(examples)
    if not order.classes and batches > steps:
        among = max(1, min(among, order.count * steps // batches))
    judges = examples.draw(_JUDGES, among=among)
    training = examples.draw(steps, among=among)
    plain = probe.run(steps, judged_by=judges, until=within_time(probe))
    if len(plain.losses) < min(steps, batches) or not judges or len(training) < 4:
        return OrderEvidence(order=order, reason="a pass takes too long")
    trained = Trained(before=plain.before, after=plain.after)
    evidence = OrderEvidence(order=order, in_order=trained)
    if not evidence.may_be_cured:
        return evidence
    until = within_time(probe)
    mixed = probe.run(steps, batches=training, judged_by=judges, until=until)
    return dataclasses.replace(evidence, at_random=mixed.after)


def _order(probe: Probe) -> tuple[TargetOrder | None, int]:
    path = target_path(probe)
    if path is None:
        return None, 0
    targets, inputs = [], []
    for batch in first_pass(probe, limit=_BATCHES, seconds=_SECONDS):
        found = dict(leaves(batch.data)).get(path)
        if found is not None:
            targets.append(found.flatten())
            inputs.append(_beside(batch.data, path, len(found)))
    if not targets:
        return None, 0
    same = len({part.size(1) for part in inputs}) == 1
    beside = torch.cat(inputs) if same else None
    return target_order(torch.cat(targets), beside), len(targets)


def _beside(data: Any, path: str, count: int) -> Tensor:
    """Return some features of each example: of each tensor but the targets."""
    rows = [
        leaf.detach().reshape(count, -1).float()
        for place, leaf in leaves(data)
        if place != path and leaf.dim() > 0 and len(leaf) == count and leaf.numel()
    ]
    some = [row[:, :: max(row.size(1) // _FEATURES, 1)] for row in rows]
    return torch.cat(some, 1) if some else torch.zeros(count, 0)


TOPIC = Topic(measure=measure, rules={"unshuffled_data": unshuffled_data})
