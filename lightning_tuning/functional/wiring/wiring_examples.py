"""Whether each example is answered by itself, and compared with its own target."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring
from lightning_tuning.functional.wiring.wiring_parameters import Rescue

HALF = 0.5
"""Progress above which a reshape in the place of a transpose does no harm."""
_LEFT = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleEvidence:
    """What replacing single examples of a batch changed.

    Attributes:
        tested: How many examples were replaced whose target sits somewhere in the loss.
        leaking: How many of these changed outputs that belong to other examples.
        strangers: How many of these in turn left most outputs untouched that are their own.
        reached: The most other examples that one has changed.
        mixed_classes: The layer whose positions were mixed up with its channels on the way to the
            loss; empty for none.
        reshaped: Whether a reshape moves the dimension of the examples as only a transpose can.
        in_time: Whether the examples are read in their order and reach later ones only, as the
            pieces of a long series do.
        transposed: Training with transposes for reshapes that exchange sizes; None where it was
            not tried.
        why_not: Why nothing was tested.
    """

    tested: int
    leaking: int
    strangers: int
    reached: int
    mixed_classes: str = ""
    reshaped: bool = False
    in_time: bool = False
    transposed: Rescue | None = None
    why_not: str = ""

    @property
    def leaks(self) -> bool:
        """Whether examples reach each other as a rule, not now and then as in mixup."""
        return not self.in_time and self.leaking >= max(2, 2 * self.tested / 3)

    @property
    def scrambled(self) -> bool:
        """Whether they reach others instead of themselves."""
        return self.leaks and (self.reshaped or self.strangers >= self.leaking / 2)


def batch_leakage(evidence: ExampleEvidence) -> tuple[Finding, ...]:
    """Judge whether an example's output depends on the other examples of its batch.

    Source: Karpathy, "A Recipe for Training Neural Networks": use backprop to chart dependencies.
    """
    if evidence.leaks and not evidence.scrambled:
        return wiring(
            "fail",
            "batch_leakage",
            f"Replacing one example changes the outputs of others: {evidence.leaking} of "
            f"{evidence.tested} examples reach up to {evidence.reached} others.",
            hint="Look for an operation over the batch dimension: batch_first of attention or "
            "recurrent layers, softmax(dim=0), mean(0), a view that mixes examples.",
            tested=evidence.tested,
            leaking=evidence.leaking,
            reached=evidence.reached,
        )
    return _nothing("batch_leakage", evidence)


def dims_scrambled(evidence: ExampleEvidence) -> tuple[Finding, ...]:
    """Judge whether outputs are compared with what belongs to other examples or positions."""
    if evidence.scrambled:
        return wiring(
            "fail",
            "dims_scrambled",
            f"Replacing one example changes the outputs of up to {evidence.reached} others, for "
            f"{evidence.leaking} of {evidence.tested} examples: "
            + (
                "a reshape moves the batch dimension, and mixes what belongs to different examples."
                if evidence.reshaped
                else f"{evidence.strangers} left most of their own outputs as they were."
            ),
            hint="A view or reshape stands where the dimensions have to be exchanged: use "
            "transpose or permute.",
            tested=evidence.tested,
            leaking=evidence.leaking,
            strangers=evidence.strangers,
        )
    if evidence.mixed_classes:
        return wiring(
            "fail",
            "dims_scrambled",
            f"What the loss takes for one position comes from several positions of the output of "
            f"{evidence.mixed_classes}.",
            hint="A view or reshape stands where the channels have to be moved first: use permute "
            "or transpose, then reshape.",
            where=evidence.mixed_classes,
        )
    rescue = evidence.transposed
    if rescue is not None and _trains_transposed(rescue):
        return wiring(
            "warn",
            "dims_scrambled",
            "A reshape gives a tensor the same sizes in another order; "
            f"{rescue.told('with a transpose in its place')}.",
            hint="A view or reshape stands where the dimensions have to be exchanged: use "
            "transpose or permute.",
            progress=rescue.ordinary,
            progress_transposed=rescue.changed,
        )
    return _nothing("dims_scrambled", evidence)


def _trains_transposed(rescue: Rescue) -> bool:
    return rescue.helps and rescue.leaves_at_most(_LEFT) and rescue.ordinary < HALF


def _nothing(code: str, evidence: ExampleEvidence) -> tuple[Finding, ...]:
    if not evidence.tested:
        return wiring("skip", code, f"Not checked: {evidence.why_not}.")
    if evidence.in_time and evidence.leaking:
        why = "examples are read in order and reach later ones only, like pieces of a series"
        return wiring("skip", code, f"Not checked: {why}.", leaking=evidence.leaking)
    return wiring(
        "pass",
        code,
        f"Each of {evidence.tested} replaced examples kept to its own outputs."
        if not evidence.leaking
        else f"{evidence.leaking} of {evidence.tested} replaced examples reached others.",
        tested=evidence.tested,
        leaking=evidence.leaking,
    )
