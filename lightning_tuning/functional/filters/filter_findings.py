"""Whether a first layer's filters are still noise at the end of a fit that goes badly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lightning_tuning.findings import Finding, Verdict
from lightning_tuning.functional.filters.filter_images import smoothness_of_noise
from lightning_tuning.functional.filters.filter_result import FilterResult
from lightning_tuning.functional.fit_course import FitCourse, fit_course

CHECK = "filter_monitor"
_LEAST_SIZE = 5
_LEAST_IMAGE = 16
_SMOOTH_INPUT = 0.5
_MOVED = 1.0
"""Weights that have gone as far as they were long don't show their initial noise any more."""
_NOISE = 0.1
_LITTLE = 0.05
_STEPS = 100
_READINGS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterEvidence:
    """What the rule knows besides the weights.

    Attributes:
        result: What was read; None where there is no layer to show.
        input_shape: Positions of the layer's input; empty where it is not known.
        input_smoothness: Of the first batch; NaN where it is not known.
        losses: The training loss of each step.
        loss_reason: Why the loss tells nothing about the fit; empty where it does.
        reason: Why there is no layer.
        step: The place on the axis of ``self.log``.
    """

    result: FilterResult | None
    input_shape: tuple[int, ...] = ()
    input_smoothness: float = math.nan
    losses: Sequence[float] = ()
    loss_reason: str = ""
    reason: str = ""
    step: int = 0


def filters_noisy(evidence: FilterEvidence) -> tuple[Finding, ...]:
    """Judge the filters at the end of a fit.

    They are a symptom only: the rule warns where filters of five by five weights or more have
    gone far, are noise nevertheless, look at inputs that are smooth, and the loss has not fallen.

    Example:
        >>> filters_noisy(FilterEvidence(result=None, reason="no convolution"))[0].verdict
        'skip'
    """
    result = evidence.result
    if result is None or not result.steps:
        reason = evidence.reason or "nothing was read"
        hint = "Name the layer by `layer=`; a fully connected one needs `image_shape=` as well."
        return (_finding(evidence, "skip", f"No filters were shown: {reason}.", hint=hint),)
    said = f"The filters of {result.layer} have smoothness {result.smoothness[-1]:.2f} (noise: 0)"
    course = fit_course(evidence.losses, reason=evidence.loss_reason)
    reason = _why_not_judged(evidence, result, course)
    if reason:
        return (_finding(evidence, "skip", f"{said}; it is not judged: {reason}."),)
    error = smoothness_of_noise(result.shape)
    latest = result.smoothness[-2:]
    if max(latest) + 2 * error >= _NOISE or evidence.input_smoothness < _SMOOTH_INPUT:
        return (_finding(evidence, "pass", f"{said}."),)
    share = course.progress
    if share >= _LITTLE:
        return (_finding(evidence, "pass", f"{said}, and the loss fell by {share:.0%}."),)
    return (
        _finding(
            evidence,
            "warn",
            f"{said}, though they have moved by {result.moved[-1]:.1f} times their length, their"
            f" input is smooth ({evidence.input_smoothness:.2f}), and {share:.0%} of the loss is"
            " gone.",
            hint="Look for the cause: learning rate, labels, too little weight decay.",
        ),
    )


def _why_not_judged(evidence: FilterEvidence, result: FilterResult, course: FitCourse) -> str:
    extent = " x ".join(str(n) for n in result.shape[2:])
    small = len(result.shape) < 4 or min(result.shape[2:]) < _LEAST_SIZE
    image = evidence.input_shape and min(evidence.input_shape) >= _LEAST_IMAGE
    hindrances = (
        (not math.isfinite(result.smoothness[-1]), "the weights are zero or not finite"),
        (small, f"{extent} weights are too few to tell noise from a pattern"),
        (
            not image,
            f"its inputs aren't known to be images of {_LEAST_IMAGE} or more pixels a side",
        ),
        (not math.isfinite(evidence.input_smoothness), "its inputs were not seen"),
        (
            len(evidence.losses) < _STEPS or len(result.steps) < _READINGS,
            f"that takes {_STEPS} steps and {_READINGS} readings",
        ),
        (
            not result.moved[-1] >= _MOVED,
            f"they have moved by {result.moved[-1]:.2f} times their length only",
        ),
        (bool(course.reason), course.reason),
    )
    return next((reason for hinders, reason in hindrances if hinders), "")


def _finding(evidence: FilterEvidence, verdict: Verdict, message: str, hint: str = "") -> Finding:
    result = evidence.result
    read = result is not None and bool(result.steps)
    return Finding(
        check=CHECK,
        code="noisy_filters",
        verdict=verdict,
        message=message,
        evidence={
            "smoothness": result.smoothness[-1] if result is not None and read else None,
            "moved": result.moved[-1] if result is not None and read else None,
            "input_smoothness": evidence.input_smoothness,
        },
        hint=hint,
        where="" if result is None else result.layer,
        step=evidence.step,
    )
