"""Compares the data of training and validation where they enter the network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.loss_call_recorder import LossCallRecorder
from lightning_tuning._trainer.ordinary_run import STEPS
from lightning_tuning._trainer.probe import Probe, Watch
from lightning_tuning._trainer.wiring.held_out import held_out
from lightning_tuning._trainer.wiring.input_scan import InputScan, MappedInput, SiteStatistics
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning._trainer.wiring.validation_remedies import remedies
from lightning_tuning.functional.loss_calls import LossCall
from lightning_tuning.functional.wiring.wiring_validation_data import (
    DataShift,
    ValidationEvidence,
    data_shift,
    train_val_mismatch,
)

_TRAIN_BATCHES = 8
_VAL_BATCHES = 4
_LOWER_IS_BETTER = ("loss", "mse", "mae", "error", "nll", "perplexity", "ppl")
_HIGHER_IS_BETTER = ("acc", "f1", "auroc", "auc", "iou", "r2", "dice", "recall", "precision")


def measure(probe: Probe) -> ValidationEvidence:
    """Take statistics of both; where they are far apart, train and validate with and without."""
    probe.rewind()
    train, val = InputScan(probe.module), InputScan(probe.module)
    names: set[str] = set()
    for batch in probe.batches(_TRAIN_BATCHES):
        # some programs prepare their batches by the module's mode
        names |= {call.name for call in probe.step(batch, mode="silent", watch=[train]).calls}
    probe.validate(num_batches=_VAL_BATCHES, watch=[val])
    seen, others = train.take(), val.take()
    shifts = _shifts(seen, others)
    evidence = ValidationEvidence(shifts=shifts)
    if len(probe.trainer.optimizers) != 1:
        return evidence
    if evidence.far:
        # black on white in one, white on black in the other
        signs = (1.0, -1.0)
        maps = [_maps(evidence.far, seen, others, sign) for sign in signs]
        evidence = _tried(probe, names, evidence, [MappedInput(probe.module, m) for m in maps])
        return evidence if evidence.harmful else _held_out(probe, names, evidence)
    for remedy, context in remedies(probe):
        found = _tried(probe, names, dataclasses.replace(evidence, remedy=remedy), [context])
        if found.harmful:
            return found
    return _held_out(probe, names, evidence)


def _held_out(probe: Probe, names: set[str], evidence: ValidationEvidence) -> ValidationEvidence:
    return dataclasses.replace(evidence, held_out=held_out(probe, names))


def _tried(
    probe: Probe, names: set[str], evidence: ValidationEvidence, contexts: Sequence[Watch]
) -> ValidationEvidence:
    """Train for a while, and validate as it is and in each of some contexts."""
    probe.rewind()
    what, before = _val_loss(probe, names)
    if not what:
        return ValidationEvidence(reason="validation calls no loss function and logs none")
    known = what in names
    train_before = _train_loss(probe, what) if known else None
    probe.settle(STEPS)
    _, after = _val_loss(probe, names)
    train_after = _train_loss(probe, what) if known else None
    mapped = []
    for context in contexts:
        with context:
            mapped.append(_val_loss(probe, names)[1])
    probe.rewind()
    return dataclasses.replace(
        evidence,
        what=what,
        before=before,
        after=after,
        mapped=min(mapped),
        train_before=train_before,
        train_after=train_after,
    )


def _shifts(
    train: dict[str, SiteStatistics], val: dict[str, SiteStatistics]
) -> tuple[DataShift, ...]:
    return tuple(
        data_shift(
            name,
            mean=train[name].mean.tolist(),
            std=train[name].std.tolist(),
            val_mean=val[name].mean.tolist(),
            val_std=val[name].std.tolist(),
            count=min(train[name].count, val[name].count),
        )
        for name in train
        if name in val and train[name].mean.shape == val[name].mean.shape
    )


def _maps(
    far: Sequence[DataShift],
    train: dict[str, SiteStatistics],
    val: dict[str, SiteStatistics],
    sign: float,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the maps that bring validation data to the training data's statistics."""
    maps = {}
    for shift in far:
        one, other = train[shift.name], val[shift.name]
        least = float(other.std.max()) * 1e-6
        factor = sign * torch.where(other.std > least, one.std / other.std.clamp_min(1e-30), 1.0)
        maps[shift.name] = (factor, one.mean - factor * other.mean)
    return maps


def _val_loss(probe: Probe, names: set[str]) -> tuple[str, float]:
    """Return the name and value of a loss that validation calls or logs."""
    recorder = LossCallRecorder()
    logged = probe.validate(num_batches=_VAL_BATCHES, watch=[recorder])
    calls = recorder.take()
    for name in sorted(names):
        if (value := _mean(calls, name)) is not None:
            return name, value
    for name, number in logged.items():
        words = name.lower()
        if number.numel() != 1 or not number.is_floating_point():
            continue
        if any(word in words for word in _LOWER_IS_BETTER):
            return name, float(number)
        if any(word in words for word in _HIGHER_IS_BETTER):
            return f"1 - {name}", 1 - float(number)
    return "", float("nan")


def _train_loss(probe: Probe, name: str) -> float | None:
    calls: list[LossCall] = []
    with contextlib.suppress(CannotProbeError):
        for batch in probe.batches(_VAL_BATCHES):
            calls += probe.step(batch, mode="silent").calls
    return _mean(calls, name)


def _mean(calls: Sequence[LossCall], name: str) -> float | None:
    values = [call.value.float().mean() for call in calls if call.name == name]
    return float(torch.stack(values).mean()) if values else None


TOPIC = Topic(measure=measure, rules={"train_val_mismatch": train_val_mismatch})
