"""Training examples that come sorted by what is to be predicted."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_tuning.findings import Finding
from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.wiring_finding import wiring

SORTED = 0.95
BLOCKS = 0.1
_FEW = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetOrder:
    """The order of the targets over a pass.

    Attributes:
        count: So many targets were read.
        classes: The number of different ones; 0 for values.
        changes: Of class from one example to the next, relative to what chance would give; 1 for
            values.
        rank_correlation: Spearman's, between place and target, as an absolute value.
    """

    count: int
    classes: int
    changes: float
    rank_correlation: float

    @property
    def is_sorted(self) -> bool:
        """Whether the examples come in blocks of one class, or by the size of the target."""
        if self.count < _FEW:
            return False
        if self.classes:
            return self.classes == 1 or self.changes < BLOCKS
        return self.rank_correlation > SORTED


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrderEvidence:
    """The order, and how the program trains in it and in a random one.

    Attributes:
        order: None where the targets were not recognised.
        in_order: As it is, judged by examples drawn at random from the whole data set.
        at_random: The loss after as long a training on examples drawn at random.
        reason: Why one of these was not measured.
    """

    order: TargetOrder | None
    in_order: Trained | None = None
    at_random: float | None = None
    reason: str = ""


def unshuffled_data(evidence: OrderEvidence) -> tuple[Finding, ...]:
    """Judge sorted training data: a training in random order must be much better."""
    code = "unshuffled_data"
    order = evidence.order
    if order is None:
        reason = (
            "no tensor of the batch is what a loss function compares with, one value an example"
        )
        return wiring("skip", code, f"Not checked: {evidence.reason or reason}.")
    said = (
        f"Over {order.count} examples the class changes {order.changes:.2g} times as often "
        "as by chance"
        if order.classes
        else f"Over {order.count} examples the target's rank correlation with the place is "
        f"{order.rank_correlation:.2g}"
    )
    numbers = {"changes": order.changes, "rank_correlation": order.rank_correlation}
    trained = evidence.in_order
    if not order.is_sorted or trained is None:
        why = f"; not tried in random order: {evidence.reason}" if evidence.reason else ""
        return wiring("pass", code, f"{said}{why}.", hint="", where="", **numbers)
    if not trained.cured_by(evidence.at_random):
        message = f"{said}, and a random order is not much better."
        return wiring("pass", code, message, hint="", where="", **numbers)
    return wiring(
        "warn",
        code,
        f"{said}; a short training ends at a loss of {trained.after:.3g} on examples of the whole "
        f"data set, one in random order at {evidence.at_random:.3g}.",
        hint="Give the training DataLoader shuffle=True, or a sampler that draws at random.",
        where="",
        loss_after=trained.after,
        loss_rescued=evidence.at_random,
        **numbers,
    )


def target_order(targets: Tensor) -> TargetOrder:
    """Return in what order targets come, integers as classes and others as values.

    Example:
        >>> target_order(torch.arange(3).repeat_interleave(20)).is_sorted
        True
        >>> target_order(torch.arange(3).repeat(20)).is_sorted
        False
    """
    values = targets.detach().flatten().cpu()
    kinds, counts = torch.unique(values, return_counts=True)
    # labels are sometimes kept as floating-point numbers
    if len(kinds) <= max(2, len(values) // 5) and bool((kinds == kinds.round()).all()):
        shares = counts.double() / len(values)
        expected = float(1 - (shares**2).sum()) * (len(values) - 1)
        changes = int((values[1:] != values[:-1]).sum())
        return TargetOrder(
            count=len(values),
            classes=len(kinds),
            changes=changes / expected if expected > 0 else 0.0,
            rank_correlation=0.0,
        )
    ranks = values.double().argsort(stable=True).argsort(stable=True).double()
    places = torch.arange(len(values), dtype=torch.float64)
    pair = torch.stack([ranks, places])
    correlation = abs(float(torch.corrcoef(pair)[0, 1])) if len(values) > 1 else 0.0
    return TargetOrder(count=len(values), classes=0, changes=1.0, rank_correlation=correlation)
