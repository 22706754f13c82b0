"""Trains without some of the training data, and validates on those and on the validation data."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.loss_call_recorder import LossCallRecorder
from lightning_tuning._trainer.ordinary_run import STEPS, ordinary_run, within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.wiring.data_leaves import first_pass, leaves
from lightning_tuning.functional.loss_calls import LossCall
from lightning_tuning.functional.wiring.wiring_held_out import HeldOut, knowledge

_BATCHES = 48
_SECONDS = 2.0
_BYTES = 2**28
_EVERY = 4
_FEWEST = 8
_VAL_BATCHES = 4
_LEARNT = 0.15


def held_out(probe: Probe, names: Collection[str]) -> HeldOut | None:
    """Return what a short training knows of both, where it learns at all.

    Args:
        probe: The probe.
        names: Of loss functions that training calls.
    """
    if not ordinary_run(probe).progress > _LEARNT:
        return None
    batches = _read(probe)
    if len(batches) < _FEWEST:
        return None
    kept = batches[_EVERY - 1 :: _EVERY]
    rest = [batch for place, batch in enumerate(batches) if place % _EVERY != _EVERY - 1]
    probe.settle(STEPS, batches=rest, until=within_time(probe))
    try:
        of_val = _calls(probe, None)
        of_train = _calls(probe, kept)
    except (CannotProbeError, StepError):  # validation takes batches of another form
        return None
    finally:
        probe.rewind()
    for name in sorted(names):
        pair = [[call for call in calls if call.name == name] for calls in (of_train, of_val)]
        if not all(pair):
            continue
        train, val = (knowledge(calls) for calls in pair)
        if train is not None and val is not None:
            return HeldOut(train=train, val=val)
    return None


def _read(probe: Probe) -> list[ProbeBatch]:
    batches: list[ProbeBatch] = []
    size = 0
    for batch in first_pass(probe, limit=_BATCHES, seconds=_SECONDS):
        batches.append(batch)
        size += sum(leaf.nbytes for _, leaf in leaves(batch.data))
        if size > _BYTES:
            break
    return batches


def _calls(probe: Probe, batches: Sequence[ProbeBatch] | None) -> list[LossCall]:
    recorder = LossCallRecorder()
    probe.validate(num_batches=_VAL_BATCHES, watch=[recorder], batches=batches)
    return recorder.take()
