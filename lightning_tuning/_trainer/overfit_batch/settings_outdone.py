"""Whether a program that learns something would learn far more with one setting changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from lightning_tuning._trainer.learning_rates import rates_of
from lightning_tuning._trainer.ordinary_run import STEPS
from lightning_tuning._trainer.overfit_batch.settings_candidates import (
    Change,
    lower,
    with_usual_momentum,
    without_clipping,
)
from lightning_tuning._trainer.overfit_batch.settings_training import train_with
from lightning_tuning._trainer.probe import Probe
from lightning_tuning.functional.progress import progress
from lightning_tuning.functional.settings_findings import Rescue, SettingsEvidence

_LONG = 0.99
"""Steps remember gradients for 1 / (1 - momentum) steps."""
_LOWER = 0.1


def outdone_by_other_settings(
    probe: Probe, as_it_is: SettingsEvidence, *, badly: bool
) -> SettingsEvidence:
    """Train with one setting changed after the other, on two data orders each.

    Each change makes steps shorter, so that a training that is merely slow gets no faster by it;
    but for clipping, where a person holds steps back. Weight decay is left alone: any training
    loss is lower without it.

    Args:
        probe: An entered probe.
        as_it_is: How the program trains as it is.
        badly: Whether it learns next to nothing.
    """
    if not as_it_is.may_be_outdone:
        return as_it_is
    probe.rewind()
    for change in _changes(probe, badly=badly):
        first = _progress(probe, as_it_is, change, order=0)
        rescue = Rescue(code=change.code, change=change.text, progress=(first,))
        if not dataclasses.replace(as_it_is, rescues=(rescue,)).first_outdone:
            continue
        again = _progress(probe, as_it_is, None, order=1)
        second = _progress(probe, as_it_is, change, order=1)
        found = dataclasses.replace(
            as_it_is,
            progress=(*as_it_is.progress, again),
            rescues=(dataclasses.replace(rescue, progress=(first, second)),),
        )
        if found.outdone:
            return found
    return as_it_is


def _changes(probe: Probe, *, badly: bool) -> Iterator[Change]:
    rates = rates_of(probe.trainer, None)
    yield from with_usual_momentum(rates.groups, above=_LONG)
    if badly:
        return  # other changes are tried one after the other, which tells more
    if probe.trainer.gradient_clip_val:
        yield from without_clipping(probe, left=1.0)
    # the rate of a line search is none of these: 1 is usual
    if not any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in probe.trainer.optimizers):
        yield lower(rates.rate, _LOWER)


def _progress(probe: Probe, known: SettingsEvidence, change: Change | None, *, order: int) -> float:
    run = train_with(probe, change, STEPS, order=order)
    return progress(run.before, run.after, chance=known.chance)
