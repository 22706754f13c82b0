"""Does the loss stay a number, as long as the weights are bounded?"""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring

_LARGE_INPUT = 1e4
_LARGE_GRADIENT = 1e12
_LARGE_GROWTH = 100.0
_LARGE_LOSS = 1e3


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonFiniteEvidence:
    """Where the first number that is none appeared.

    Attributes:
        reason: Why nothing can be said; empty where it can.
        steps: Steps that were taken with finite losses.
        found: Whether a loss or a gradient was not finite.
        operation: The first operation whose result, or whose gradient, was not finite.
        module: Path of the module that called it.
        backward: Whether it was the gradient.
        largest_input: The largest magnitude that went into it.
        largest_gradient: The largest finite gradient before it.
        growth: Norm of the weights then, divided by that at the start.
        loss_growth: The largest loss before, divided by the first.
    """

    reason: str = ""
    steps: int = 0
    found: bool = False
    operation: str = ""
    module: str = ""
    backward: bool = False
    largest_input: float = 0.0
    largest_gradient: float = 0.0
    growth: float = 1.0
    loss_growth: float = 1.0


def non_finite(evidence: NonFiniteEvidence) -> tuple[Finding, ...]:
    """Find an operation that leaves the numbers, though all that goes in is bounded.

    Args:
        evidence: Where it appeared.
    """
    code = "non_finite"
    if evidence.reason:
        return wiring("skip", code, f"Not checked: {evidence.reason}.")
    if not evidence.found:
        return wiring("pass", code, f"The loss stayed finite over {evidence.steps} steps.")
    if not evidence.operation or _blown_up(evidence):
        return wiring(
            "pass",
            code,
            f"The loss left the numbers after {evidence.steps} steps, since weights or gradients "
            "had blown up before.",
            steps=evidence.steps,
        )
    what = "The gradient of" if evidence.backward else "The result of"
    return wiring(
        "fail",
        code,
        f"{what} {evidence.operation} is not finite after {evidence.steps} steps, though nothing "
        f"larger than {evidence.largest_input:.3g} went in.",
        hint=f"Keep the argument of {evidence.operation} away from where it has no value: a small "
        "constant, clamp, or a stable form such as log_softmax.",
        where=evidence.module or evidence.operation,
        operation=evidence.operation,
        backward=evidence.backward,
        steps=evidence.steps,
        largest_input=evidence.largest_input,
    )


def _blown_up(evidence: NonFiniteEvidence) -> bool:
    return (
        evidence.largest_input > _LARGE_INPUT
        or evidence.largest_gradient > _LARGE_GRADIENT
        or evidence.growth > _LARGE_GROWTH
        or evidence.loss_growth > _LARGE_LOSS
    )
