"""Measures the size of the signal, and tries what would mend it."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.ordinary_run import STEPS, ordinary_run, within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import Run
from lightning_tuning._trainer.wiring.failed_readings import failed_readings
from lightning_tuning._trainer.wiring.input_scan import (
    InputScan,
    MappedInput,
    SiteStatistics,
    standardising,
)
from lightning_tuning._trainer.wiring.rescues import (
    LOGIT_LOSSES,
    DataDependentInit,
    TemperedLogits,
    deviation_of_logits,
)
from lightning_tuning._trainer.wiring.signal_scan import SignalScan
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.signal_sizes import Recurrence, Signal, input_scale
from lightning_tuning.functional.wiring import wiring_signal as rules
from lightning_tuning.functional.wiring.wiring_signal import SignalEvidence

_BATCHES = 4
_WELL_THOUGH_FLAT = 0.8
"""Units without a slope are a fault that the layers after them make up for, in part."""


def measure(probe: Probe) -> SignalEvidence:
    """Look at the data, layers and gradients of a few batches; train without what is odd."""
    signal, sites = _scanned(probe)
    ordinary = ordinary_run(probe)
    trained = Trained(before=ordinary.run.before, after=ordinary.run.after, chance=ordinary.chance)
    if signal.flat and not signal.odd_inputs:
        trained = dataclasses.replace(trained, well=_WELL_THOUGH_FLAT)
    plain = SignalEvidence(signal=signal, trained=trained)
    if not ordinary.judgeable:
        return plain
    plain = dataclasses.replace(plain, failed=failed_readings(probe, ordinary.chance))
    if plain.cause() or not trained.may_be_cured:
        return _with_early_losses(probe, plain) if plain.starts_far_off else plain
    standardised = _standardised(probe, sites) if signal.odd_inputs else None
    evidence = dataclasses.replace(plain, standardised=standardised)
    if signal.odd_inputs and not evidence.cause() and trained.stands_still:
        evidence = _with_higher_rate(probe, sites, evidence)
    if evidence.cause() or not signal.symptom():
        return evidence
    rescaled = _after(_rescaled(probe, signal.layers[-1].name))
    evidence = dataclasses.replace(evidence, rescaled=rescaled)
    if evidence.cause() or not trained.stands_still:
        return evidence
    # the learning rate may be too high instead; or for gradients that arrive, though not for these
    slower = probe.run(STEPS, prepare=lambda: _multiply_rates(probe, 0.1), schedules=False).after
    if trained.cured_by(slower):
        return evidence
    last = signal.layers[-1].name
    rescaled = _after(_rescaled(probe, last, slow_down=True))
    return dataclasses.replace(evidence, rescaled=rescaled, slower=True)


def _with_higher_rate(
    probe: Probe, sites: dict[str, SiteStatistics], evidence: SignalEvidence
) -> SignalEvidence:
    """Standardise at ten times the learning rate, which large inputs have kept low."""
    higher = probe.run(STEPS, prepare=lambda: _multiply_rates(probe, 10.0), schedules=False).after
    if evidence.trained.cured_by(higher):
        return evidence
    standardised = _standardised(probe, sites, rates=10.0)
    tried = dataclasses.replace(evidence, standardised=standardised, faster=True)
    return tried if tried.cause() else evidence


def _with_early_losses(probe: Probe, plain: SignalEvidence) -> SignalEvidence:
    run = _rescaled(probe, plain.signal.layers[-1].name)
    if run is None or not run.losses:
        return plain
    early = statistics.fmean(ordinary_run(probe).run.losses)
    return dataclasses.replace(plain, early=early, early_rescaled=statistics.fmean(run.losses))


def _after(run: Run | None) -> float | None:
    return None if run is None else run.after


def _scanned(probe: Probe) -> tuple[Signal, dict[str, SiteStatistics]]:
    inputs, scan = InputScan(probe.module), SignalScan(probe.module)
    logits: list[Tensor] = []
    probe.rewind()
    for batch in probe.batches(_BATCHES):
        step = probe.step(batch, mode="silent", backward=True, watch=[inputs, scan])
        logits += [
            deviation_of_logits(call.name, call.input)
            for call in step.calls
            if call.trained and call.name in LOGIT_LOSSES
        ]
    sites = {name: site for name, site in inputs.take().items() if site.kind != "norm"}
    scales = [input_scale(s.name, s.mean.tolist(), s.std.tolist()) for s in sites.values()]
    signal = Signal(
        inputs=tuple(scale for scale in scales if scale is not None),
        layers=scan.layers(),
        rectified=scan.rectified(),
        squashed=scan.squashed(),
        recurrences=tuple(
            Recurrence(name=name, norm=_norm(probe.module, name), steps=steps)
            for name, steps in scan.recurrences.items()
        ),
        logits=float(torch.stack(logits).mean()) if logits else None,
    )
    return signal, sites


def _norm(module: nn.Module, name: str) -> float:
    matrix = module.get_parameter(name).detach().float()
    return float(torch.linalg.matrix_norm(matrix, 2))


def _standardised(probe: Probe, sites: dict[str, SiteStatistics], *, rates: float = 1.0) -> float:
    def prepare() -> None:
        if rates != 1.0:
            _multiply_rates(probe, rates)

    with MappedInput(probe.module, standardising(sites)):
        return probe.run(
            STEPS, prepare=prepare, schedules=rates == 1.0, until=within_time(probe)
        ).after


def _rescaled(probe: Probe, last: str, *, slow_down: bool = False) -> Run | None:
    start, logits = DataDependentInit(probe.module, last=last), TemperedLogits()
    probe.rewind()
    with contextlib.suppress(CannotProbeError):
        probe.step(probe.batches(1)[0], mode="silent", watch=[logits, start])
    if not start.found and not logits.scale:
        return None

    def prepare() -> None:
        start.put()
        if slow_down:
            _multiply_rates(probe, 0.1)

    with TemperedLogits(logits.scale or 1.0):
        until = within_time(probe)
        return probe.run(STEPS, prepare=prepare, schedules=not slow_down, until=until)


def _multiply_rates(probe: Probe, factor: float) -> None:
    for group in (g for optimizer in probe.trainer.optimizers for g in optimizer.param_groups):
        group["lr"] = group["lr"] * factor


TOPIC = Topic(
    measure=measure,
    rules={
        "unnormalized_input": rules.unnormalized_input,
        "dead_relu": rules.dead_relu,
        "saturated_activations": rules.saturated_activations,
        "bad_init_scale": rules.bad_init_scale,
        "vanishing_gradients": rules.vanishing_gradients,
        "exploding_gradients": rules.exploding_gradients,
    },
)
