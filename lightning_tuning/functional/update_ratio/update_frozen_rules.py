"""Matrices that take no part in a fit, as far as its updates show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional import unread_flags
from lightning_tuning.functional.update_ratio.update_evidence import LeftOut, UpdateEvidence
from lightning_tuning.functional.update_ratio.update_exact_rules import (
    nothing_measured,
    update_finding,
    went,
)

_FEWEST_ROWS = 3
_FEWEST_STEPS = 50


def gradients_arrive(evidence: UpdateEvidence) -> tuple[Finding, ...]:
    """Find a fit that learns little because half of its matrices or more do not take part.

    Frozen trunks, teachers, parts for other tasks and the other half of a GAN look the same, so
    that the training loss decides, and neither what was trained nor what was left out may have been
    trained before. Copies of what is trained (a target network, a teacher) are known by their
    shapes. The more a program looks as if nobody meant it, the less the fit must suffer:

    - what has ``requires_grad=False`` was frozen by somebody: less than 10 % of the loss gone;
    - what would take a gradient: less than 30 %;
    - what has a gradient that no optimizer takes: less than 50 %, and nothing more in the second
      half of the fit. Who means to freeze does not compute gradients.

    An attribute that was to freeze or to thaw, and that nothing reads, is a fault however the fit
    goes.
    """
    if evidence.unread:
        return (_unread(evidence),)
    course = evidence.course
    if len(evidence.result.steps) < _FEWEST_ROWS:
        return (nothing_measured(evidence, "frozen_params"),)
    idle = _idle(evidence)
    total = _taking_part(evidence) + len(idle)
    told = f"{len(idle)} of {total} matrices had no gradient or no optimizer in the whole fit"
    where = idle[0].name if idle else ""
    numbers: dict[str, Scalar] = {"tensors": len(idle), "of": total}
    trainable = [one for one in idle if one.trainable]
    fed = [one for one in idle if one.fed]
    most = [_are_most(evidence, some, total) for some in (idle, trainable, fed)]
    if not (any(most) and evidence.fresh is True and _rest_is_fresh(evidence, idle)):
        return (
            update_finding(
                "pass", "frozen_params", told + ".", at=evidence.at, where=where, numbers=numbers
            ),
        )
    if course.reason:
        return (
            update_finding(
                "skip",
                "frozen_params",
                f"{told}; whether that is a fault can't be told: {course.reason}.",
                at=evidence.at,
                where=where,
                numbers=numbers,
            ),
        )
    bad = course.steps >= _FEWEST_STEPS and (
        (most[0] and course.trains_badly)
        or (most[1] and course.progress < 0.3)
        or (most[2] and course.progress < 0.5 and _is_level(evidence.losses))
    )
    return (
        update_finding(
            "warn" if bad else "pass",
            "frozen_params",
            f"{told}, with weights that nobody has trained, and the training loss"
            f" {went(evidence)}.",
            at=evidence.at,
            hint=(
                "Give all parameters to the optimizer, and look for requires_grad=False, detach()"
                " and no_grad() on the way to these."
            )
            if bad
            else "",
            where=where,
            numbers={**numbers, "start": course.start, "end": course.end},
        ),
    )


def _unread(evidence: UpdateEvidence) -> Finding:
    return update_finding(
        "fail",
        "frozen_params",
        unread_flags.told(evidence.unread),
        at=evidence.at,
        hint=unread_flags.HINT,
        where=evidence.unread[0].where,
        numbers={"flags": len(evidence.unread)},
    )


def _idle(evidence: UpdateEvidence) -> list[LeftOut]:
    """Return the matrices that took no part, those that an optimizer holds first."""
    held = [
        LeftOut(
            name=evidence.result.names[place],
            shape=evidence.shapes[place],
            trainable=evidence.trainable[place],
            fed=False,
        )
        for place in np.flatnonzero(evidence.idle)
    ]
    return [*held, *evidence.left_out]


def _taking_part(evidence: UpdateEvidence) -> int:
    return int((evidence.matrices_of_any_kind & ~evidence.idle).sum())


def _are_most(evidence: UpdateEvidence, some: Sequence[LeftOut], total: int) -> bool:
    """Whether some matrices that are no copies of trained ones are half of all or more."""
    reached = np.flatnonzero(evidence.matrices_of_any_kind & ~evidence.idle)
    copies = Counter(evidence.shapes[place] for place in reached)
    alone = Counter(one.shape for one in some) - copies
    return bool(some) and alone.total() >= total / 2


def _rest_is_fresh(evidence: UpdateEvidence, idle: Sequence[LeftOut]) -> bool:
    """Whether nobody has trained these; what is frozen may be trained where nobody knows."""
    if evidence.rest_fresh is None:
        return all(one.trainable for one in idle)
    return evidence.rest_fresh


def _is_level(losses: Sequence[float]) -> bool:
    """Whether less than a tenth of the loss went from the middle fifth of a fit to its last."""
    values = np.asarray(losses, dtype=np.float64)
    fifth = len(values) // 5
    middle = float(np.median(values[2 * fifth : 3 * fifth]))
    return float(np.median(values[-fifth:])) > 0.9 * middle
