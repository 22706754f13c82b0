"""Do outputs and targets fit together: in shape, in range, in number of classes?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring

RANGES: Mapping[str, tuple[float, float]] = {
    "relu": (0.0, math.inf),
    "relu_": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "sigmoid": (0.0, 1.0),
    "sigmoid_": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "gumbel_softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "tanh_": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "normalize": (-1.0, 1.0),
    "softplus": (0.0, math.inf),
    "exp": (0.0, math.inf),
    "exp_": (0.0, math.inf),
    "gelu": (-0.17, math.inf),
    "silu": (-0.279, math.inf),
    "mish": (-0.309, math.inf),
    "log_softmax": (-math.inf, 0.0),
    "logsigmoid": (-math.inf, 0.0),
}
"""What each activation can give."""

_UNREACHABLE = 0.05
_FLOOR = 0.15
_OUTSIDE_UNIT = 0.01
_RESCUED = 0.8
_HEAD_TOO_LARGE = 10
_EXAMPLES_PER_CLASS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broadcast:
    """An output and a target that spread over each other.

    Attributes:
        where: The operation.
        output: Shape of the output.
        target: Shape of the target.
        result: Shape of what came out.
        explicit: Whether the program spread one of them itself, just before.
        rescue: Loss at the end of a short training with the target in the output's shape, divided
            by that of the program as it is; None where it was not tried.
    """

    where: str
    output: tuple[int, ...]
    target: tuple[int, ...]
    result: tuple[int, ...]
    explicit: bool = False
    rescue: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reach:
    """What part of the targets an output can reach.

    Attributes:
        where: The loss.
        activation: The output's last function; empty where it is none.
        unreachable: The part of the targets' variance that no output can explain, or of the loss
            at chance that no output can take away.
        lowest: Smallest target.
        highest: Largest target.
        of_loss: Whether ``unreachable`` is a part of the loss at chance.
        outside_unit: For a binary loss, the share of targets outside [0, 1].
    """

    where: str
    activation: str
    unreachable: float
    lowest: float
    highest: float
    of_loss: bool = False
    outside_unit: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels that meet a head.

    Attributes:
        where: The function that takes both.
        classes: Outputs of the head.
        lowest: Smallest label.
        highest: Largest label.
        outside: How many labels have no output.
        examples: How many labels were looked at.
        per_example: Whether there is one for each example.
    """

    where: str
    classes: int
    lowest: int
    highest: int
    outside: int
    examples: int
    per_example: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputEvidence:
    """How outputs meet targets.

    Attributes:
        broadcasts: Those that spread over each other.
        reaches: Of each loss whose output ends in an activation, or that is binary.
        labels: Of each function that takes labels.
        batches: So many were looked at.
        error: What the program said where its step raised.
    """

    broadcasts: tuple[Broadcast, ...] = ()
    reaches: tuple[Reach, ...] = ()
    labels: tuple[Labels, ...] = ()
    batches: int = 0
    error: str = ""


def broadcast_mismatch(evidence: OutputEvidence) -> tuple[Finding, ...]:
    """Find a column compared with a row, which gives every pair of the batch.

    Args:
        evidence: How outputs meet targets.
    """
    for seen in evidence.broadcasts:
        if seen.explicit and (seen.rescue is None or seen.rescue > _RESCUED):
            continue
        return wiring(
            "fail",
            "broadcast_mismatch",
            f"{seen.where} of {seen.output} and {seen.target} gives {seen.result}: each output "
            "meets the targets of all examples.",
            hint="Bring both to one shape, for example output.squeeze(-1).",
            where=seen.where,
            result_size=math.prod(seen.result),
            output_size=math.prod(seen.output),
            rescue=seen.rescue,
        )
    return wiring(
        "pass",
        "broadcast_mismatch",
        f"No output spreads over the targets of other examples, in {evidence.batches} batches.",
    )


def output_range_mismatch(evidence: OutputEvidence) -> tuple[Finding, ...]:
    """Find targets that the output's activation can't reach.

    Args:
        evidence: How outputs meet targets.
    """
    for seen in evidence.reaches:
        numbers = {
            "unreachable": seen.unreachable,
            "lowest": seen.lowest,
            "highest": seen.highest,
            "outside_unit": seen.outside_unit,
        }
        if seen.outside_unit > _OUTSIDE_UNIT:
            return wiring(
                "fail",
                "output_range_mismatch",
                f"{seen.where} wants targets in [0, 1], but {seen.outside_unit:.0%} lie outside "
                f"({seen.lowest:.3g} to {seen.highest:.3g}).",
                hint="Map the targets to 0 and 1.",
                where=seen.where,
                **numbers,
            )
        if seen.unreachable > (_FLOOR if seen.of_loss else _UNREACHABLE):
            low, high = RANGES[seen.activation]
            what = "the loss at chance" if seen.of_loss else "the targets' variance"
            return wiring(
                "fail",
                "output_range_mismatch",
                f"The output ends in {seen.activation} ({low:g} to {high:g}) and the targets go "
                f"from {seen.lowest:.3g} to {seen.highest:.3g}: {seen.unreachable:.0%} of {what} "
                "is out of reach.",
                hint=f"Leave out the final {seen.activation}, or scale the targets.",
                where=seen.where,
                **numbers,
            )
    if not evidence.reaches:
        return wiring(
            "skip",
            "output_range_mismatch",
            "No output of a bounded activation goes into a loss with targets.",
        )
    return wiring(
        "pass",
        "output_range_mismatch",
        f"The outputs can reach the targets, in {evidence.batches} batches.",
    )


def wrong_num_classes(evidence: OutputEvidence) -> tuple[Finding, ...]:
    """Find labels that have no output, and heads with many times more outputs than labels.

    Args:
        evidence: How outputs meet targets.
    """
    for seen in evidence.labels:
        numbers = {
            "classes": seen.classes,
            "lowest": seen.lowest,
            "highest": seen.highest,
            "outside": seen.outside,
            "examples": seen.examples,
        }
        if seen.outside:
            return wiring(
                "fail",
                "wrong_num_classes",
                f"{seen.outside} of {seen.examples} labels have no output: labels go from "
                f"{seen.lowest} to {seen.highest}, the head has {seen.classes} outputs.",
                hint=f"Use labels from 0 to {seen.classes - 1}, or give the head more outputs.",
                where=seen.where,
                **numbers,
            )
        if seen.per_example and _too_large(seen):
            return wiring(
                "warn",
                "wrong_num_classes",
                f"The head has {seen.classes} outputs, but {seen.examples} labels go only from "
                f"{seen.lowest} to {seen.highest}.",
                hint=f"Give the head {seen.highest + 1} outputs.",
                where=seen.where,
                **numbers,
            )
    if not evidence.labels:
        return wiring("skip", "wrong_num_classes", "No class labels were seen to meet an output.")
    return wiring(
        "pass",
        "wrong_num_classes",
        f"{sum(seen.examples for seen in evidence.labels)} labels fit the head's outputs.",
    )


def _too_large(seen: Labels) -> bool:
    used = seen.highest + 1
    enough = seen.examples >= max(_EXAMPLES_PER_CLASS * used, 100)
    return used >= 2 and enough and seen.classes >= _HEAD_TOO_LARGE * used
