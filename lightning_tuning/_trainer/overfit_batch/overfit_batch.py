"""Training on a tiny batch, over and over, with regularization off."""

from __future__ import annotations

import dataclasses
import math

import torch

from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.overfit_batch.overfit_batch_data import TinyBatch, tiny_batch
from lightning_tuning._trainer.overfit_batch.overfit_batch_inputs import (
    Inputs,
    features_of,
    inputs_of,
    same_inputs,
)
from lightning_tuning._trainer.overfit_batch.overfit_batch_search import OverfitSettings, Search
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import Step, StepError
from lightning_tuning.functional.overfit_batch import OverfitBatchResult
from lightning_tuning.functional.overfit_batch_findings import OverfitEvidence
from lightning_tuning.functional.overfit_batch_floor import levels


def measure(probe: Probe, settings: OverfitSettings) -> OverfitEvidence:
    """Train on a tiny batch at the person's learning rate, and at others where that fails.

    Raises:
        CannotProbeError: There is no batch, no loss, or no learning rate.
    """
    batch = tiny_batch(probe, settings.num_samples)
    inputs = inputs_of(probe, batch.repeats[0]) if probe.trainer.world_size == 1 else None
    step = _first_step(probe, batch)
    ordinary = ordinary_run(probe)
    judgeable = ordinary.judgeable and not (inputs is not None and inputs.own_targets)
    known = _levels(probe, step, batch, inputs) if judgeable else (None, None)
    badly = bool(probe.trainer.strategy.broadcast(ordinary.trains_badly))
    search = Search(probe, batch, settings, known)
    runs = search.at_all_rates(far=badly and judgeable)
    result = OverfitBatchResult(
        samples=batch.samples,
        chance=known[0],
        floor=known[1],
        target=search.target,
        runs=tuple(runs),
    )
    if inputs is not None and inputs.inputs:
        result = dataclasses.replace(result, zeroed=search.zeroed(result.best, inputs))
    return OverfitEvidence(
        result=result,
        asked=settings.target_loss is not None,
        trains_badly=badly,
        judgeable=judgeable,
        parameters=_trainable(probe),
        values=sum(call.target.numel() for call in step.calls if call.trained),
        features=features_of(batch.data, inputs),
        unclear="the step's inputs are out of sight" if inputs is None else "",
        ignored=inputs is not None and inputs.ignored,
        unconditional=inputs is not None and not inputs.inputs,
    )


def _first_step(probe: Probe, batch: TinyBatch) -> Step:
    probe.rewind()
    try:
        return probe.step(batch.repeats[0], mode="silent", backward=True, seed=1)
    except StepError:  # nothing to go backward from
        return probe.step(batch.repeats[0], mode="silent", seed=1)


def _levels(
    probe: Probe, step: Step, batch: TinyBatch, inputs: Inputs | None
) -> tuple[float | None, float | None]:
    """Return the loss at chance and the floor, as means over the ranks; None where unknown."""
    trainer = probe.trainer
    found = None
    if step.loss is not None:
        found = levels(
            step.calls,
            float(step.loss),
            accumulation=trainer.accumulate_grad_batches,
            groups=same_inputs(batch.data, inputs),
        )
    if trainer.world_size > 1:
        mine = torch.tensor(found or (math.nan, math.nan), device=trainer.strategy.root_device)
        mean = trainer.strategy.broadcast(trainer.strategy.reduce(mine, reduce_op="mean"))
        found = None if bool(mean.isnan().any()) else (float(mean[0]), float(mean[1]))
    # targets that hardly vary leave nothing to learn from the inputs
    if found is None or not found[0] - found[1] > 1e-3 * abs(found[0]):
        return None, None
    return found


def _trainable(probe: Probe) -> int:
    parameters = [p for o in probe.trainer.optimizers for g in o.param_groups for p in g["params"]]
    return sum(p.numel() for p in {id(p): p for p in parameters}.values() if p.requires_grad)
