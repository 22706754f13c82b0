"""Training examples that come sorted by what is to be predicted."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_tuning.findings import Finding
from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.wiring.wiring_finding import wiring

SORTED = 0.95
BLOCKS = 0.1
_FEW = 40
_EXACT = 1 - 1e-6
_SMOOTH = 0.2
_WELL = 0.9
_HALF = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetOrder:
    """The order of the targets over a pass.

    Attributes:
        count: So many targets were read.
        classes: The number of different ones; 0 for values.
        changes: Of class from one example to the next, relative to what chance would give; 1 for
            values.
        rank_correlation: Spearman's, between place and target, as an absolute value.
        roughness: Of the smoothest input, see :func:`roughness`; 0 where it is not known.
    """

    count: int
    classes: int
    changes: float
    rank_correlation: float
    roughness: float = 0.0

    @property
    def is_file_order(self) -> bool:
        """Whether they are sorted by the target exactly, and by no input beside it.

        Recordings and grids, where neighbours look alike, have an order that may be wanted.
        """
        exact = self.classes > 1 if self.classes else self.rank_correlation > _EXACT
        return self.is_sorted and exact and self.roughness > _SMOOTH

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

    @property
    def may_be_cured(self) -> bool:
        """Whether a training in random order is worth its time."""
        if self.order is None or self.in_order is None or not self.order.is_sorted:
            return False
        in_file_order = self.order.is_file_order and self.in_order.learnt < _WELL
        return in_file_order or self.in_order.may_be_cured

    @property
    def cured(self) -> bool:
        """Whether a random order is so much better.

        Where the order is surely that of a file, it need not train badly: half the loss counts.
        """
        if self.in_order is None or self.at_random is None or not self.may_be_cured:
            return False
        if self.in_order.may_be_cured:
            return self.in_order.cured_by(self.at_random)
        return self.at_random < _HALF * self.in_order.after


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
    if not evidence.cured:
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


def target_order(targets: Tensor, inputs: Tensor | None = None) -> TargetOrder:
    """Return in what order targets come, integers as classes and others as values.

    Args:
        targets: One value an example.
        inputs: What stands beside them in the batch: examples, features.

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
        order = TargetOrder(
            count=len(values),
            classes=len(kinds),
            changes=changes / expected if expected > 0 else 0.0,
            rank_correlation=0.0,
        )
        rough = _rough(inputs, values) if order.is_sorted else 0.0
        return dataclasses.replace(order, roughness=rough)
    ranks = values.double().argsort(stable=True).argsort(stable=True).double()
    places = torch.arange(len(values), dtype=torch.float64)
    pair = torch.stack([ranks, places])
    correlation = abs(float(torch.corrcoef(pair)[0, 1])) if len(values) > 1 else 0.0
    return TargetOrder(
        count=len(values),
        classes=0,
        changes=1.0,
        rank_correlation=correlation,
        roughness=_rough(inputs, torch.zeros_like(values)),
    )


def roughness(series: Tensor) -> Tensor:
    """Return how much each feature differs from one example to the next.

    Half the mean squared difference of neighbours, relative to the variance: about 1 in random
    order, 0 along a smooth path (von Neumann 1941).

    Args:
        series: Examples, features.

    Example:
        >>> roughness(torch.arange(100.0)[:, None]).item() < 0.01
        True
        >>> round(roughness(torch.tensor([[0.0], [1.0]] * 50)).item())
        2
    """
    variance = series.var(0, correction=0)
    return series.diff(dim=0).square().mean(0) / (2 * variance.clamp_min(1e-30))


def _rough(inputs: Tensor | None, groups: Tensor) -> float:
    """Return the roughness of the smoothest feature that varies, about the means of groups."""
    if inputs is None or len(inputs) != len(groups) or len(inputs) < 2:
        return 0.0
    series = inputs.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0)
    spread = series.std(0)
    for group in torch.unique(groups):
        here = groups == group
        series[here] = series[here] - series[here].mean(0)
    varies = series.std(0) > 1e-6 * (1 + spread)
    return float(roughness(series[:, varies]).min()) if bool(varies.any()) else 0.0
