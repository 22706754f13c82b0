"""What update ratios say about a fit: statistics, which speak only where it goes badly."""

from __future__ import annotations

import math

import numpy as np

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.update_ratio.update_evidence import UpdateEvidence
from lightning_tuning.functional.update_ratio.update_exact_rules import (
    finite,
    nothing_measured,
    update_finding,
    weights_move,
    went,
)
from lightning_tuning.functional.update_ratio.update_frozen_rules import gradients_arrive
from lightning_tuning.functional.update_ratio.update_settings_rules import (
    decay_leaves_weights,
    rate_lasts,
)

_FEWEST_ROWS = 4
_FEWEST_STEPS = 100


def update_findings(evidence: UpdateEvidence) -> tuple[Finding, ...]:
    """Return what there is to say at the end of a fit; one or more findings for each code.

    Where a setting explains it (clipping, a decayed learning rate, weight decay), the ratio that
    follows from it is not called a fault of its own.
    """
    clipped = clipping_leaves_steps(evidence)
    lasting = rate_lasts(evidence)
    decayed = decay_leaves_weights(evidence)
    low = any(f.verdict == "warn" for f in (*clipped, *lasting))
    high = any(f.verdict == "warn" for f in decayed)
    return (
        *finite(evidence),
        *weights_move(evidence),
        *gradients_arrive(evidence),
        *(ratio_low(evidence, explained=low)),
        *(ratio_high(evidence, explained=high)),
        *clipped,
        *lasting,
        *decayed,
    )


def is_low(evidence: UpdateEvidence) -> bool:
    r"""Whether the steps were far too small to get anywhere.

    Nearly all matrices (the 90th percentile) must move by less than :math:`10^{-3.2}` in a step,
    half of them by less than :math:`10^{-3.5}` in three quarters of the steps, and half by less
    than a tenth of their norm in the whole fit; at least 100 steps, with weights that were
    untrained at the start.
    """
    middle, high = evidence.quantile(0.5), evidence.quantile(0.9)
    middle, high = middle[~np.isnan(middle)], high[~np.isnan(high)]
    if len(middle) < _FEWEST_ROWS or evidence.steps < _FEWEST_STEPS or not evidence.fresh:
        return False
    way = float(np.mean(10.0**middle)) * evidence.steps
    return bool(np.quantile(middle, 0.75) < -3.5 and np.median(high) < -3.2 and way < 0.1)


def ratio_low(evidence: UpdateEvidence, *, explained: bool = False) -> tuple[Finding, ...]:
    """Find a fit whose steps are too small, and which therefore hardly learns.

    Fine-tuning moves trained weights by little, too, and a converged fit as well: weights must
    have been untrained, and less than 30 % of the loss gone.

    Args:
        evidence: The fit.
        explained: Whether a setting is known to be the cause.
    """
    usual = _usual(evidence)
    if usual is None:
        return (nothing_measured(evidence, "update_ratio_low"),)
    numbers: dict[str, Scalar] = {
        "log10_ratio": usual,
        "start": evidence.course.start,
        "end": evidence.course.end,
    }
    told = f"Half of the matrices moved by less than {10**usual:.2g} of their norm in a usual step"
    if not is_low(evidence) or explained:
        return (
            update_finding("pass", "update_ratio_low", told + ".", at=evidence.at, numbers=numbers),
        )
    if evidence.course.reason:
        return (
            update_finding(
                "skip",
                "update_ratio_low",
                f"{told}, which is little; whether it is too little can't be told:"
                f" {evidence.course.reason}.",
                at=evidence.at,
                numbers=numbers,
            ),
        )
    bad = evidence.course.progress < 0.3
    return (
        update_finding(
            "warn" if bad else "pass",
            "update_ratio_low",
            f"{told}, and the training loss {went(evidence)}.",
            at=evidence.at,
            hint="Raise the learning rate, tenfold at first, or find one with LRRangeTest."
            if bad
            else "",
            numbers=numbers,
        ),
    )


def ratio_high(evidence: UpdateEvidence, *, explained: bool = False) -> tuple[Finding, ...]:
    """Find a fit that its own steps have thrown off.

    Large ratios are usual at Adam's first steps, in small networks and with L-BFGS: the loss must
    have gone nowhere, or have shot up, and weights must have grown to several times their norm.

    Args:
        evidence: The fit.
        explained: Whether a setting is known to be the cause.
    """
    middle = evidence.quantile(0.5)
    middle = middle[~np.isnan(middle)]
    if not len(middle) or len(evidence.result.steps) < _FEWEST_ROWS:
        return (nothing_measured(evidence, "update_ratio_high"),)
    course, growth = evidence.course, evidence.growth
    usual, largest = float(np.median(middle)), float(np.max(middle))
    rise = course.peak / course.start if course.start > 0 else math.nan
    grown = growth >= 4 and largest >= -1.5
    thrown = growth >= 5 and largest >= -1.0
    numbers: dict[str, Scalar] = {
        "log10_ratio": usual,
        "log10_largest": largest,
        "growth": growth,
        "start": course.start,
        "end": course.end,
        "peak": course.peak,
    }
    told = (
        f"Half of the matrices moved by more than {10**usual:.2g} of their norm in a usual step"
        f" (at most {10**largest:.2g}) and grew {growth:.3g}-fold"
    )
    suspicious = grown or thrown or usual >= -1.0
    if course.reason and suspicious:
        return (
            update_finding(
                "skip",
                "update_ratio_high",
                f"{told}; whether that is too much can't be told: {course.reason}.",
                at=evidence.at,
                numbers=numbers,
            ),
        )
    harmed = rise >= 100 or (rise >= 3 and course.progress < 0.9)
    stalled = course.progress < 0.5 and (rise >= 1.7 or largest >= -0.5)
    bad = (course.trains_badly and (grown or usual >= -1.0)) or (thrown and (harmed or stalled))
    if not bad or explained:
        return (
            update_finding(
                "pass", "update_ratio_high", told + ".", at=evidence.at, numbers=numbers
            ),
        )
    return (
        update_finding(
            "warn",
            "update_ratio_high",
            f"{told}, and the training loss {went(evidence)}, with a peak of {course.peak:.4g}.",
            at=evidence.at,
            hint="Lower the learning rate, tenfold at first, or find one with LRRangeTest.",
            numbers=numbers,
        ),
    )


def clipping_leaves_steps(evidence: UpdateEvidence) -> tuple[Finding, ...]:
    """Find clipping that leaves steps too small to get anywhere.

    Adam and its like undo any factor of the gradient, so that the ratios must be low too, and must
    not be without the clipping.
    """
    left = evidence.result.clip_coefficients
    if not len(left):
        known = "the gradients were not seen before clipping"
        return (
            update_finding(
                "skip",
                "clip_too_small",
                f"It can't be told how often clipping bites: {known}.",
                at=evidence.at,
            ),
        )
    coefficient, share = float(np.median(left)), evidence.result.clipped_share or 0.0
    usual = _usual(evidence)
    numbers: dict[str, Scalar] = {"coefficient": coefficient, "clipped_share": share}
    # a start far above chance comes down by steps of any size
    slow = evidence.course.late < 0.3
    bad = (
        usual is not None
        and 0 < coefficient < 0.1
        and is_low(evidence)
        and usual - math.log10(coefficient) > -3.5
        and (evidence.course.progress < 0.3 or (share > 0.9 and coefficient < 0.01 and slow))
    )
    told = (
        f"Clipping bites at {share:.0%} of the measured steps and leaves {coefficient:.2g} of the"
        " gradient's norm at the median"
    )
    if share == 0:
        told = "No gradient was clipped at the measured steps"
    if not bad or usual is None:
        return (
            update_finding("pass", "clip_too_small", told + ".", at=evidence.at, numbers=numbers),
        )
    return (
        update_finding(
            "warn",
            "clip_too_small",
            f"{told}; half of the matrices move by less than {10**usual:.2g} of their norm in a"
            f" step, and the training loss {went(evidence)}.",
            at=evidence.at,
            hint=(
                "Raise gradient_clip_val to the usual norm of the gradients,"
                f" {float(np.nanmedian(evidence.result.before_clipping)):.2g}."
            ),
            numbers={**numbers, "log10_ratio": usual},
        ),
    )


def _usual(evidence: UpdateEvidence) -> float | None:
    """Return the median over matrices and steps; None where too few steps were measured."""
    middle = evidence.quantile(0.5)
    middle = middle[~np.isnan(middle)]
    return float(np.median(middle)) if len(middle) >= _FEWEST_ROWS else None
