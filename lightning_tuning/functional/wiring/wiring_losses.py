"""Does what enters a loss function fit it: logits, probabilities, log-probabilities?"""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring

_SUM_TOLERANCE = 1e-3
_RESCUED = 0.25
_PROBABILITIES = ("softmax", "softmin", "gumbel_softmax", "sigmoid", "hardsigmoid")
_OF_LOG_PROBABILITIES = ("nll_loss", "kl_div")
_OF_BINARY_LOGITS = (
    "binary_cross_entropy_with_logits",
    "multilabel_soft_margin_loss",
    "soft_margin_loss",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossInput:
    """What entered one loss function of a program, over a few batches.

    Attributes:
        name: The loss function.
        chain: The activations that made the input, the last one first.
        classes: Size of the class dimension; 1 where there is none.
        lowest: Its smallest value.
        highest: Its largest.
        sum_error: How far its sums over the classes are from 1, at most.
        log_sum_error: How far the sums of its exponentials are from 1, at most, as logarithm.
        is_all: Whether this value is the whole loss.
        rescue: How much lower the loss of a short training was with the function that takes
            probabilities, as a share of the loss at chance; None where it was not tried.
    """

    name: str
    chain: tuple[str, ...]
    classes: int
    lowest: float
    highest: float
    sum_error: float
    log_sum_error: float
    is_all: bool
    rescue: float | None = None

    @property
    def within_unit(self) -> bool:
        """Whether all values lie in [0, 1]."""
        return self.lowest >= 0 and self.highest <= 1

    @property
    def are_probabilities(self) -> bool:
        """Whether it is a distribution over the classes, by its values."""
        return self.classes > 1 and self.within_unit and self.sum_error <= _SUM_TOLERANCE


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossEvidence:
    """What entered the loss functions of a program.

    Attributes:
        inputs: Of each loss function that the program trains by.
        log_of_probabilities: Name of a function that takes the logarithm of a softmax of its own,
            and was given probabilities; empty if there was none.
        softmax_over_one: Functions that normalise over a single entry, where no gradient passed.
        batches: So many were looked at.
    """

    inputs: tuple[LossInput, ...]
    log_of_probabilities: str = ""
    softmax_over_one: str = ""
    batches: int = 0


def softmax_before_ce(evidence: LossEvidence) -> tuple[Finding, ...]:
    """Find probabilities, or raw logits, where a loss wants logits or log-probabilities.

    Args:
        evidence: What entered the losses.
    """
    for seen in evidence.inputs:
        found = _wrong_kind(seen)
        if found:
            message, hint = found
            return wiring(
                "fail",
                "softmax_before_ce",
                message,
                hint=hint,
                where=seen.name,
                lowest=seen.lowest,
                highest=seen.highest,
                sum_error=seen.sum_error,
            )
    if evidence.log_of_probabilities:
        name = evidence.log_of_probabilities
        return wiring(
            "fail",
            "softmax_before_ce",
            f"{name} is given the probabilities of a softmax, so softmax is taken twice.",
            hint="Give it the logits.",
            where=name,
        )
    names = [s.name for s in evidence.inputs if s.name in ("cross_entropy", *_OF_LOG_PROBABILITIES)]
    if not names:
        return _none("softmax_before_ce", "no softmax loss of torch")
    return wiring(
        "pass",
        "softmax_before_ce",
        f"{names[0]} gets what it wants, over {evidence.batches} batches.",
    )


def _wrong_kind(seen: LossInput) -> tuple[str, str] | None:
    if seen.classes < 2:
        return None
    if seen.name == "cross_entropy":
        return _not_logits(seen)
    if seen.name in _OF_LOG_PROBABILITIES:
        return _not_log_probabilities(seen)
    return None


def _not_logits(seen: LossInput) -> tuple[str, str] | None:
    last = seen.chain[0] if seen.chain else ""
    if last not in _PROBABILITIES and not seen.are_probabilities:
        return None
    what = last if last in _PROBABILITIES else "softmax"
    message = (
        f"cross_entropy takes softmax itself, but is given the result of {what} "
        f"({seen.lowest:.3g} to {seen.highest:.3g} over {seen.classes} classes)."
    )
    return message, f"Leave out the {what} before the loss."


def _not_log_probabilities(seen: LossInput) -> tuple[str, str] | None:
    if seen.are_probabilities or (seen.chain[:1] and seen.chain[0] in _PROBABILITIES):
        what = "probabilities"
    elif seen.highest > _SUM_TOLERANCE and seen.log_sum_error > 0.05 and seen.is_all:
        what = "values that are no logarithms of probabilities"
    else:
        return None
    message = (
        f"{seen.name} wants log-probabilities, but is given {what} "
        f"({seen.lowest:.3g} to {seen.highest:.3g} over {seen.classes} classes)."
    )
    return message, "Give it log_softmax of the logits."


def sigmoid_before_bce_logits(evidence: LossEvidence) -> tuple[Finding, ...]:
    """Find probabilities where a binary loss takes the sigmoid itself.

    Args:
        evidence: What entered the losses.
    """
    seen_any = False
    for seen in evidence.inputs:
        if seen.name not in _OF_BINARY_LOGITS:
            continue
        seen_any = True
        by_name = bool(seen.chain) and seen.chain[0] in _PROBABILITIES
        by_rescue = seen.within_unit and seen.rescue is not None and seen.rescue > _RESCUED
        if by_name or by_rescue:
            return wiring(
                "fail",
                "sigmoid_before_bce_logits",
                f"{seen.name} takes the sigmoid itself, but is given "
                f"{'the result of ' + seen.chain[0] if by_name else 'probabilities'} "
                f"({seen.lowest:.3g} to {seen.highest:.3g}).",
                hint="Leave out the sigmoid before the loss.",
                where=seen.name,
                lowest=seen.lowest,
                highest=seen.highest,
                rescue=seen.rescue,
            )
    if not seen_any:
        return _none("sigmoid_before_bce_logits", "no binary loss of torch that takes logits")
    return wiring(
        "pass",
        "sigmoid_before_bce_logits",
        f"The binary loss gets logits, over {evidence.batches} batches.",
    )


def single_logit_softmax(evidence: LossEvidence) -> tuple[Finding, ...]:
    """Find a softmax over one logit, which is always 1.

    Args:
        evidence: What entered the losses.
    """
    for seen in evidence.inputs:
        softmax_loss = seen.name in ("cross_entropy", "nll_loss")
        squashed = bool(seen.chain) and seen.chain[0] in ("softmax", "log_softmax")
        if seen.classes == 1 and (softmax_loss or (squashed and _always_one(seen))):
            return _one_logit(seen.name)
    if evidence.softmax_over_one:
        return _one_logit(evidence.softmax_over_one)
    return wiring(
        "pass",
        "single_logit_softmax",
        f"No softmax over one logit enters a loss, over {evidence.batches} batches.",
    )


def _always_one(seen: LossInput) -> bool:
    return seen.lowest == seen.highest and seen.lowest in (0.0, 1.0)


def _one_logit(name: str) -> tuple[Finding, ...]:
    return wiring(
        "fail",
        "single_logit_softmax",
        f"{name} works on a softmax over one logit, which is 1 whatever the network says.",
        hint="Use one logit with binary_cross_entropy_with_logits, or two with cross_entropy.",
        where=name,
    )


def _none(code: str, what: str) -> tuple[Finding, ...]:
    return wiring("skip", code, f"The program calls {what}.")
