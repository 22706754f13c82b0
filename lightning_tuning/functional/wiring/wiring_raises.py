"""What a training step's own error means."""

from __future__ import annotations

import dataclasses
import re

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring


@dataclasses.dataclass(frozen=True, kw_only=True)
class Raised:
    """The error of a training step on a real batch.

    Attributes:
        kind: Its class name; empty where nothing was raised.
        text: What it says.
        line: The person's own line, such as ``"model.py:12: x = self.fc(x)"``.
        layer: Path of the innermost layer that was being called.
        surroundings: Whether that line asks for callbacks, loggers or the trainer, which are
            stand-ins during a check.
        batches: Batches tried.
    """

    kind: str = ""
    text: str = ""
    line: str = ""
    layer: str = ""
    surroundings: bool = False
    batches: int = 0


_HINTS = (
    (r"mat1 and mat2 shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)",
     "The layer gets {1} features and expects {2}: flatten its input, or change in_features."),
    (r"expected input\[[^\]]*\] to have (\d+) channels, but got (\d+)",
     "The layer gets {1} channels and expects {0}: move the channels to second place."),
    (r"Target (-?\d+) is out of bounds",
     "A label is {0}: the head needs at least that many outputs and one more, labels start at 0."),
    (r"index out of range in self",
     "An index is as large as num_embeddings or negative: enlarge the embedding."),
    (r"does not require grad and does not have a grad_fn",
     "The loss is cut off from all parameters: look for detach, item, no_grad or frozen weights."),
    (r"[Ee]xpected (?:scalar type|all tensors|.*dtype|.*object of scalar type)",
     "Bring inputs, targets and weights to the same dtype and device."),
    (r"(?:must have the same dtype|found dtype|expected m1 and m2)",
     "Bring inputs, targets and weights to the same dtype."),
    (r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)",
     "Two sizes, {0} and {1}, must be equal: look at the shapes on this line."),
    (r"backward through the graph a second time",
     "A tensor of an earlier batch is used again: detach it between batches."),
    (r"modified by an inplace operation",
     "Write x = x + y instead of x += y where the graph needs the old values."),
)  # fmt: skip


def step_raised(evidence: Raised) -> tuple[Finding, ...]:
    """Say what the training step raised."""
    code = "step_raised"
    if not evidence.kind:
        return wiring("pass", code, f"The training step runs on {evidence.batches} batches.")
    first = evidence.text.strip().splitlines()[0] if evidence.text.strip() else "no text"
    place = f" at {evidence.line}" if evidence.line else ""
    if evidence.surroundings:
        text = f"Not checked: without callbacks and loggers the step raises {evidence.kind}{place}."
        return wiring("skip", code, text)
    return wiring(
        "fail",
        code,
        f"The training step raises {evidence.kind}: {first}{place}.",
        hint=hint(evidence.text),
        where=evidence.layer,
        error=evidence.kind,
    )


def hint(text: str) -> str:
    """Return what to do about an error of torch.

    Example:
        >>> hint("mat1 and mat2 shapes cannot be multiplied (8x16 and 32x10)")
        'The layer gets 16 features and expects 32: flatten its input, or change in_features.'
    """
    for pattern, advice in _HINTS:
        found = re.search(pattern, text)
        if found:
            return advice.format(*found.groups())
    return "Run training_step on one batch by hand and look at the shapes on this line."
