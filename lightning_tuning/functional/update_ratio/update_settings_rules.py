"""Settings that undo a fit, as its updates show: a rate that is gone, a decay that eats weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.update_ratio.update_evidence import UpdateEvidence
from lightning_tuning.functional.update_ratio.update_exact_rules import (
    nothing_measured,
    update_finding,
    went,
)
from lightning_tuning.functional.update_ratio.update_ratio import Matrix, matrix

_GONE = 0.01


def rate_lasts(evidence: UpdateEvidence) -> tuple[Finding, ...]:
    """Find a learning rate that is gone for half of the fit, though the loss was still falling.

    Gone is below a hundredth of its highest value, in every parameter group. Schedules that end
    near zero are there in the last tenth; milestones at half and three quarters in the last
    quarter. A rate that is gone after a quarter of a fit that learns hardly anything is too fast
    whatever the loss did, and so is one that lasts for less than a hundred steps and a tenth of a
    fit that leaves some of the loss: noise may hide how it fell in so few steps.
    """
    steps, rates = evidence.result.steps, _relative(matrix(evidence.result.learning_rates))
    if len(steps) < 4 or not np.isfinite(rates).any():
        return (nothing_measured(evidence, "lr_decayed_too_fast"),)
    last = int(np.flatnonzero(rates > _GONE)[-1])
    first_step, end_step = steps[0], steps[-1]
    alive = (steps[last] - first_step) / max(end_step - first_step, 1)
    lowest = float(rates[-1])
    numbers: dict[str, Scalar] = {"alive_share": alive, "last_rate": lowest}
    # it fell somewhere between two measured steps
    at_most = (steps[min(last + 1, len(steps) - 1)] - first_step) / max(end_step - first_step, 1)
    told = (
        "The learning rate is above a hundredth of its highest value for "
        f"{'at most ' if at_most > alive else ''}{at_most:.0%} of the fit"
    )
    cut = steps[last] - first_step
    progress = evidence.course.progress
    unfinished = progress < 0.85 and _falls(evidence.losses[: cut + 1])
    at_once = alive <= 0.25 and progress < 0.3 and evidence.steps >= 50
    soon = alive <= 0.1 and cut < 100 <= evidence.steps and progress < 0.85
    if not (at_once or soon or (alive <= 0.5 and unfinished)):
        return (
            update_finding(
                "pass", "lr_decayed_too_fast", told + ".", at=evidence.at, numbers=numbers
            ),
        )
    return (
        update_finding(
            "warn",
            "lr_decayed_too_fast",
            f"{told}, and the training loss {went(evidence)}.",
            at=evidence.at,
            hint=(
                "Let it decay over the whole fit; see whether the schedule counts steps where it"
                " means epochs."
            ),
            numbers=numbers,
        ),
    )


def decay_leaves_weights(evidence: UpdateEvidence) -> tuple[Finding, ...]:
    r"""Find weight decay that eats the weights.

    Either weights have shrunk to less than a third and hardly anything was learnt (or the loss has
    come to rest, and no normalization makes their size a matter of indifference), or each step
    takes more than a hundredth of them away (:math:`\eta\lambda > 0.01`) and less than half of the
    loss is gone.
    """
    decays = np.asarray(evidence.weight_decays)[evidence.matrices]
    if not len(evidence.result.steps) or not len(decays):
        return (nothing_measured(evidence, "weight_decay_too_high"),)
    rates = evidence.rates[:, evidence.matrices]
    each = float(np.nanmedian(rates * decays)) if np.isfinite(rates).any() else 0.0
    course, left = evidence.course, evidence.left
    held_down = not evidence.scale_free and course.progress < 0.95 and _rests(evidence.losses)
    shrunk = left < 0.3 and float(np.median(decays)) > 0 and (course.trains_badly or held_down)
    eaten = each > 0.01 and course.progress < 0.5
    numbers: dict[str, Scalar] = {
        "weight_decay": float(np.median(decays)),
        "decay_of_a_step": each,
        "left": left,
    }
    told = (
        f"Weight decay takes {each:.2g} of the weights away in a step, and {left:.0%} of their norm"
        " is there at the end"
    )
    if not (shrunk or eaten):
        return (
            update_finding(
                "pass", "weight_decay_too_high", told + ".", at=evidence.at, numbers=numbers
            ),
        )
    return (
        update_finding(
            "warn",
            "weight_decay_too_high",
            f"{told}; the training loss {went(evidence)}.",
            at=evidence.at,
            hint=(
                "Lower weight_decay so that the learning rate times it is below 0.001, or leave it"
                " out."
            ),
            numbers=numbers,
        ),
    )


def _relative(rates: Matrix) -> Matrix:
    """Return the rate over its highest value, of the group where that is largest."""
    if not rates.size:
        return np.full(len(rates), math.nan)
    used = rates[:, (rates > 0).any(axis=0)]
    if not used.size:
        return np.full(len(rates), math.nan)
    return np.asarray(np.nan_to_num(used / np.nanmax(used, axis=0)).max(axis=1))


def _rests(losses: Sequence[float]) -> bool:
    """Whether the last third of some losses is hardly lower than the second."""
    values = np.asarray(losses, dtype=np.float64)
    third = len(values) // 3
    if third < 20 or not np.isfinite(values).all():
        return False
    before = float(np.mean(values[third : 2 * third]))
    return before - float(np.mean(values[2 * third :])) < 0.1 * abs(before)


def _falls(losses: Sequence[float]) -> bool:
    """Whether the last third of some losses is lower than the second, beyond their noise.

    The noise of a mean is taken from the differences of neighbours.
    """
    values = np.asarray(losses, dtype=np.float64)
    third = len(values) // 3
    if third < 3 or not np.isfinite(values).all():
        return False
    before, after = values[third : 2 * third], values[2 * third :]
    noise = float(np.std(np.diff(values[third:]))) / math.sqrt(2)
    error = noise * math.sqrt(1 / len(before) + 1 / len(after))
    fall = float(np.mean(before) - np.mean(after))
    return fall > max(3 * error, 0.05 * abs(float(np.mean(before))))
