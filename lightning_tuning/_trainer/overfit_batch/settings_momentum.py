"""Whether a momentum with a memory longer than a short training makes it swing."""

from __future__ import annotations

import dataclasses

from lightning_tuning._trainer.ordinary_run import STEPS, within_time
from lightning_tuning._trainer.overfit_batch.settings_changes import (
    MOMENTUM,
    DuringSteps,
    momentum_of,
    usual_momentum,
)
from lightning_tuning._trainer.probe import Probe
from lightning_tuning.functional.progress import progress
from lightning_tuning.functional.settings_findings import Rescue, SettingsEvidence

_LONG = 0.99
"""Steps remember gradients for 1 / (1 - momentum) steps."""


def outdone_by_usual_momentum(probe: Probe, as_it_is: SettingsEvidence) -> SettingsEvidence:
    """Train with a momentum of 0.9, on two data orders, where the program's is above 0.99.

    With the same learning rate, each gradient then moves the weights ten times less or fewer still.
    A training that is merely slow gets slower by that.

    Args:
        probe: An entered probe.
        as_it_is: How the program trains as it is.
    """
    groups = [group for o in probe.trainer.optimizers for group in o.param_groups]
    largest = max((momentum_of(group) for group in groups), default=0.0)
    if not (largest > _LONG and as_it_is.may_be_outdone):
        return as_it_is
    probe.rewind()
    text = f"a momentum of {MOMENTUM} instead of {largest:.4g}"
    first = _progress(probe, as_it_is, changed=True, order=0)
    rescue = Rescue(code="momentum_too_high", change=text, progress=(first,))
    found = dataclasses.replace(as_it_is, rescues=(rescue,))
    if not found.first_outdone:
        return as_it_is
    again = _progress(probe, as_it_is, changed=False, order=1)
    second = _progress(probe, as_it_is, changed=True, order=1)
    return dataclasses.replace(
        as_it_is,
        progress=(*as_it_is.progress, again),
        rescues=(dataclasses.replace(rescue, progress=(first, second)),),
    )


def _progress(probe: Probe, known: SettingsEvidence, *, changed: bool, order: int) -> float:
    def prepare() -> None:
        if order:
            probe.box.rewind(order=order)

    run = probe.run(
        STEPS,
        prepare=prepare,
        watch=[DuringSteps(usual_momentum)] if changed else [],
        until=within_time(probe),
    )
    return progress(run.before, run.after, chance=known.chance)
