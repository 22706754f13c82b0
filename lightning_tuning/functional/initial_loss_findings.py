"""What there is to say about the loss before the first step."""

from __future__ import annotations

import math

from lightning_tuning.findings import Finding, Scalar, Verdict
from lightning_tuning.functional.initial_loss import InitialLossResult, LossTerm

INITIAL_LOSS_CHECK = "initial_loss_check"
BAD_PROGRESS = 0.1
"""A share of the loss below which a short training counts as bad."""


def said(result: InitialLossResult) -> tuple[Finding, ...]:
    """Return what there is to say about the losses before the first step."""
    findings = [_said_of(term, result) for term in result.terms]
    if result.strengths:
        findings.append(_regularization(result))
    return tuple(findings)


def skipped(reason: str) -> Finding:
    """Return the answer of a check that could not be made."""
    return _finding("skip", "initial_loss", f"The initial loss was not checked: {reason}.")


def unknown_loss() -> Finding:
    """Return the answer for a loss whose level at chance nobody knows."""
    return _finding(
        "skip",
        "initial_loss",
        "No loss function with a known level at chance was called.",
        hint="Give expected=, the loss of a predictor that knows nothing.",
    )


def _said_of(term: LossTerm, result: InitialLossResult) -> Finding:
    place = term.place(result.rtol)
    numbers: dict[str, Scalar] = {
        "mean": term.mean,
        "stderr": term.stderr,
        "low": term.low,
        "high": term.high,
        "progress": result.progress,
    }
    if place == "unknown":
        return unknown_loss()
    if place == "non_finite":
        return _finding(
            "fail",
            "non_finite",
            f"Before the first step {term.name} is {term.mean}.",
            hint="Look for nan in the data, and for log, sqrt or a division of zero in the loss.",
            numbers=numbers,
        )
    start = f"Before the first step {term.name} is {term.mean:.4g}{_error(term)}"
    level = f"a predictor that knows nothing has {_level(term)}"
    if place == "at":
        return _finding("pass", "initial_loss", f"{start}; {level}.", numbers=numbers)
    if place == "below":
        return _finding(
            "skip",
            "loss_not_at_chance",
            f"{start}, well below chance: {level}.",
            hint="Right for weights that were trained before; else look for a target in the input.",
            numbers=numbers,
        )
    return _above(start, level, term, result, numbers)


def _above(
    start: str,
    level: str,
    term: LossTerm,
    result: InitialLossResult,
    numbers: dict[str, Scalar],
) -> Finding:
    """Speak of a loss far above chance; a wrong one where it was given what is right."""
    if term.name == "loss":
        return _finding(
            "fail",
            "loss_not_at_chance",
            f"{start}, above {term.what}.",
            hint="Look at the scale of the last layer's weights and of the inputs.",
            numbers=numbers,
        )
    if result.progress is None:
        return _finding(
            "skip",
            "loss_not_at_chance",
            f"{start}, above chance ({level}), and its short training can't be judged.",
            numbers=numbers,
        )
    if result.progress >= BAD_PROGRESS:
        return _finding(
            "pass",
            "initial_loss",
            f"{start}, above chance ({level}), and a short training brings it down.",
            hint="Smaller weights in the last layer would save these first steps.",
            numbers=numbers,
        )
    return _finding(
        "warn",
        "loss_not_at_chance",
        f"{start}, far above chance ({level}), and a short training did not get below it.",
        hint="Make the last layer's initial weights smaller, and check the scale of the inputs.",
        numbers=numbers,
    )


def _regularization(result: InitialLossResult) -> Finding:
    pairs = list(zip(result.strengths, result.regularized, strict=True))
    told = ", ".join(f"{loss:.6g} at {strength:g}" for strength, loss in pairs)
    rises = all(b > a for a, b in zip(result.regularized, result.regularized[1:], strict=False))
    numbers: dict[str, Scalar] = {f"loss_at_{strength:g}": loss for strength, loss in pairs}
    if rises:
        return _finding(
            "pass",
            "initial_loss",
            f"The loss rises with the strength of the regularization: {told}.",
            numbers=numbers,
        )
    return _finding(
        "fail",
        "regularization_not_felt",
        f"The loss does not rise with the strength of the regularization: {told}.",
        hint="See that training_step reads this attribute and adds the term to the loss.",
        numbers=numbers,
    )


def _error(term: LossTerm) -> str:
    return f" (+-{term.stderr:.2g})" if math.isfinite(term.stderr) else ""


def _level(term: LossTerm) -> str:
    assert term.low is not None
    assert term.high is not None
    if math.isclose(term.low, term.high, rel_tol=5e-3):
        return f"{term.high:.4g} ({term.what})"
    return f"{term.low:.4g} to {term.high:.4g} ({term.what}; less where it knows the frequencies)"


def _finding(
    verdict: Verdict,
    code: str,
    message: str,
    *,
    hint: str = "",
    numbers: dict[str, Scalar] | None = None,
) -> Finding:
    return Finding(
        check=INITIAL_LOSS_CHECK,
        code=code,
        verdict=verdict,
        message=message,
        evidence=numbers or {},
        hint=hint,
    )
