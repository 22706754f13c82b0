"""Rules about fits that end poor: at chance, too early, or without the means to do better."""

from __future__ import annotations

import math

import numpy as np

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.curves.curve_answer import answer
from lightning_tuning.functional.curves.curve_noise import mean_interval
from lightning_tuning.functional.curves.curve_reading import Reading

_AT_CHANCE = 0.05
_NOTHING_LEARNT = 0.03
"""Labels that are mostly noise leave this much to be learnt, and faults less than a hundredth."""
_POOR = 0.3
_POOR_AND_WRONG = 0.5
_CREEPS = 0.05
_LONG_ENOUGH = 60
_NO_LINE = 0.25
"""A line brings a fifth of its fall in its last fifth; more is a fall that gathers speed."""


def no_learning(r: Reading) -> Finding:
    """Judge a loss that stays at chance, in training or where it was not learnt by heart."""
    c = r.curves
    numbers: dict[str, Scalar] = {
        "chance": c.chance,
        "start": r.start,
        "end": r.end,
        "lowest": r.lowest,
    }
    if c.chance is None:
        return answer("no_learning", "skip", "The loss at chance is not known.", numbers=numbers)
    fifth = r.losses[-max(10, len(r.losses) // 5) :]
    low, high = mean_interval(fifth)
    edge = (1 - _NOTHING_LEARNT) * c.chance
    validated = r.val_progress is None or r.val_progress < _AT_CHANCE
    hint = "Run WiringCheck and OverfitBatchCheck; then try learning rates with LRRangeTest."
    if low > edge and r.lowest > (1 - 2 * _AT_CHANCE) * c.chance and validated:
        if r.metric_is_good:
            return answer(
                "no_learning", "pass", "The loss is at chance, a metric is not.", numbers=numbers
            )
        return answer(
            "no_learning",
            "warn",
            f"After {c.steps} steps the loss is {fifth.mean():.4g}; a predictor that knows nothing"
            f" has {c.chance:.4g}.",
            hint,
            numbers=numbers,
        )
    if r.val_never_learns and fifth.mean() > (1 - 2 * _AT_CHANCE) * c.chance:
        return answer(
            "no_learning",
            "warn",
            f"The validation loss never gets below {r.val.min():.4g}, and a predictor that knows"
            f" nothing has {c.chance:.4g}; the training loss ends at {fifth.mean():.4g}.",
            f"See whether inputs and targets belong together. {hint}",
            numbers=numbers,
        )
    if low <= edge <= high:
        return answer(
            "no_learning", "skip", "The loss is too noisy to tell it from chance.", numbers=numbers
        )
    return answer(
        "no_learning",
        "pass",
        f"The loss ends at {r.end:.4g}; a predictor that knows nothing has {c.chance:.4g}.",
        numbers=numbers,
    )


def underfitting(r: Reading) -> Finding:
    """Judge a fit that ends poor: still improving (train longer), or at rest (capacity)."""
    numbers: dict[str, Scalar] = {
        "end": r.end,
        "progress": r.progress,
        "val_progress": r.val_progress,
    }
    if r.progress is None:
        return answer(
            "underfitting",
            "skip",
            "A loss that may be negative has no known floor.",
            numbers=numbers,
        )
    third = r.losses[-max(10, len(r.losses) // 3) :]
    falls = r.falls(third)[0]
    improving = falls > 0.02 * abs(r.end) and _val_falls(r) is not False
    # in a fit of few steps, only that it is too short can be sure
    long = len(r.losses) >= 100
    poor = long and _ends_poor(r, _POOR)
    at_a_rate = r.rates[-len(third) :].mean() >= 0.2 * r.rates.max()
    near = abs(r.val_end - r.end) < 0.15 * r.reference if len(r.val) else False
    near = near and r.val_progress is not None
    rests = poor and near and not improving
    # at such a pace it takes ten times as long to come anywhere
    creeps = falls < _CREEPS * abs(r.end)
    wrong = long and near and creeps and _ends_poor(r, _POOR_AND_WRONG) and _inaccurate(r)
    improves = poor and improving and bool(at_a_rate)
    if fault := _fault(r, r.progress, improves=improves, wrong=wrong):
        return answer("underfitting", "warn", *fault, numbers=numbers)
    hint = "It may get better if it trains longer." if improving else ""
    if rests and at_a_rate:
        hint = "Unless the targets are as noisy as that, more capacity or better inputs will help."
    return answer(
        "underfitting",
        "pass",
        f"At the end the loss is {'still' if improving else 'no longer'} falling ({r.end:.4g}).",
        hint,
        numbers=numbers,
    )


def _fault(r: Reading, progress: float, *, improves: bool, wrong: bool) -> tuple[str, str] | None:
    """Return what is wrong and what to do about it, if it is known."""
    told = f"{r.end:.4g}, {progress:.0%} of the way from chance to zero"
    if _too_short(r, progress):
        return (
            f"After {r.curves.steps} steps the loss is still falling fast ({told}).",
            "Train longer; smaller or fewer accumulated batches give more steps an epoch.",
        )
    if improves:
        return (
            f"The loss is still falling fast at the end ({told}).",
            "Train longer, or with a higher learning rate.",
        )
    if wrong:
        ends = f"{r.end:.4g} in training, {r.val_end:.4g} in validation"
        return (
            f"The losses hardly fall any more ({ends}), and most answers are wrong.",
            "Give the model more capacity or better inputs, or take regularization away.",
        )
    if _drowned(r):
        told = f"{r.val_end:.4g} without, {r.reference:.4g} at chance"
        return f"The loss is {r.end:.4g} with dropout, {told}.", "Lower the dropout."
    return None


def _ends_poor(r: Reading, share: float) -> bool:
    """Whether a loss that has learnt something, without large swings, ends far from zero."""
    learnt = r.progress is not None and r.progress > _AT_CHANCE
    quiet = r.train_wander < 0.1 * abs(r.reference)
    return r.curves.chance is not None and learnt and quiet and r.bad(share)


def _too_short(r: Reading, progress: float) -> bool:
    """Whether the fit ends in the middle of its fall."""
    if r.curves.chance is None or r.pretrained or len(r.val) < 2:
        return False
    few = len(r.losses) < _LONG_ENOUGH
    fifth = max(2, len(r.smooth) // 5)
    fall = float(r.smooth[0] - r.smooth[-1])
    last = float(r.smooth[-1 - fifth] - r.smooth[-1])
    val = r.val
    if few:
        # a handful of steps over several epochs, each of which improved validation
        steady = len(val) >= 5 and bool((np.diff(val) < 0).all())
        return (
            steady and r.bad(0.25) and fall > 0 and last > 0.15 * fall and r.falls(r.losses)[0] > 0
        )
    least, _ = r.falls(r.losses[-max(10, len(r.losses) // 5) :])
    high_rate = r.rates[-1] >= 0.5 * r.rates.max()
    gathers = fall > 0.1 * r.reference and last > _NO_LINE * fall and least > 0.1 * fall
    return (
        gathers
        and high_rate
        and _val_gain(r) > 0.1 * r.reference
        and progress < 0.65
        and not _metric_rests(r)
    )


def _val_gain(r: Reading) -> float:
    """Return how far validation fell in about the last fifth of the fit."""
    steps = np.asarray(r.curves.val.steps if r.curves.val else ())
    before = r.val[steps <= 0.8 * steps[-1]]
    return float(before[-1] - r.val[-1]) if len(before) else 0.0


def _metric_rests(r: Reading) -> bool:
    """Whether a metric is good, and no longer gets much better."""
    told = [m.values for m in r.curves.metrics if m.higher_is_better and len(m.values) >= 2]
    return r.metric_is_good and not any(v[-1] - v[-2] > 0.05 for v in told)


def _inaccurate(r: Reading) -> bool:
    """Whether accuracy is below a half, among so few classes that targets seldom are that vague.

    Where a loss rests tells nothing of capacity: that may be the noise of the targets. A person
    who measures accuracy expects that most answers can be right; of words in a language nobody
    does.
    """
    chance = r.curves.chance
    if chance is None or not math.log(4.5) < chance < math.log(20):
        return False
    told = [m for m in r.curves.metrics if m.higher_is_better and "acc" in m.name.lower()]
    return any(m.values and min(m.values) >= 0 and max(m.values) < 0.5 for m in told)


def _drowned(r: Reading) -> bool:
    """Whether dropout alone keeps a loss at chance that is lower without it."""
    if "dropout" not in r.curves.regularized or r.val_progress is None or not r.bad(0.1):
        return False
    below = r.val_progress > 0 and float(r.val.max()) < r.reference
    return below and r.end_interval[0] > r.val_end + 0.02 * r.reference


def _val_falls(r: Reading) -> bool | None:
    third = r.val[-max(3, len(r.val) // 3) :]
    return bool(third[-1] < third[0]) if len(third) >= 2 else None
