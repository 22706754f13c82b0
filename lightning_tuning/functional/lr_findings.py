"""What there is to say about a range test: curves that can't be used, doubtful suggestions."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_tuning.findings import Finding, Scalar, Verdict
from lightning_tuning.functional.lr_noise import deepest_fall
from lightning_tuning.functional.lr_range_test import (
    MIN_POINTS,
    Interval,
    LRRangeResult,
    LRSweep,
    LRTrial,
)
from lightning_tuning.functional.lr_suggestion import Curve

_CHECK = "lr_range_test"
SIGNIFICANT = 4.0
"""A fall counts when it is so many of its standard errors deep; many windows are tried."""


def unusable(losses: Curve, repeats: Sequence[LRSweep]) -> Finding | None:
    """Say why no rule may read a curve, or return None where one may.

    Args:
        losses: Its finite part, lower is better.
        repeats: The sweeps behind it.
    """
    measured = min(len(sweep.losses) for sweep in repeats)
    if len(losses) == 0:
        return _no_suggestion(
            "non_finite",
            "The loss is not finite at the very first step of the sweep.",
            "Look for NaN in the data, a logarithm or a division in the loss.",
            verdict="fail",
        )
    if len(losses) < MIN_POINTS:
        return _no_suggestion(
            "lr_curve_too_short",
            f"The sweep gave {len(losses)} finite points of {measured} before it diverged; "
            f"{MIN_POINTS} are needed.",
            "Start the sweep lower (start_lr) or take more steps (num_steps).",
            points=len(losses),
        )
    fall, deviations = deepest_fall(losses)
    # less than float32 can tell apart
    if fall <= 1e-6 * abs(float(losses[0])):
        return _no_suggestion(
            "lr_curve_flat",
            f"The loss stays at {float(losses[0]):.6g} during the whole sweep.",
            "Check that the weights get gradients and that the optimizer has them.",
            fall=fall,
        )
    if deviations <= SIGNIFICANT:
        return _no_suggestion(
            "lr_curve_flat",
            f"The loss falls by {fall:.3g} during the sweep, {deviations:.1f} times the standard "
            f"error of that; {SIGNIFICANT:g} are needed to tell it from noise.",
            "Check that weights get gradients; then sweep longer, higher, or with larger batches.",
            fall=fall,
            standard_errors=deviations,
        )
    return None


def nothing_learned(trials: Sequence[LRTrial]) -> Finding:
    """Say that the short runs gave no answer."""
    return _no_suggestion(
        "lr_nothing_learned",
        f"None of {len(trials)} short runs at single rates lowered the loss beyond its noise.",
        "Give them more steps (max_steps), or take the rule 'valley' on the sweep alone.",
        runs=len(trials),
    )


def guessed(chosen: float, trials: Sequence[LRTrial]) -> Finding:
    """Warn that the suggestion rests on where the loss breaks down alone."""
    return Finding(
        check=_CHECK,
        code="lr_nothing_learned",
        verdict="warn",
        message=f"None of {len(trials)} short runs lowered the loss beyond its noise; {chosen:.2e} "
        "is a guess at a fixed distance below the rates that diverge.",
        hint="Give the runs more steps (max_steps), and check that the module can learn.",
        evidence={"suggestion": chosen, "runs": len(trials)},
    )


def at_border(chosen: float, ends: Interval, *, bounded: bool) -> list[Finding]:
    """Warn where the answer may lie outside the sweep.

    Args:
        chosen: The suggestion.
        ends: Lowest and highest rate of the sweep.
        bounded: Whether the search was stopped by the highest.
    """
    start, end = ends
    # the rules leave out the first tenth of the sweep
    lowest, highest = start * (end / start) ** 0.12, end / 3
    if lowest < chosen < highest and not bounded:
        return []
    argument, direction = ("start_lr", "lower") if chosen <= lowest else ("end_lr", "raise")
    return [
        Finding(
            check=_CHECK,
            code="lr_at_sweep_border",
            verdict="warn",
            message=f"The suggestion {chosen:.2e} stands at the border of the sweep "
            f"({start:.1e} to {end:.1e}).",
            hint=f"Repeat it with another {argument}: {direction} it by a factor of 100.",
            evidence={"suggestion": chosen, "start_lr": start, "end_lr": end},
        )
    ]


def skipped(reason: str) -> Finding:
    """Say why nothing was measured."""
    return Finding(
        check=_CHECK,
        code="lr_curve_not_measured",
        verdict="skip",
        message=f"Not measured: {reason}.",
        hint="Run lr_range_test(trainer, model, ...) before a fit from the first step.",
    )


_FAR = 3.0


def said(result: LRRangeResult, *, own: float | None = None) -> tuple[Finding, ...]:
    """Return the result's findings, and the suggestion as one.

    Args:
        result: What was measured.
        own: The program's own rate, where it is not going to be replaced.
    """
    if result.suggestion is None or result.lr_range is None:
        return result.findings
    passed = Finding(
        check=_CHECK,
        code="lr_suggested",
        verdict="pass",
        message=f"{result.summary()}.",
        hint=_compared(result.suggestion, own),
        evidence={
            "suggestion": result.suggestion,
            "own": own,
            "lowest_useful": result.lr_range[0],
            "highest_stable": result.lr_range[1],
            "steps": result.num_steps,
        },
    )
    return (passed, *result.findings)


def _compared(suggestion: float, own: float | None) -> str:
    """Return what to do about a rate of the program's own that is far from the suggestion."""
    if own is None or own <= 0 or 1 / _FAR < suggestion / own < _FAR:
        return ""
    ratio, word = (suggestion / own, "lower") if suggestion > own else (own / suggestion, "higher")
    return f"The program's own rate of {own:.2g} is {ratio:.2g} times {word}: try {suggestion:.2g}."


def doubtful(message: str) -> Finding:
    """Warn that the module's attribute may not be where its rate comes from."""
    return Finding(
        check=_CHECK,
        code="lr_not_applied",
        verdict="warn",
        message=message,
        hint="Check that configure_optimizers makes the learning rate from this attribute.",
    )


def overruled(kinds: Sequence[str], rate: float) -> Finding:
    """Warn that schedulers compute the rate with a formula of their own."""
    names = ", ".join(sorted(set(kinds)))
    return Finding(
        check=_CHECK,
        code="lr_not_applied",
        verdict="warn",
        message=f"The scheduler {names} can't be told of the learning rate {rate:.2e} and may "
        "overwrite it.",
        hint="Build it from the suggested rate, or use OneCycle instead.",
        evidence={"schedulers": names, "lr": rate},
    )


def _no_suggestion(
    code: str, message: str, hint: str, *, verdict: Verdict = "skip", **evidence: Scalar
) -> Finding:
    return Finding(
        check=_CHECK,
        code=code,
        verdict=verdict,
        message=message,
        hint=hint,
        evidence=evidence,
    )
