"""Whether a loss starts where a predictor that knows nothing would have it."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import Literal

from lightning_tuning.findings import Finding, Scalar, Verdict
from lightning_tuning.functional.chance_loss import ChanceLevel, chance_level
from lightning_tuning.functional.loss_calls import LossCall

INITIAL_LOSS_CHECK = "initial_loss_check"
_SURE = 3.0
"""So many standard errors count as beyond noise."""
_AGREEING = 5
"""So many batches that all say the same do, too."""

Place = Literal["at", "above", "below", "unknown", "non_finite"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One loss of a program before training, against what is expected of it.

    Attributes:
        name: The loss function in torch, with its number where it is called more than once; or
            ``"loss"`` for the loss as a whole.
        losses: Its value for each batch.
        low: The least loss that a predictor that knows nothing may have; None if unknown.
        high: The greatest.
        what: The expectation in words, such as ``"ln 10"``.
    """

    name: str
    losses: tuple[float, ...]
    low: float | None
    high: float | None
    what: str

    @property
    def mean(self) -> float:
        """Mean over the batches."""
        return mean_and_error(self.losses)[0]

    @property
    def stderr(self) -> float:
        """Standard error of the mean."""
        return mean_and_error(self.losses)[1]

    def place(self, rtol: float) -> Place:
        """Return where the loss lies, beyond tolerance and noise.

        Beyond noise is what is more than three standard errors away, or what all of five or more
        batches agree on (by chance 1 in 32). Of a single batch only half is believed.

        Example:
            >>> term = LossTerm(
            ...     name="cross_entropy", losses=(9.0, 9.5), low=2.2, high=2.303, what="ln 10"
            ... )
            >>> term.place(0.5), term.place(4.0)
            ('above', 'at')
        """
        if not math.isfinite(self.mean):
            return "non_finite"
        if self.low is None or self.high is None:
            return "unknown"
        single = not math.isfinite(self.stderr)
        doubt = abs(self.mean) / 2 if single else _SURE * self.stderr
        least, greatest = self.mean - doubt, self.mean + doubt
        if len(self.losses) >= _AGREEING:
            least, greatest = max(least, min(self.losses)), min(greatest, max(self.losses))
        if least > self.high + rtol * abs(self.high):
            return "above"
        if greatest < self.low - rtol * abs(self.low):
            return "below"
        return "at"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialLossResult:
    """The losses of a program before its first step.

    Attributes:
        terms: One for each trained loss function that it calls; or one for the loss as a whole.
        rtol: The tolerance that they were judged by.
        progress: The share of the loss that a short training took away; None where none was tried.
        strengths: Strengths of the regularization that were tried; empty where there is none.
        regularized: The loss with each of them.
    """

    terms: tuple[LossTerm, ...]
    rtol: float
    progress: float | None = None
    strengths: tuple[float, ...] = ()
    regularized: tuple[float, ...] = ()

    def to_json(self) -> str:
        """Write it as JSON.

        Example:
            >>> InitialLossResult(terms=(), rtol=0.5).to_json()[:12]
            '{"terms": []'
        """
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> InitialLossResult:
        """Read what :meth:`to_json` wrote.

        Example:
            >>> result = InitialLossResult(terms=(), rtol=0.5, progress=0.2)
            >>> InitialLossResult.from_json(result.to_json()) == result
            True
        """
        values = json.loads(text)
        values["terms"] = tuple(
            LossTerm(**{**term, "losses": tuple(term["losses"])}) for term in values["terms"]
        )
        values |= {name: tuple(values[name]) for name in ("strengths", "regularized")}
        return cls(**values)


def total_term(losses: Sequence[float], expected: float | None) -> LossTerm:
    """Return the loss as a whole as a term.

    Args:
        losses: One value for each batch.
        expected: What it should be; None if that is not known.

    Example:
        >>> total_term([2.0, 4.0], expected=3.1).stderr
        1.0
    """
    what = "" if expected is None else f"the expected {expected:.4g}"
    return LossTerm(name="loss", losses=tuple(losses), low=expected, high=expected, what=what)


def loss_terms(steps: Sequence[Sequence[LossCall]]) -> tuple[LossTerm, ...]:
    """Return the losses of a program that something learns from, place by place.

    Args:
        steps: The calls of one training step for each batch.

    Returns:
        One term for each place of the program with a known level at chance; places that are not
        the same in all steps are left out.
    """
    trained = [[call for call in calls if call.trained] for calls in steps]
    terms = []
    for calls in zip(*trained, strict=False):
        if len({call.name for call in calls}) > 1:
            continue
        level = chance_level(calls)
        if level is not None:
            terms.append(_term(calls, level))
    return _numbered(terms)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, s / sqrt(n); infinite for a single value.

    Example:
        >>> mean_and_error([1.0, 3.0])
        (2.0, 1.0)
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values) or not finite:
        return math.nan, math.nan
    if len(values) == 1:
        return values[0], math.inf
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


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


def _term(calls: Sequence[LossCall], level: ChanceLevel) -> LossTerm:
    return LossTerm(
        name=calls[0].name,
        losses=tuple(float(call.value.double().mean()) for call in calls),
        low=level.low,
        high=level.high,
        what=level.what,
    )


def _numbered(terms: Sequence[LossTerm]) -> tuple[LossTerm, ...]:
    names = [term.name for term in terms]
    numbers = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return tuple(
        dataclasses.replace(t, name=f"{t.name} {n}") if names.count(t.name) > 1 else t
        for t, n in zip(terms, numbers, strict=True)
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


BAD_PROGRESS = 0.1
"""A share of the loss below which a short training counts as bad."""


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
