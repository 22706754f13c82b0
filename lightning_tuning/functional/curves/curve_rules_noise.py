"""Rules about a training loss that does not come to rest: rates, batches, spikes."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.curves.curve_answer import answer
from lightning_tuning.functional.curves.curve_noise import Array, rests
from lightning_tuning.functional.curves.curve_reading import Reading
from lightning_tuning.functional.curves.loss_curves import Curves

_STRAYS = 0.08
_SMALL_BATCH = 4
_OVERSHOOT = 1.5
_BLOWN_UP = 100.0
_TAIL = 4.0
_MOST = 5.0
_APART = 10.0
_OFTEN = 0.2
_TOSSES = 0.1
_TOSSES_AWAY = 0.5


def lr_too_high(r: Reading) -> Finding:
    """Judge a loss that jumps up and stays high, or falls at first and then stays high."""
    numbers = _numbers(r)
    if r.progress is None:
        return answer(
            "lr_too_high",
            "skip",
            "A loss that may be negative has no known floor.",
            numbers=numbers,
        )
    peak = float(r.rates.max())
    early = max(r.early_top, float(np.median(r.losses)))
    level = max(r.start, r.reference)
    jumped = early > _OVERSHOOT * level
    # a few steps that far off have thrown the weights away
    top = float(max(r.curves.highs[: max(5, len(r.losses) // 10)], default=0.0))
    if not jumped and top > _BLOWN_UP * level:
        jumped, early = True, top
    if jumped and r.bad(0.15):
        return answer(
            "lr_too_high",
            "warn",
            f"The loss jumps from {r.start:.4g} up to {early:.4g} and ends at {r.end:.4g}: nothing"
            f" is learnt at a learning rate of {peak:.2g}.",
            "Lower the learning rate tenfold, or find one with LRRangeTest.",
            numbers=numbers,
        )
    # at chance from the first step on, small swings are those of the batches
    dropped = r.gain > 0.1 * r.reference or _stray(r) > 0.05 * r.reference
    if dropped and r.bad(0.5) and not _falls_late(r) and _restless(r) and not _small_batch(r):
        return answer(
            "lr_too_high",
            "warn",
            f"After a first drop the loss stays at {r.end:.4g} and wanders by {_stray(r):.2g}, at a"
            f" learning rate of {peak:.2g}.",
            "Lower the learning rate, or let it decay.",
            numbers=numbers,
        )
    return answer(
        "lr_too_high",
        "pass",
        f"The loss neither jumps up nor stays high ({r.end:.4g}).",
        numbers=numbers,
    )


def loss_oscillation(r: Reading) -> Finding:
    """Judge swings that are larger than the noise of batches, in a fit that is not over them."""
    numbers = _numbers(r)
    if r.progress is None or len(r.live) < 40:
        return answer(
            "loss_oscillation",
            "skip",
            "There are too few steps at one learning rate.",
            numbers=numbers,
        )
    decayed = r.rates[-1] < 0.3 * r.rates.max()
    if not _small_batch(r) and not decayed and _restless(r) and r.bad(0.8) and not _falls_late(r):
        return answer(
            "loss_oscillation",
            "warn",
            f"The loss swings by {_stray(r):.2g} about its trend, more than its batches' noise"
            f" accounts for; it has fallen by {r.gain:.2g} in all.",
            "Lower the learning rate or the momentum.",
            numbers=numbers,
        )
    return answer(
        "loss_oscillation",
        "pass",
        f"The loss swings by {r.train_wander:.2g} beyond the noise of batches.",
        numbers=numbers,
    )


def batch_noise(r: Reading) -> Finding:
    """Judge a wiggle that drowns the trend: a batch too small for its learning rate."""
    size = r.curves.batch_size
    numbers: dict[str, Scalar] = {**_numbers(r), "batch_size": size}
    if r.progress is None or len(r.live) < 40:
        return answer(
            "batch_noise", "skip", "There are too few steps at one learning rate.", numbers=numbers
        )
    told = "" if size is None else f" of {size} example{'s' if size > 1 else ''}"
    wiggle = r.noise / max(r.gain, 1e-12)
    if _small_batch(r) and wiggle > 0.3 and (r.bad(0.5) or _tossed(r)) and not _falls_late(r):
        return answer(
            "batch_noise",
            "warn",
            f"From step to step the loss wiggles by {r.noise:.2g}, {wiggle:.1f} times what it has"
            f" gained, with batches{told}, and it stays at {r.end:.4g}.",
            f"Take more than {size} examples a batch, accumulate gradients, or lower the learning"
            " rate.",
            numbers={**numbers, "wiggle": wiggle},
        )
    return answer(
        "batch_noise",
        "pass",
        f"From step to step the loss wiggles by {r.noise:.2g}, with batches{told}.",
        "A larger batch would smooth it." if wiggle > 0.5 else "",
        numbers={**numbers, "wiggle": wiggle},
    )


def loss_spikes(r: Reading) -> Finding:
    """Judge sudden losses as high as before any learning, that leave a trace."""
    values, after = _late_highs(r), len(r.losses) // 4
    numbers: dict[str, Scalar] = {"noise": r.noise, "reference": r.reference}
    if len(values) < 60 or r.progress is None or _small_batch(r):
        return answer(
            "loss_spikes", "skip", "The curve is too short or too noisy.", numbers=numbers
        )
    median = float(np.median(values))
    bound = spike_bound(r)
    places = np.flatnonzero(values > bound)
    events = int((np.diff(places) > 3).sum()) + 1 if len(places) else 0
    told_apart = len(places) <= 0.1 * len(values) or _hold_all(r, values, bound)
    numbers |= {"spikes": events, "bound": bound}
    # spikes that hold most of the loss leave a trace whatever is learnt between them
    most = float(np.mean(r.losses[after:])) > _MOST * max(median, 1e-12)
    if events >= 3 and told_apart and not r.metric_is_good and (r.bad(0.9) or most):
        first = r.curves.train.steps[after + int(places[0])]
        return answer(
            "loss_spikes",
            "warn",
            f"The loss shoots up {events} times, to {values.max():.4g} from about {median:.4g}.",
            "Look at the examples of these batches (step"
            f" {first} is the first), clip the gradients, or lower the learning rate.",
            step=first,
            numbers=numbers,
        )
    told = f"{events} sudden spikes" if events else "No sudden spike"
    return answer("loss_spikes", "pass", f"{told}.", numbers=numbers)


def _hold_all(r: Reading, values: Array, bound: float) -> bool:
    """Whether spikes, though not rare, are apart from the rest, and nothing is learnt of them.

    Batches of another task with a loss of its own scale are apart too, but their loss falls.
    """
    spiked = values > bound
    if spiked.mean() > _OFTEN:
        return False
    apart = float(values[spiked].min()) > _APART * float(values[~spiked].max())
    return apart and float(values.mean()) > 0.8 * abs(r.reference)


def spike_bound(r: Reading) -> float:
    """Return the loss above which a single batch is a spike."""
    values = _late_highs(r)
    beside = np.abs(rests(values))
    # spikes are in the upper tenth themselves where there are many; noise is at most a few medians
    middle, upper = np.quantile(beside, (0.5, 0.9)) if len(beside) else (0.0, 0.0)
    usual = float(min(upper, _TAIL * middle))
    median = float(np.median(values))
    return median + max(8 * usual, abs(r.reference - median), 0.5 * abs(r.reference))


def without_spikes(r: Reading) -> Curves:
    """Return curves with what their neighbours say in the place of points that hold a spike."""
    curves, bound = r.curves, spike_bound(r)
    highs, values = np.asarray(curves.highs, float), np.asarray(curves.train.values, float)
    places, spiked = np.arange(len(values)), highs > bound
    if spiked.any() and not spiked.all():
        values[spiked] = np.interp(places[spiked], places[~spiked], values[~spiked])
    calm = dataclasses.replace(curves.train, values=tuple(values.tolist()))
    return dataclasses.replace(curves, train=calm, highs=calm.values)


def _late_highs(r: Reading) -> Array:
    """Return the highest loss at each point after the first quarter."""
    return np.asarray(r.curves.highs[len(r.losses) // 4 :], float)


def _small_batch(r: Reading) -> bool:
    return r.curves.batch_size is not None and r.curves.batch_size <= _SMALL_BATCH


def _tossed(r: Reading) -> bool:
    """Whether single batches toss the weights about, as far as validation can see.

    The same examples are validated each time, so that nothing but the weights moves their loss.
    """
    stray = r.val_wander
    if stray is None or not stray > _TOSSES * r.gain:
        return False
    return not r.metric_is_good or stray > _TOSSES_AWAY * r.val_end


def _stray(r: Reading) -> float:
    return max(r.train_wander, r.val_wander or 0.0)


def _restless(r: Reading) -> bool:
    """Whether the loss strays from its trend by more than a small part of what there is.

    Where training does not show it, validation may stray for reasons of its own, such as other
    shares of the classes: then it has to stray twice as far.
    """
    stray = max(r.train_wander, (r.val_wander or 0.0) / (1 if r.train_wander > 0 else 2))
    return stray > _STRAYS * min(abs(r.reference), max(r.gain, 0.25 * abs(r.reference)))


def _falls_late(r: Reading) -> bool:
    """Whether the latter half of the loss falls beyond its noise, by more than a little.

    A few outliers may hide that in the training loss; then validation may show it.
    """
    least, _ = r.falls(r.losses[len(r.losses) // 2 :])
    steps = np.diff(r.val)
    steady = len(steps) >= 5 and (steps < 0).mean() > 0.8 and r.val_end < 0.7 * r.val[0]
    return bool(steady) or least > 0.02 * abs(r.reference)


def _numbers(r: Reading) -> dict[str, Scalar]:
    return {
        "start": r.start,
        "end": r.end,
        "noise": r.noise,
        "wander": r.train_wander,
        "val_wander": r.val_wander,
        "lr": float(r.rates.max()),
        "progress": r.progress,
    }
