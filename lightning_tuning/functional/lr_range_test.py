"""The learning-rate range test: which rates to try, and what the losses measured there say.

Source: L. N. Smith, *Cyclical Learning Rates for Training Neural Networks* (2017), and *A
disciplined approach to neural network hyper-parameters: Part 1* (2018).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks
from lightning_tuning.functional.metric_mode import MetricMode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["exponential", "linear"]
Suggestion = Literal["auto", "valley", "steepest", "minimum", "slide"]
Interval = tuple[float, float]

MIN_POINTS = 10
"""A curve with fewer finite points is not read."""


def sweep_rates(start_lr: float, end_lr: float, num_steps: int, mode: Mode) -> tuple[float, ...]:
    """Return the learning rates of a sweep: geometric or evenly spaced, both ends included.

    Args:
        start_lr: The first rate.
        end_lr: The last rate.
        num_steps: How many.
        mode: ``"exponential"`` (rate k is ``start * (end / start) ** (k / (num_steps - 1))``) or
            ``"linear"``.

    Raises:
        ValueError: The ends are not positive and ascending, there are fewer than
            :data:`MIN_POINTS` steps, or the mode is unknown.

    Example:
        >>> [round(rate, 6) for rate in sweep_rates(1e-5, 1e-2, 10, "exponential")][::3]
        [1e-05, 0.0001, 0.001, 0.01]
    """
    numeric = checks.is_number(start_lr) and checks.is_number(end_lr)
    if not numeric or not 0 < start_lr < end_lr < math.inf:
        raise ValueError(
            f"start_lr={start_lr!r} and end_lr={end_lr!r} must be positive, the first the smaller"
        )
    checks.at_least("num_steps", num_steps, MIN_POINTS)
    if mode not in ("exponential", "linear"):
        raise ValueError(f"mode={mode!r} must be 'exponential' or 'linear'")
    parts = [step / (num_steps - 1) for step in range(num_steps)]
    if mode == "linear":
        rates = [start_lr + part * (end_lr - start_lr) for part in parts]
    else:
        rates = [start_lr * (end_lr / start_lr) ** part for part in parts]
    return (*rates[:-1], end_lr)


def has_diverged(losses: Sequence[float], *, diverge_factor: float) -> bool:
    """Tell whether the latest losses have left the best level for good.

    The running mean of the last three losses is compared with its lowest value so far; the level
    to cross is ``best + (diverge_factor - 1) * max(|best|, first - best)``. For losses near their
    start it is the usual ``diverge_factor * best``; unlike that it also works for losses that are
    negative or close to zero.

    Example:
        >>> has_diverged([1.0, 1.0, 1.0, 9.0, 9.0, 9.0], diverge_factor=4)
        True
        >>> has_diverged([1.0, 1.0, 1.0, 2.0, 2.0, 2.0], diverge_factor=4)
        False
    """
    values = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(values).all():
        return True
    if len(values) < 3:
        return False
    means = np.convolve(values, np.ones(3) / 3, "valid")
    best = float(means.min())
    level = best + (diverge_factor - 1) * max(abs(best), float(means[0]) - best)
    return bool(means[-1] > level)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LRSweep:
    """One pass from low to high rates.

    Attributes:
        rates: The rates that were reached.
        losses: The metric at each, as measured; the last may be non-finite.
        weight_decay: The weight decay it ran with; None for the optimizer's own.
        momentum: The momentum (Adam: beta1) it ran with; None for the optimizer's own.
        order: The number of its data order, from 0.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    weight_decay: float | None = None
    momentum: float | None = None
    order: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LRTrial:
    """A short training run at one rate, from the initial weights.

    Attributes:
        rate: The learning rate.
        losses: The metric after each step, as measured.
        score: What runs are compared by, lower is better; infinite where it diverged.
    """

    rate: float
    losses: tuple[float, ...]
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LRRangeResult:
    """What a range test measured and suggests.

    Attributes:
        rates: Learning rates of the best setting's curve, ascending.
        losses: The metric at each rate, the mean over repeats.
        smoothed: The same, smoothed without lag.
        suggestion: The suggested rate, or None where the curve can't be used.
        suggested_by: The rule that the suggestion comes from.
        suggestions: Every rule's rate, by name.
        uncertainty: For each rule an interval (low, high) of rates: over the repeats if there are
            several, else from resampling the noise; for ``auto``, the rates that the trials could
            not tell from the best one.
        lr_range: (lowest useful, highest stable) rate, for cyclic schedules; None like suggestion.
        weight_decay: The best of the ``weight_decays`` asked for.
        momentum: The best of the ``momenta`` asked for.
        sweeps: All sweeps.
        trials: The confirmation runs of ``auto``.
        metric: Name of the metric.
        metric_mode: ``"min"`` or ``"max"``.
        optimizer: The one optimizer that was swept, by index or class name; None for all.
        num_steps: Training steps spent in all.
        findings: What there is to say about it.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    suggested_by: str
    suggestions: Mapping[str, float]
    uncertainty: Mapping[str, Interval]
    lr_range: Interval | None
    weight_decay: float | None = None
    momentum: float | None = None
    sweeps: tuple[LRSweep, ...] = ()
    trials: tuple[LRTrial, ...] = ()
    metric: str = "train_loss"
    metric_mode: MetricMode = "min"
    optimizer: int | str | None = None
    num_steps: int = 0
    findings: tuple[Finding, ...] = ()

    def plot(self) -> Figure:
        """Draw the curves with the suggestion and the range.

        Returns:
            A ``matplotlib.figure.Figure`` that belongs to no window.
        """
        from lightning_tuning.plots import plot_lr_range_test

        return plot_lr_range_test(self)

    def to_json(self) -> str:
        """Return all of it as JSON; values that are not finite become null."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["findings"] = [finding.to_dict() for finding in self.findings]
        for name in ("sweeps", "trials"):
            fields[name] = [dataclasses.asdict(part) for part in fields[name]]
        return json.dumps(_finite(fields), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> LRRangeResult:
        """Return the result that :meth:`to_json` wrote; null becomes NaN again.

        Example:
            >>> from lightning_tuning.functional.lr_analysis import analyse
            >>> result = analyse([LRSweep(rates=(0.1, 1.0), losses=(1.0, 2.0))])
            >>> LRRangeResult.from_json(result.to_json()) == result
            True
        """
        fields = json.loads(text)
        for name in ("rates", "losses", "smoothed"):
            fields[name] = _numbers(fields[name])
        fields["uncertainty"] = {k: tuple(v) for k, v in fields["uncertainty"].items()}
        fields["lr_range"] = tuple(fields["lr_range"]) if fields["lr_range"] else None
        for name, kind in (("sweeps", LRSweep), ("trials", LRTrial)):
            parts = [{**part, "losses": _numbers(part["losses"])} for part in fields[name]]
            fields[name] = tuple(kind(**_with_numbers(part)) for part in parts)
        fields["findings"] = tuple(Finding(**finding) for finding in fields["findings"])
        return cls(**fields)

    def summary(self) -> str:
        """Return one line: the suggestion, its interval, the range, and where it comes from."""
        if self.suggestion is None or self.lr_range is None:
            return " ".join(finding.message for finding in self.findings)
        low, high = self.uncertainty[self.suggested_by]
        best = [
            f", {name} {value:g}"
            for name, value in (("weight decay", self.weight_decay), ("momentum", self.momentum))
            if value is not None
        ]
        return (
            f"Suggested learning rate {self.suggestion:.2e} ({self.suggested_by}, "
            f"{low:.1e} to {high:.1e}){''.join(best)}; useful from {self.lr_range[0]:.1e}, "
            f"stable up to {self.lr_range[1]:.1e}; {self.num_steps} steps on {self.metric}"
        )


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


def _with_numbers(part: dict[str, Any]) -> dict[str, Any]:
    if "rates" in part:
        return {**part, "rates": tuple(part["rates"])}
    return {**part, "score": math.inf if part["score"] is None else part["score"]}


def _finite(value: object) -> object:
    """Replace what JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
