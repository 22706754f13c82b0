"""Whether a program that predicts what comes next has already seen it."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring


@dataclasses.dataclass(frozen=True, kw_only=True)
class FutureEvidence:
    """What replacing single elements of the sequences changed.

    Attributes:
        steps: How far the targets are ahead of their inputs.
        tested: How many elements were replaced that are an input at one place and a target.
        known: How many of these changed the output that is to predict them.
        copies: Whether a causal model is to give back the very token that it is given.
        why_not: Why nothing was tested.
    """

    steps: int = 0
    tested: int = 0
    known: int = 0
    copies: bool = False
    why_not: str = ""


def future_leakage(evidence: FutureEvidence) -> tuple[Finding, ...]:
    """Judge whether outputs know the elements that they are to predict."""
    if not evidence.tested:
        return wiring("skip", "future_leakage", f"Not checked: {evidence.why_not}.")
    if evidence.copies:
        return wiring(
            "fail",
            "future_leakage",
            f"Each token is the target at its own place: at {evidence.known} of {evidence.tested} "
            "places the output is to repeat the token that it was just given.",
            hint="Shift the targets by one: predict tokens[:, 1:] from tokens[:, :-1].",
            tested=evidence.tested,
            known=evidence.known,
            steps=evidence.steps,
        )
    if evidence.known == evidence.tested:
        return wiring(
            "fail",
            "future_leakage",
            f"Outputs depend on what they are to predict: replacing an element changed the output "
            f"whose target it is at {evidence.known} of {evidence.tested} places.",
            hint="Give attention a causal mask, make recurrent layers one-directional, and pad "
            "convolutions on the left only.",
            tested=evidence.tested,
            known=evidence.known,
            steps=evidence.steps,
        )
    return wiring(
        "pass",
        "future_leakage",
        f"At {evidence.tested - evidence.known} of {evidence.tested} places the output does not "
        "know its target.",
        tested=evidence.tested,
        known=evidence.known,
        steps=evidence.steps,
    )
