"""Whether the outputs depend on the inputs, and the inputs on the example."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputEvidence:
    """What other inputs changed.

    Attributes:
        examples: How many examples were replaced, or compared with each other.
        ignored: Whether no output changed, with the weights as they are nor with noise on them.
        constant: Whether the inputs are the same for all examples, while the targets are not.
        why_not: Why this could not be judged.
    """

    examples: int = 0
    ignored: bool = False
    constant: bool = False
    why_not: str = ""


def input_ignored(evidence: InputEvidence) -> tuple[Finding, ...]:
    """Judge whether the outputs depend on the inputs at all.

    Source: Karpathy, "A Recipe for Training Neural Networks": the input-independent baseline.
    """
    if not evidence.examples:
        return wiring("skip", "input_ignored", f"Not checked: {evidence.why_not}.")
    if evidence.ignored:
        return wiring(
            "fail",
            "input_ignored",
            f"The outputs are the same for other inputs: {evidence.examples} examples were "
            "replaced and not one output changed.",
            hint="Follow the input through the forward pass: is the layer's result used, or what "
            "went in before?",
            examples=evidence.examples,
        )
    return wiring(
        "pass",
        "input_ignored",
        f"The outputs change with the inputs of {evidence.examples} examples.",
        examples=evidence.examples,
    )


def constant_input(evidence: InputEvidence) -> tuple[Finding, ...]:
    """Judge whether all examples have the same inputs."""
    if not evidence.examples:
        return wiring("skip", "constant_input", f"Not checked: {evidence.why_not}.")
    if evidence.constant:
        return wiring(
            "fail",
            "constant_input",
            f"All {evidence.examples} examples have the same input, while their targets differ.",
            hint="Look at what the Dataset gives for different indices, and for integer division "
            "or a cast on the way.",
            examples=evidence.examples,
        )
    return wiring("pass", "constant_input", "The inputs differ from example to example.")
