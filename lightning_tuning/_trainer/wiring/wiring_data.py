"""Reads some of the data, and tries the batch that holds no numbers."""

from __future__ import annotations

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.data_leaves import first_pass, leaves
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.wiring.wiring_data import DataEvidence, NonFinite, nan_in_data

_BATCHES = 200
_SECONDS = 4.0


def measure(probe: Probe) -> DataEvidence:
    """Read the first pass until a value is not finite; run that batch with and without it."""
    count, floats = 0, False
    bad: ProbeBatch | None = None
    for batch in first_pass(probe, limit=_BATCHES, seconds=_SECONDS):
        count += 1
        numbers = [leaf for _, leaf in leaves(batch.data) if leaf.is_floating_point()]
        floats = floats or bool(numbers)
        if not all(bool(leaf.isfinite().all()) for leaf in numbers):
            bad = batch
            break
    if bad is None:
        return DataEvidence(batches=count, floats=floats)
    loss = _loss(probe, bad)
    without = _loss(probe, bad._replace(data=apply_to_collection(bad.data, Tensor, _filled)))
    shares = {
        path: float(leaf.isfinite().logical_not().double().mean())
        for path, leaf in leaves(bad.data)
        if leaf.is_floating_point() and leaf.numel()
    }
    where = max(shares, key=lambda path: shares[path])
    found = NonFinite(
        where=where, batch=bad.position, share=shares[where], loss=loss, loss_without=without
    )
    return DataEvidence(batches=count, floats=floats, non_finite=found)


def _loss(probe: Probe, batch: ProbeBatch) -> float:
    loss = probe.step(batch, mode="silent").loss
    return 0.0 if loss is None else float(loss.float().mean())


def _filled(leaf: Tensor) -> Tensor:
    if not leaf.is_floating_point():
        return leaf
    return torch.nan_to_num(leaf, nan=0.0, posinf=0.0, neginf=0.0)


TOPIC = Topic(measure=measure, rules={"nan_in_data": nan_in_data})
