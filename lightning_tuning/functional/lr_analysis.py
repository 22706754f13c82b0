"""Reading the sweeps of a range test: the best setting, every rule, the range, the doubts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_tuning.findings import Finding
from lightning_tuning.functional.lr_auto import AutoChoice
from lightning_tuning.functional.lr_findings import (
    at_border,
    guessed,
    nothing_learned,
    unusable,
)
from lightning_tuning.functional.lr_noise import capped, standard_error
from lightning_tuning.functional.lr_range_test import (
    MIN_POINTS,
    Interval,
    LRRangeResult,
    LRSweep,
    LRTrial,
    Suggestion,
)
from lightning_tuning.functional.lr_suggestion import Curve, read_rules, smooth
from lightning_tuning.functional.metric_mode import MetricMode, sign_of

Setting = tuple[float | None, float | None]

_USEFUL = 0.1
"""The lowest useful rate is where this part of the whole fall has happened."""
_RESAMPLES = 40


def analyse(
    sweeps: Sequence[LRSweep],
    *,
    suggestion: Suggestion = "minimum",
    auto: AutoChoice | None = None,
    ends: Interval | None = None,
    num_steps: int | None = None,
    metric: str = "train_loss",
    metric_mode: MetricMode = "min",
    optimizer: int | str | None = None,
) -> LRRangeResult:
    """Read the sweeps: choose the best setting, apply every rule, judge whether to trust them.

    The best weight decay and momentum allow the lowest loss; among those within noise of it, the
    one that is stable up to the highest rate wins (Smith 2018).

    Args:
        sweeps: At least one.
        suggestion: The rule to suggest by.
        auto: What the short runs of the rule ``auto`` led to.
        ends: Lowest and highest rate that the sweeps were to reach; those reached by default.
        num_steps: Steps that each sweep was to take; those taken by default.
        metric: Name of the metric.
        metric_mode: ``"min"`` where lower is better.
        optimizer: The one optimizer that was swept.

    Example:
        >>> from lightning_tuning.functional.lr_range_test import sweep_rates
        >>> rates = sweep_rates(1e-5, 1.0, 51, "exponential")
        >>> losses = [1 - min(30 * r, 0.9) + 50 * max(r - 0.2, 0) for r in rates]
        >>> result = analyse([LRSweep(rates=rates, losses=tuple(losses))], suggestion="valley")
        >>> 1e-4 <= result.suggestion <= 0.2
        True
    """
    sign = sign_of(metric_mode)
    weight_decay, momentum = best_setting(sweeps, metric_mode=metric_mode)
    repeats = by_setting(sweeps)[weight_decay, momentum]
    rates, losses = mean_curve(repeats)
    smoothed = sign * smooth(capped(sign * losses)) if len(losses) else losses
    suggestions: dict[str, float] = {}
    uncertainty: dict[str, Interval] = {}
    reason = unusable(sign * losses, repeats)
    if reason is None:
        planned = num_steps or len(rates)
        suggestions = read_rules(rates, sign * losses, planned)
        uncertainty = _intervals(repeats, sign, suggestions, planned)
    trials = auto.trials if auto is not None else ()
    if auto is not None and auto.rate is not None:
        suggestions["auto"], uncertainty["auto"] = auto.rate, auto.interval
    chosen = suggestions.get(suggestion)
    lr_range = None
    findings: list[Finding] = []
    if chosen is not None:
        learns = [chosen]
        if auto is not None and auto.learned and suggestion == "auto":
            # short runs could not tell these rates apart
            low, high = auto.interval
            learns += [t.rate for t in trials if math.isfinite(t.score) and low <= t.rate <= high]
        lr_range = _useful_range(rates, sign * smoothed, (min(learns), max(learns)), trials)
        reached = repeats[0].rates
        bounded = auto is not None and suggestion == "auto" and auto.bounded
        findings = at_border(chosen, ends or (reached[0], reached[-1]), bounded=bounded)
        if auto is not None and not auto.learned and suggestion == "auto":
            findings.append(guessed(chosen, trials))
    else:
        findings = [reason or nothing_learned(trials)]
    return LRRangeResult(
        rates=tuple(rates.tolist()),
        losses=tuple(losses.tolist()),
        smoothed=tuple(smoothed.tolist()),
        suggestion=chosen,
        suggested_by=suggestion,
        suggestions=suggestions,
        uncertainty=uncertainty,
        lr_range=lr_range,
        weight_decay=weight_decay,
        momentum=momentum,
        sweeps=tuple(sweeps),
        trials=trials,
        metric=metric,
        metric_mode=metric_mode,
        optimizer=optimizer,
        num_steps=sum(len(s.losses) for s in sweeps) + sum(len(t.losses) for t in trials),
        findings=tuple(findings),
    )


def by_setting(sweeps: Sequence[LRSweep]) -> dict[Setting, list[LRSweep]]:
    """Group the repeats of each (weight decay, momentum).

    Example:
        >>> sweep = LRSweep(rates=(0.1,), losses=(1.0,), momentum=0.9)
        >>> list(by_setting([sweep, sweep]))
        [(None, 0.9)]
    """
    groups: dict[Setting, list[LRSweep]] = {}
    for sweep in sweeps:
        groups.setdefault((sweep.weight_decay, sweep.momentum), []).append(sweep)
    return groups


def mean_curve(repeats: Sequence[LRSweep]) -> tuple[Curve, Curve]:
    """Return rates and mean losses over the repeats, up to the first non-finite value of any.

    Example:
        >>> rates, losses = mean_curve([LRSweep(rates=(0.1, 1.0), losses=(1.0, float("nan")))])
        >>> rates.tolist(), losses.tolist()
        ([0.1], [1.0])
    """
    length = min(_finite_length(sweep.losses) for sweep in repeats)
    losses = np.mean([sweep.losses[:length] for sweep in repeats], axis=0)
    return np.asarray(repeats[0].rates[:length], dtype=np.float64), np.asarray(losses)


def best_setting(sweeps: Sequence[LRSweep], *, metric_mode: MetricMode = "min") -> Setting:
    """Return the (weight decay, momentum) that allows the lowest loss and the highest rate.

    Among the settings whose lowest smoothed loss lies within the noise of the lowest of all, the
    one whose minimum stands at the highest rate (Smith 2018: prefer the regularization under which
    the largest learning rate works).

    Example:
        >>> losses = [3.0] * 5 + [1.0] * 10
        >>> rates = tuple(10.0 ** -k for k in range(15, 0, -1))
        >>> good = LRSweep(rates=rates, losses=tuple(losses), momentum=0.9)
        >>> bad = LRSweep(rates=rates, losses=tuple(x + 1 for x in losses), momentum=0.5)
        >>> best_setting([bad, good])
        (None, 0.9)
    """
    sign = sign_of(metric_mode)
    found: list[tuple[float, float, float, Setting]] = []
    for setting, repeats in by_setting(sweeps).items():
        rates, losses = mean_curve(repeats)
        if len(losses) < MIN_POINTS:
            continue
        smoothed = smooth(capped(sign * losses))
        lowest = int(np.argmin(smoothed))
        noise = standard_error(sign * losses)
        found.append((float(smoothed[lowest]), float(rates[lowest]), noise, setting))
    if not found:
        return next(iter(by_setting(sweeps)))
    best = min(found)
    close = [entry for entry in found if entry[0] <= best[0] + math.hypot(entry[2], best[2])]
    return max(close, key=lambda entry: entry[1])[3]


def _finite_length(losses: Sequence[float]) -> int:
    return next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))


def _intervals(
    repeats: Sequence[LRSweep], sign: float, suggestions: Mapping[str, float], num_steps: int
) -> dict[str, Interval]:
    """Return for each rule an interval of its rates under the noise of the measurement."""
    rates, losses = mean_curve(repeats)
    if len(repeats) > 1:
        curves = [sign * np.asarray(sweep.losses[: len(rates)]) for sweep in repeats]
        low, high = 0.0, 100.0
    else:
        measured = sign * losses
        cut = capped(measured)
        residuals = cut - smooth(cut)
        random = np.random.default_rng(0)
        flipped = random.choice([0.0, 2.0], size=(_RESAMPLES, len(rates)))
        curves = list(measured - flipped * residuals)
        low, high = 16.0, 84.0
    found = [read_rules(rates, curve, num_steps) for curve in curves]
    intervals: dict[str, Interval] = {}
    for name, chosen in suggestions.items():
        ends = np.percentile([rules[name] for rules in found], [low, high])
        intervals[name] = (min(float(ends[0]), chosen), max(float(ends[1]), chosen))
    return intervals


def _useful_range(
    rates: Curve, smoothed: Curve, around: Interval, trials: Sequence[LRTrial]
) -> Interval:
    """Return the lowest rate that learns and the highest that is stable, with those in between.

    The lowest is the first from which on the loss stays below a tenth of its whole fall: it crosses
    that line in the noise of the beginning too.
    """
    low, high = around
    if len(rates) >= MIN_POINTS:
        lowest = int(np.argmin(smoothed))
        start = float(smoothed[: max(len(rates) // 10, 1)].mean())
        level = start - _USEFUL * (start - float(smoothed[lowest]))
        above = np.flatnonzero(smoothed[: lowest + 1] > level)
        low, high = float(rates[above[-1] + 1 if len(above) else 0]), float(rates[lowest])
    failed = min((t.rate for t in trials if not math.isfinite(t.score)), default=math.inf)
    stable = [t.rate for t in trials if t.rate < failed]
    if high >= failed and stable:
        high = max(stable)
    return min(low, around[0]), max(high, around[1])
