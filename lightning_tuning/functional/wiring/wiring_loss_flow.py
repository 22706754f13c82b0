"""Does the loss reach the parameters, in the right direction, at a scale of one example?"""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring

_DOUBLED = 0.1
_RESCUED = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """A part of the loss that no gradient comes from.

    Attributes:
        name: The function that gave it.
        value: Its value.
        share: How the loss rises with it.
    """

    name: str
    value: float
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphEvidence:
    """What went backward in a step.

    Attributes:
        reason: Why nothing can be said; empty where it can.
        has_graph: Whether some loss that went backward was computed with gradients.
        reaches: Whether some parameter got a gradient.
        constant: Whether the loss is the same for quite other weights.
        terms: Parts of the loss whose value counts and whose gradient does not.
    """

    reason: str = ""
    has_graph: bool = True
    reaches: bool = True
    constant: bool = False
    terms: tuple[Term, ...] = ()


def loss_detached(evidence: GraphEvidence) -> tuple[Finding, ...]:
    """Find a loss, or a part of it, that leads to no parameter.

    Args:
        evidence: What went backward.
    """
    code = "loss_detached"
    if evidence.reason:
        return wiring("skip", code, f"Not checked: {evidence.reason}.")
    if not evidence.has_graph or not evidence.reaches:
        what = "has no graph" if not evidence.has_graph else "leads to no parameter"
        return wiring(
            "fail",
            code,
            f"The loss that goes backward {what}: no parameter gets a gradient.",
            hint="Return the loss as it was computed, without detach(), item() or a new tensor.",
            has_graph=evidence.has_graph,
        )
    if evidence.constant:
        return wiring(
            "fail",
            code,
            "The loss is the same whatever the weights are, and its gradient is zero.",
            hint="Look whether the output is compared with itself, or a mask or factor is zero.",
        )
    if evidence.terms:
        term = evidence.terms[0]
        return wiring(
            "fail",
            code,
            f"A part of the loss ({term.name}, {term.value:.4g}) enters it as a number: the loss "
            f"rises by {term.share:.3g} with it, and no gradient changes.",
            hint="Leave out item(), detach() or float() on this part.",
            where=term.name,
            value=term.value,
            share=term.share,
            terms=len(evidence.terms),
        )
    return wiring("pass", code, "The loss leads to the parameters with all its parts.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SumEvidence:
    """How the loss grows with the batch.

    Attributes:
        reason: Why nothing can be said; empty where it can.
        trains_badly: Whether the program was seen to learn next to nothing.
        ratio: Loss of a batch with each example twice, divided by that of the batch.
        batch_size: Examples in the batch.
        progress: Share of the loss that a short training took away.
        rescued: The same with the gradient divided by the batch size; None if it was not tried.
    """

    reason: str = ""
    trains_badly: bool = False
    ratio: float = 1.0
    batch_size: int = 0
    progress: float = 0.0
    rescued: float | None = None


def loss_reduction_sum(evidence: SumEvidence) -> tuple[Finding, ...]:
    """Find a loss that is summed over the batch where its mean would train.

    Args:
        evidence: How the loss grows.
    """
    code = "loss_reduction_sum"
    if evidence.reason:
        return wiring("skip", code, f"Not checked: {evidence.reason}.")
    if not evidence.trains_badly:
        return wiring("pass", code, "The loss trains at the scale that it has.")
    doubles = abs(evidence.ratio - 2) <= _DOUBLED
    rescued = evidence.rescued
    enough = max(_RESCUED, evidence.progress + 0.2)
    # a rescue that diverged is no number
    if not doubles or rescued is None or not rescued >= enough:
        return wiring(
            "pass",
            code,
            f"A batch with each example twice has {evidence.ratio:.3g} times the loss.",
            ratio=evidence.ratio,
        )
    return wiring(
        "fail",
        code,
        f"The loss is a sum over the batch (each example twice: {evidence.ratio:.3g} times the "
        f"loss) and trains badly; divided by the {evidence.batch_size} examples it loses "
        f"{rescued:.0%} in the same steps.",
        hint='Use the mean over the batch (reduction="mean"), or divide the learning rate.',
        ratio=evidence.ratio,
        batch_size=evidence.batch_size,
        rescued=rescued,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignEvidence:
    """Which way the loss goes when an output comes closer to its target.

    Attributes:
        reason: Why nothing can be said; empty where it can.
        negated: Name of the loss function whose negative is the whole loss; empty if there is none.
        pairs: How many outputs of hand-written losses were seen to meet targets.
        away: Whether the loss falls, at the start, as each of them leaves its target.
        fall: By how much a short training lowered the loss; None if it was not tried.
        rise: By how much one against the gradient raised it.
        agreement: How output and target came closer in the first training, as a share.
        agreement_negated: The same in the second.
    """

    reason: str = ""
    negated: str = ""
    pairs: int = 0
    away: bool = False
    fall: float | None = None
    rise: float = 0.0
    agreement: float = 0.0
    agreement_negated: float = 0.0


def loss_sign_flipped(evidence: SignEvidence) -> tuple[Finding, ...]:
    """Find a loss that is lower the worse the outputs are.

    Args:
        evidence: Which way the loss goes.
    """
    code, hint = "loss_sign_flipped", "Turn the sign of the loss."
    if evidence.reason:
        return wiring("skip", code, f"Not checked: {evidence.reason}.")
    if evidence.negated:
        return wiring(
            "fail",
            code,
            f"The loss is the negative of {evidence.negated}: training makes that larger.",
            hint=hint,
            where=evidence.negated,
        )
    if evidence.away and evidence.fall is not None and _runs_away(evidence):
        return wiring(
            "fail",
            code,
            f"The loss falls (by {evidence.fall:.3g}) as outputs leave their targets (agreement "
            f"{evidence.agreement:+.0%}); with the sign turned they come closer "
            f"({evidence.agreement_negated:+.0%}).",
            hint=hint,
            fall=evidence.fall,
            rise=evidence.rise,
            agreement=evidence.agreement,
            agreement_negated=evidence.agreement_negated,
        )
    if not evidence.pairs:
        return wiring("skip", code, "No output was seen to meet a target.")
    return wiring("pass", code, "The loss falls as outputs come closer to their targets.")


def _runs_away(evidence: SignEvidence) -> bool:
    fall = evidence.fall or 0.0
    apart = evidence.agreement < 0.02 and evidence.agreement_negated > 0.05
    return fall > 0 and apart and evidence.rise < 20 * fall
