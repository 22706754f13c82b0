"""Measures how much is dropped, and trains without it."""

from __future__ import annotations

from torch import nn

from lightning_tuning._trainer.ordinary_run import STEPS, ordinary_run, within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.rescues import WithoutDropout
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.wiring.wiring_dropout import (
    HIGH,
    DropoutEvidence,
    dropout_too_high,
)


def measure(probe: Probe) -> DropoutEvidence:
    """Note the dropouts of a training step; where one is high, train with none."""
    probe.rewind()
    seen = WithoutDropout(probe.module, keep=True)
    probe.step(probe.batches(1)[0], watch=[seen])
    shares = [*seen.shares, *(part.dropout for part in _recurrent(probe) if part.training)]
    highest = max(shares, default=None)
    if highest is None or highest < HIGH:
        return DropoutEvidence(highest=highest)
    ordinary = ordinary_run(probe)
    trained = Trained(before=ordinary.run.before, after=ordinary.run.after, chance=ordinary.chance)
    if not ordinary.judgeable or not trained.may_be_cured:
        return DropoutEvidence(highest=highest, trained=trained)
    with WithoutDropout(probe.module):
        run = probe.run(STEPS, prepare=lambda: _keep_all(probe), until=within_time(probe))
    return DropoutEvidence(highest=highest, trained=trained, without=run.after)


def _recurrent(probe: Probe) -> list[nn.RNNBase]:
    parts = [part for part in probe.module.modules() if isinstance(part, nn.RNNBase)]
    return [part for part in parts if part.num_layers > 1 and part.dropout > 0]


def _keep_all(probe: Probe) -> None:
    for part in _recurrent(probe):
        part.dropout = 0.0


TOPIC = Topic(measure=measure, rules={"dropout_too_high": dropout_too_high})
