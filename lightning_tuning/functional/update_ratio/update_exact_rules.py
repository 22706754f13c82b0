"""Facts about updates that no healthy fit shows: weights that are NaN, or that stand still."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lightning_tuning.findings import Finding, Scalar, Verdict
from lightning_tuning.functional.update_ratio.update_evidence import UpdateEvidence
from lightning_tuning.functional.update_ratio.update_history import UpdateRow

UPDATE_RATIO_MONITOR = "update_ratio_monitor"
_ROUNDING = 8.0
_FEWEST = 3


def update_finding(
    verdict: Verdict,
    code: str,
    message: str,
    *,
    at: int,
    hint: str = "",
    where: str = "",
    numbers: Mapping[str, Scalar] | None = None,
) -> Finding:
    """Return a finding of ``UpdateRatioMonitor``.

    Args:
        verdict: What comes of it.
        code: Which rule speaks.
        message: One sentence with the numbers.
        at: The place on the axis of ``self.log``.
        hint: One next action.
        where: The parameter.
        numbers: The evidence.

    Example:
        >>> update_finding("pass", "non_finite", "All is finite.", at=3).step
        3
    """
    return Finding(
        check=UPDATE_RATIO_MONITOR,
        code=code,
        verdict=verdict,
        message=message,
        evidence=dict(numbers or {}),
        hint=hint,
        where=where,
        step=at,
    )


def newly_non_finite(
    rows: Sequence[UpdateRow], names: Sequence[str], *, at: int
) -> tuple[Finding, ...]:
    """Tell that weights were finite once and are not any more, as of the last row.

    A tensor that held infinities from the start, such as a mask, is none of these.

    Args:
        rows: The measured steps.
        names: Of all tensors.
        at: The place on the axis of ``self.log``.

    Returns:
        Nothing while all is well, so that nothing is said in the middle of a fit.
    """
    last = rows[-1]
    gone = [
        place
        for place, norm in last.weight_norms.items()
        if not (math.isfinite(norm) and math.isfinite(last.update_norms[place]))
    ]
    earlier = rows[:-1]
    broken = [
        place
        for place in sorted(gone)
        if math.isfinite(last.weight_norms[place])
        or any(math.isfinite(row.weight_norms.get(place, math.nan)) for row in earlier)
    ]
    if not broken:
        return ()
    first = broken[0]
    gradient = last.gradient_norms[first]
    since = f"after step {earlier[-1].step}" if earlier else "at the first step"
    just_now = math.isfinite(last.weight_norms[first])
    when = f"at step {last.step}" if just_now else f"at step {last.step} or before, {since}"
    return (
        update_finding(
            "fail",
            "non_finite",
            f"{len(broken)} of {len(last.weight_norms)} tensors of weights became NaN or infinite"
            f" {when}; the norm of the first one's gradient is {gradient:.3g}.",
            at=at,
            hint=(
                "Stop: nothing will be learnt from here on. Lower the learning rate or clip the"
                " gradients, and look for log(0), division by zero and bad inputs in the loss."
            ),
            where=names[first],
            numbers={"tensors": len(broken), "gradient_norm": gradient},
        ),
    )


def finite(evidence: UpdateEvidence) -> tuple[Finding, ...]:
    """Say at the end that weights stayed finite; what became of others was said at once."""
    if not evidence.result.steps:
        return (nothing_measured(evidence, "non_finite"),)
    return (
        update_finding(
            "pass",
            "non_finite",
            f"The weights are finite at all {len(evidence.result.steps)} measured steps.",
            at=evidence.at,
            numbers={"steps": len(evidence.result.steps)},
        ),
    )


def weights_move(evidence: UpdateEvidence) -> tuple[Finding, ...]:
    r"""Find tensors that no step has moved, though each had a gradient and a learning rate.

    Only steps count on which a plain gradient step would have been felt: where
    :math:`\eta \|g\| > 8 \epsilon \|W\|`, with the spacing :math:`\epsilon` of the numbers. What is
    rounded away, such as the gradient of a bias before BatchNorm, is thus no fault.
    """
    result = evidence.result
    if len(result.steps) < _FEWEST:
        return (nothing_measured(evidence, "weights_not_updating"),)
    felt = (
        (evidence.rates * evidence.gradients * evidence.clipping[:, None])
        > _ROUNDING * np.asarray(evidence.eps) * evidence.weights
    ) & np.isfinite(evidence.gradients)
    moved = (evidence.updates > 0).any(axis=0)
    chances = felt.sum(axis=0)
    stuck = np.flatnonzero(~moved & (chances >= _FEWEST))
    if not len(stuck):
        return (
            update_finding(
                "pass",
                "weights_not_updating",
                f"Each of the {int((chances > 0).sum())} tensors that had a gradient to be felt"
                " was moved.",
                at=evidence.at,
                numbers={"tensors": int((chances > 0).sum())},
            ),
        )
    first = int(stuck[0])
    return (
        update_finding(
            "fail",
            "weights_not_updating",
            f"{len(stuck)} of {len(result.names)} tensors have a gradient"
            f" (norm {np.nanmedian(evidence.gradients[:, first]):.3g}) and a learning rate"
            f" ({np.nanmedian(evidence.rates[:, first]):.3g}), and not one of"
            f" {int(chances[first])} measured steps moved them.",
            at=evidence.at,
            hint=(
                "See what the optimizer does with them: a step of its own that leaves them out, a"
                " copy that it moves instead, or a mask."
            ),
            where=result.names[first],
            numbers={"tensors": len(stuck), "steps": int(chances[first])},
        ),
    )


def went(evidence: UpdateEvidence) -> str:
    """Return from where to where the training loss went, in words."""
    return f"went from {evidence.course.start:.4g} to {evidence.course.end:.4g}"


def nothing_measured(evidence: UpdateEvidence, code: str) -> Finding:
    """Return the finding of a rule that has too little to judge."""
    count = len(evidence.result.steps)
    return update_finding(
        "skip",
        code,
        f"Nothing can be said: {count} optimizer steps were measured.",
        at=evidence.at,
        numbers={"steps": count},
    )
