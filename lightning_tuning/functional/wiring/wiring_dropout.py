"""Dropout so high that little is left."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.wiring.wiring_finding import wiring

HIGH = 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropoutEvidence:
    """How much is dropped, and how the program trains with and without.

    Attributes:
        highest: The largest probability among the dropouts that training calls; None without any.
        trained: As it is.
        without: The loss after as long a training with no dropout; None where it was not run.
    """

    highest: float | None
    trained: Trained | None = None
    without: float | None = None


def dropout_too_high(evidence: DropoutEvidence) -> tuple[Finding, ...]:
    """Judge the highest dropout: it must be 0.7 or more, and a training without it much better."""
    code = "dropout_too_high"
    if evidence.highest is None:
        return wiring("pass", code, "Training drops nothing.")
    said = f"The highest dropout is {evidence.highest:.2g}"
    trained = evidence.trained
    if trained is None or evidence.highest < HIGH or not trained.cured_by(evidence.without):
        return wiring("pass", code, f"{said}.", dropout=evidence.highest)
    return wiring(
        "warn",
        code,
        f"{said}; a short training ends at a loss of {trained.after:.3g} (judged without dropout), "
        f"one with no dropout at {evidence.without:.3g}.",
        hint="Lower it, to 0.5 or less; nn.Dropout's p is the share that is dropped, not kept.",
        dropout=evidence.highest,
        loss_after=trained.after,
        loss_rescued=evidence.without,
    )
