"""A class so rare that it is never predicted."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring

RARE = 0.05
FEWEST = 5
_NEVER = 0.2
_OFTEN = 0.5
_BALANCED = 0.7
"""Mean of both shares; one half is had by guessing, and a little more by heart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImbalanceEvidence:
    """How rare the rarest class is, and whether it is predicted after a short training.

    Attributes:
        examples: So many targets were read; 0 where there is no single class an example.
        rare: The share of all classes but the most frequent one.
        rare_count: Their examples.
        remedy: The option of the loss function that weighs classes; empty without one.
        recall: The share of rare examples whose class was predicted after a training as it is.
        recall_weighted: The same after as long a training with classes weighed alike.
        common_weighted: The share of common examples that is right then.
    """

    examples: int
    rare: float = 0.0
    rare_count: int = 0
    remedy: str = ""
    recall: float | None = None
    recall_weighted: float | None = None
    common_weighted: float | None = None

    @property
    def is_extreme(self) -> bool:
        """Whether a class may drown, and nothing is done about it."""
        return not self.remedy and 0 < self.rare < RARE and self.rare_count >= FEWEST

    @property
    def is_missed(self) -> bool:
        """Whether it hardly ever is predicted."""
        return self.is_extreme and self.recall is not None and self.recall <= _NEVER


def class_imbalance(evidence: ImbalanceEvidence) -> tuple[Finding, ...]:
    """Judge rare classes: never predicted as it is, yet by a training that weighs them."""
    code = "class_imbalance"
    if not evidence.examples:
        return wiring("skip", code, "Not checked: the loss does not compare one class an example.")
    said = f"{evidence.rare:.2%} of {evidence.examples} examples are not of the most frequent class"
    numbers = {"rare": evidence.rare, "recall": evidence.recall}
    recall, weighted, common = evidence.recall, evidence.recall_weighted, evidence.common_weighted
    if (
        not evidence.is_missed
        or recall is None
        or weighted is None
        or common is None
        or min(weighted, common) < _OFTEN
        or (weighted + common) / 2 < _BALANCED
    ):
        return wiring("pass", code, f"{said}.", hint="", where="", **numbers)
    return wiring(
        "warn",
        code,
        f"{said}; after a short training {recall:.0%} of them are recognised, after one with "
        f"classes weighed alike {weighted:.0%} (and {common:.0%} of the others).",
        hint="Weigh the classes in the loss, or draw them by a WeightedRandomSampler.",
        where="",
        recall_weighted=weighted,
        **numbers,
    )
