"""All that the curves of a fit say: one finding for each rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from lightning_tuning.findings import Finding
from lightning_tuning.functional.curves import (
    curve_rules_level,
    curve_rules_noise,
    curve_rules_poor,
    curve_rules_rate,
    curve_rules_validation,
)
from lightning_tuning.functional.curves.curve_answer import LOSS_CURVE_DIAGNOSIS, answer
from lightning_tuning.functional.curves.curve_reading import Reading
from lightning_tuning.functional.curves.curve_record import CurveRecord
from lightning_tuning.functional.curves.loss_curves import Curve, Curves

__all__ = ["LOSS_CURVE_DIAGNOSIS", "diagnose", "went_bad"]

_Rule = Callable[[Reading], Finding]
_ON_TRAINING: Mapping[str, tuple[int, _Rule]] = {
    "loss_diverging": (30, curve_rules_level.loss_diverging),
    "no_learning": (30, curve_rules_poor.no_learning),
    "lr_too_low": (60, curve_rules_level.lr_too_low),
    "lr_too_high": (60, curve_rules_noise.lr_too_high),
    "loss_oscillation": (100, curve_rules_noise.loss_oscillation),
    "batch_noise": (100, curve_rules_noise.batch_noise),
    "lr_decayed_too_fast": (60, curve_rules_rate.lr_decayed_too_fast),
    "loss_not_at_chance": (30, curve_rules_level.loss_not_at_chance),
    "underfitting": (10, curve_rules_poor.underfitting),
}
"""Each rule about the training loss, and the points that it needs."""
_ON_BOTH: Mapping[str, tuple[int, _Rule]] = {
    "overfitting": (30, curve_rules_validation.overfitting),
    "train_val_mismatch": (30, curve_rules_validation.train_val_mismatch),
}
_EXPLAINS: Mapping[str, tuple[str, ...]] = {
    "non_finite": ("lr_too_low", "underfitting", "overfitting", "lr_decayed_too_fast"),
    "loss_diverging": ("underfitting", "overfitting", "loss_oscillation", "lr_decayed_too_fast"),
    "lr_too_high": ("loss_oscillation", "loss_spikes", "underfitting", "batch_noise"),
    "loss_not_at_chance": ("no_learning",),
    "lr_too_low": ("underfitting", "lr_decayed_too_fast"),
    "lr_decayed_too_fast": ("underfitting",),
    "loss_oscillation": ("underfitting",),
    "batch_noise": ("underfitting", "loss_spikes"),
    "train_val_mismatch": ("overfitting",),
}


def diagnose(curves: Curves, *, step: int = 0) -> tuple[Finding, ...]:
    """Return one finding for each rule.

    Args:
        curves: The record of a fit.
        step: On the axis of ``self.log``, for findings that belong to no step of their own.

    Example:
        >>> steps = tuple(range(200))
        >>> falling = tuple(2.3 * 0.97**i for i in steps)
        >>> train = Curve(name="loss", steps=steps, values=falling)
        >>> curves = Curves(
        ...     train=train, rates=(0.1,) * 200, highs=falling, steps=200, chance=2.3
        ... )
        >>> {finding.verdict for finding in diagnose(curves)} <= {"pass", "skip"}
        True
    """
    reading = Reading(curves)
    findings = [
        curve_rules_level.non_finite(reading)
        if curves.steps
        else answer("non_finite", "skip", f"There is no loss: {curves.no_train}.")
    ]
    spikes = _judged(curves, 100, curve_rules_noise.loss_spikes, reading, "loss_spikes")
    if spikes.verdict == "warn":
        # levels and trends are those of the other batches
        reading = Reading(curve_rules_noise.without_spikes(reading))
    for code, (points, rule) in _ON_TRAINING.items():
        findings.append(_judged(curves, points, rule, reading, code))
    findings.append(spikes)
    for code, (points, rule) in _ON_BOTH.items():
        why = _unfit(curves, points) or (
            f"There is no validation loss: {curves.no_val}." if curves.val is None else ""
        )
        findings.append(answer(code, "skip", why) if why else rule(reading))
    findings.append(curve_rules_validation.metric_apart(reading))
    findings.append(curve_rules_rate.momentum_too_high(reading, findings))
    findings = _without_consequences(findings)
    return tuple(f if f.step else dataclasses.replace(f, step=step) for f in findings)


def _judged(curves: Curves, points: int, rule: _Rule, reading: Reading, code: str) -> Finding:
    why = _unfit(curves, points)
    return answer(code, "skip", why) if why else rule(reading)


def _without_consequences(findings: list[Finding]) -> list[Finding]:
    """Keep a cause, and let go of what only follows from it."""
    loud = {f.code for f in findings if f.verdict in ("warn", "fail")}
    explained: dict[str, str] = {}
    for cause, effects in _EXPLAINS.items():
        if cause in loud and cause not in explained:
            explained |= dict.fromkeys(effects, cause)
    return [
        answer(f.code, "skip", f"That is a consequence of {explained[f.code]}.")
        if f.verdict == "warn" and f.code in explained
        else f
        for f in findings
    ]


def went_bad(record: CurveRecord) -> Finding | None:
    """Return what must be said at once: that the loss is no number any more."""
    curves = Curves(
        train=Curve(name="loss"),
        steps=record.count,
        non_finite=record.non_finite,
        first_non_finite=record.first_non_finite,
    )
    finding = curve_rules_level.non_finite(Reading(curves))
    return finding if finding.verdict == "fail" else None


def _unfit(curves: Curves, points: int) -> str:
    """Return why a rule can't judge the training loss; empty if it can."""
    if curves.optimizers > 1:
        return f"{curves.optimizers} optimizers may work against each other; no loss tells how."
    if not curves.steps:
        return f"There is no training loss: {curves.no_train}."
    if len(curves.train.values) < points:
        return f"{len(curves.train.values)} points are too few; {points} are needed."
    return ""
