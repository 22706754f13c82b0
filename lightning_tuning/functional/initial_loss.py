"""Whether a loss starts where a predictor that knows nothing would have it."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from typing import Literal

from lightning_tuning.functional.chance_loss import ChanceLevel, chance_level
from lightning_tuning.functional.loss_calls import LossCall

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
