"""Rules about where a training loss goes: up, slowly down, or down from far above."""

from __future__ import annotations

import numpy as np

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.curves.curve_answer import answer
from lightning_tuning.functional.curves.curve_noise import Array
from lightning_tuning.functional.curves.curve_reading import Reading

_RUN = 3
"""So many losses in a row that are no numbers are believed at once."""
_SELDOM = 0.01
_SLOW, _SLOW_UNKNOWN = 0.25, 0.05
_FAR_ABOVE = 3.0
_LONG = 0.25


def non_finite(r: Reading) -> Finding:
    """Judge losses that are nan or infinite."""
    c = r.curves
    numbers: dict[str, Scalar] = {
        "steps": c.steps,
        "non_finite": c.non_finite,
        "first": c.first_non_finite,
    }
    if c.first_non_finite is not None and c.non_finite >= min(_RUN, c.steps):
        return answer(
            "non_finite",
            "fail",
            f"From step {c.first_non_finite} on the loss is no finite number.",
            "Look at that batch, at log, sqrt and divisions in the loss, and lower the learning"
            " rate or clip the gradients.",
            step=c.first_non_finite,
            numbers=numbers,
        )
    if c.non_finite > _SELDOM * c.steps and c.non_finite >= _RUN:
        return answer(
            "non_finite",
            "warn",
            f"The loss was no finite number in {c.non_finite} of {c.steps} steps.",
            "Look for empty or masked-out batches, and for infinite terms of the loss.",
            numbers=numbers,
        )
    seldom = f"in all but {c.non_finite} " if c.non_finite else "in all "
    return answer(
        "non_finite", "pass", f"The loss was finite {seldom}of {c.steps} steps.", numbers=numbers
    )


def loss_diverging(r: Reading) -> Finding:
    """Judge a loss that grows: it ends far above its start, or loses again what it had learnt."""
    lost = r.end - r.lowest
    low, _ = r.end_interval
    numbers: dict[str, Scalar] = {
        "start": r.start,
        "lowest": r.lowest,
        "end": r.end,
        "chance": r.curves.chance,
    }
    level = max(r.start, r.reference)
    given_back = r.gain > 0.2 * abs(r.reference) and low > r.lowest + 0.8 * r.gain
    above = low > level + max(abs(level), 10 * r.noise)
    rising = r.smooth[-1] >= 0.7 * r.smooth[len(r.smooth) // 2 :].max() or not r.smooth.min() > 0
    # a loss that may be negative has no scale of its own: then only a blow-up is beyond doubt
    if r.progress is None:
        above = low > level + 10 * max(float(np.ptp(r.losses[: len(r.losses) // 2])), r.noise)
        given_back = False
    # where both losses rise, and are nothing but known functions, the loss has not been redefined
    half = r.losses[len(r.losses) // 2 :]
    known = r.curves.chance is not None and r.val_progress is not None and len(r.val) >= 5
    both = (
        known
        and low > r.lowest + 0.2 * r.gain
        and r.falls(half)[1] < -0.05 * r.reference
        and r.val_end > r.val.min() + 0.15 * r.reference
    )
    if (above or given_back or both) and rising and not r.metric_is_good and not _val_improves(r):
        place = int(np.argmin(r.smooth))
        began = r.curves.train.steps[min(len(r.losses) - 1, (place + 1) * len(r.losses) // 20)]
        return answer(
            "loss_diverging",
            "warn",
            f"The loss grows from about step {began} on: {r.lowest:.4g} at its lowest, {r.end:.4g}"
            f" at the end ({r.start:.4g} at the start).",
            "Lower the learning rate, lengthen the warm-up, or clip the gradients.",
            step=began,
            numbers=numbers,
        )
    return answer(
        "loss_diverging",
        "pass",
        f"The loss ends at {r.end:.4g}, {lost:.2g} above its lowest level.",
        numbers=numbers,
    )


def lr_too_low(r: Reading) -> Finding:
    """Judge a loss that falls along a line from the first step to the last, and not far."""
    rates = r.rates
    numbers: dict[str, Scalar] = {
        "start": r.start,
        "end": r.end,
        "lr": float(rates.max()),
        "progress": r.progress,
    }
    if r.progress is None:
        return answer(
            "lr_too_low", "skip", "A loss that may be negative has no known floor.", numbers=numbers
        )
    steady, told = _line(r)
    half = len(rates) // 2
    climbs = rates[-1] >= 0.95 * rates.max() and rates[:half].mean() < 0.7 * rates[half:].mean()
    decays = rates[half:].mean() < 0.5 * rates[:half].mean()
    if r.curves.chance is not None:
        poor = r.bad(_SLOW)
    else:
        moved = float(r.smooth[0] - r.smooth[-1]) / float(r.smooth[0])
        poor = 0 < moved < _SLOW_UNKNOWN and not r.metric_is_good
    # what is learnt by heart alone may be learnt slowly
    shared = _val_falls_with(r) and not _alone_below_chance(r)
    if steady and poor and shared and not decays:
        why = "The warm-up is longer than the fit" if climbs else "The learning rate is too low"
        return answer(
            "lr_too_low",
            "warn",
            f"The loss falls slowly along a line, {told} over {r.curves.steps} steps, at a learning"
            f" rate of at most {rates.max():.2g}.",
            f"{why}: raise it tenfold, or find one with LRRangeTest; if it is right, train longer.",
            numbers=numbers,
        )
    return answer("lr_too_low", "pass", "The loss does not creep along a line.", numbers=numbers)


def _alone_below_chance(r: Reading) -> bool:
    """Whether training gets below chance and validation does not."""
    chance = r.curves.chance
    return chance is not None and len(r.val) > 0 and r.end < chance <= r.val_end


def loss_not_at_chance(r: Reading) -> Finding:
    """Judge the hockey stick: a loss that comes from far above chance."""
    c = r.curves
    numbers: dict[str, Scalar] = {"start": r.start, "chance": c.chance, "end": r.end}
    if c.chance is None:
        return answer(
            "loss_not_at_chance", "skip", "The loss at chance is not known.", numbers=numbers
        )
    above = int(np.argmax(r.losses < c.chance)) if (r.losses < c.chance).any() else len(r.losses)
    share = above / len(r.losses)
    told = f"The loss starts at {r.start:.4g}, where a predictor that knows nothing has"
    high = c.chance if c.chance_high is None else c.chance_high
    far = r.start > _FAR_ABOVE * high
    slow = share >= _LONG or (share > 0.1 and r.bad(0.8))
    if far and (slow or r.bad(0.5)):
        return answer(
            "loss_not_at_chance",
            "warn",
            f"{told} {c.chance:.4g}; the first {share:.0%} of the fit went into coming down.",
            "Make the initial weights smaller, those of the last layer first, and scale the"
            " inputs.",
            numbers={**numbers, "share": share},
        )
    return answer(
        "loss_not_at_chance",
        "pass",
        f"{told} {c.chance:.4g}.",
        "Smaller weights in the last layer would save the first steps." if far else "",
        numbers=numbers,
    )


def _line(r: Reading) -> tuple[bool, str]:
    """Return whether a loss falls as fast at the end as at the beginning, and how far."""
    half = len(r.losses) // 2
    told = f"from {r.smooth[0]:.4g} to {r.smooth[-1]:.4g}"
    if _falls_on(r.losses[:half], r.losses[half:], r):
        return True, told
    # a validation loss has no noise of batches: it shows a slower fall
    values = r.val
    if len(values) >= 6 and (np.diff(values) < 0).all():
        falls = -np.diff(values)
        third = len(falls) // 3
        even = falls[-third:].mean() >= 0.6 * falls[:third].mean()
        return bool(even), f"from {values[0]:.4g} to {values[-1]:.4g} in validation"
    return False, told


def _falls_on(first: Array, second: Array, r: Reading) -> bool:
    least, most = r.falls(second)
    _, before = r.falls(first)
    return least > 0 and least + most >= 1.2 * before


def _val_improves(r: Reading) -> bool:
    return len(r.val) >= 3 and bool(r.val[-1] <= r.val.min() + 0.05 * abs(r.val[0]))


def _val_falls_with(r: Reading) -> bool:
    return len(r.val) < 3 or bool(r.val_end <= r.val[0])
