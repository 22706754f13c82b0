"""Is what a program reports computed over the right examples and classes?"""

from __future__ import annotations

import dataclasses
import math

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricFault:
    """One comparison that a metric is made of.

    Attributes:
        stage: ``"training"`` or ``"validation"``.
        function: What was called.
        shape: Shape of the outputs.
        other: Shape of the targets that they spread over; empty where that is not the fault.
        dim: The dimension that the function went over; None for all.
        answers: Shape of the answers whose right ones are divided by the number of outputs; empty
            where that is not the fault.
    """

    stage: str
    function: str
    shape: tuple[int, ...]
    other: tuple[int, ...] = ()
    dim: int | None = None
    answers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricEvidence:
    """The comparisons of outputs and labels that no loss is made of.

    Attributes:
        faults: Those that are wrong.
        comparisons: How many there were.
    """

    faults: tuple[MetricFault, ...]
    comparisons: int


def metric_wrong(evidence: MetricEvidence) -> tuple[Finding, ...]:
    """Find a metric over the batch, over all pairs of examples, or of all scores.

    Args:
        evidence: The comparisons.
    """
    for fault in evidence.faults:
        if fault.answers:
            most = math.prod(fault.answers) / math.prod(fault.shape)
            message = (
                f"In {fault.stage}, the right ones of {fault.answers} answers are divided by the "
                f"number of scores, of shape {fault.shape}: at most {most:.2g} is reached."
            )
            hint = "Divide by the number of labels, labels.numel(), or take the mean."
        elif fault.other:
            message = (
                f"In {fault.stage}, {fault.function} of {fault.shape} and {fault.other} compares "
                "each output with the targets of all examples."
            )
            hint = "Bring both to one shape, for example output.squeeze(-1)."
        else:
            over = "all of" if fault.dim is None else f"dimension {fault.dim} of"
            message = (
                f"In {fault.stage}, what is compared with the labels comes from {fault.function} "
                f"over {over} outputs of shape {fault.shape}, which are not their classes."
            )
            hint = "Take it over the dimension of the classes, as the loss does."
        return wiring(
            "fail", "metric_wrong", message, hint=hint, where=fault.function, stage=fault.stage
        )
    if not evidence.comparisons:
        return wiring("skip", "metric_wrong", "No output was seen to be compared with labels.")
    return wiring(
        "pass",
        "metric_wrong",
        f"{evidence.comparisons} comparisons of outputs and labels fit in shape.",
    )
