"""Whether the loss is a sum over the batch, and would train as a mean."""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.ordinary_run import ordinary_run, within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.step_trace import batch_size, scaled_backward, tensors_in
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.progress import progress
from lightning_tuning.functional.wiring import wiring_loss_flow as rules
from lightning_tuning.functional.wiring.wiring_loss_flow import SumEvidence

_STEPS = 100


def measure(probe: Probe) -> SumEvidence:
    """Double a batch, and train with the gradient of the mean where the program trains badly."""
    own = ordinary_run(probe)
    if not own.judgeable:
        return SumEvidence(reason="the losses of several optimizers don't tell how they train")
    if not own.trains_badly:
        return SumEvidence()
    [batch] = probe.batches(1)
    size = batch_size(batch.data)
    ratio = None if size is None or size < 2 else _ratio(probe, batch, size)
    if size is None or ratio is None:
        return SumEvidence(reason="a batch could not be doubled")
    seen = SumEvidence(trains_badly=True, ratio=ratio, batch_size=size, progress=own.progress)
    if abs(ratio - 2) > 0.1:
        return seen
    # a mean over the batch, or over all of its values
    values = max((tensor.numel() for tensor in tensors_in(batch.data)), default=size)
    rescues = []
    for count in dict.fromkeys((size, values)):
        run = probe.run(_STEPS, watch=[scaled_backward(1 / count)], until=within_time(probe))
        rescues.append(progress(run.before, run.after, chance=own.chance))
    return SumEvidence(**{**vars(seen), "rescued": max(rescues)})


def _ratio(probe: Probe, batch: ProbeBatch, size: int) -> float | None:
    def twice(tensor: Tensor) -> Tensor:
        fits = tensor.dim() > 0 and tensor.size(0) == size
        return torch.cat([tensor, tensor]) if fits else tensor

    probe.rewind()
    doubled: Any = batch._replace(data=apply_to_collection(batch.data, Tensor, twice))
    try:
        once, again = (probe.step(b, mode="silent").loss for b in (batch, doubled))
    except StepError:
        return None
    if once is None or again is None or float(once) == 0:
        return None
    return float(again / once)


TOPIC = Topic(measure=measure, rules={"loss_reduction_sum": rules.loss_reduction_sum})
