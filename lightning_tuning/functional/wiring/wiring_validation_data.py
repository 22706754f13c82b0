"""Validation data that enter the network unlike the training data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring
from lightning_tuning.functional.wiring.wiring_held_out import HeldOut

SHIFT = 1.0
STRETCH = 2.0
_FEWEST = 20
_BETTER = 0.5
_MUCH_BETTER = 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataShift:
    """How validation data differ from training data at one layer that they enter.

    Attributes:
        name: The path of the layer's weight.
        shift: Median over features of the distance of the means, in training deviations.
        stretch: Ratio of the deviations, median over features.
        count: The fewer of the two numbers of values of a feature.
    """

    name: str
    shift: float
    stretch: float
    count: int

    @property
    def is_far(self) -> bool:
        """Whether this is far beyond what splitting one data set gives."""
        far = self.shift > SHIFT or not 1 / STRETCH < self.stretch < STRETCH
        return self.count >= _FEWEST and far


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationEvidence:
    """The shift, and what it does to the validation loss.

    Attributes:
        shifts: At each layer that both data enter.
        what: What is called loss here: a loss function of validation, or a logged value.
        before: The validation loss before training.
        after: After a short training.
        mapped: After the same with the data brought to the training data's mean and deviation, or
            with the remedy.
        remedy: What else makes validation data look like training data; empty for nothing.
        train_before: The same loss on training data as training feeds them, without dropout; None
            if not known.
        train_after: After the short training.
        held_out: What is known of training data held out, and of validation data.
        reason: Why nothing was compared.
    """

    shifts: tuple[DataShift, ...] = ()
    what: str = ""
    before: float = math.nan
    after: float = math.nan
    mapped: float = math.nan
    remedy: str = ""
    train_before: float | None = None
    train_after: float | None = None
    held_out: HeldOut | None = None
    reason: str = ""

    @property
    def far(self) -> tuple[DataShift, ...]:
        """The shifts that are far."""
        return tuple(shift for shift in self.shifts if shift.is_far)

    @property
    def harmful(self) -> bool:
        """Whether training helps validation little, and far more without the shift."""
        if not math.isfinite(self.mapped):
            return False
        start = self.before
        if self.train_before is not None and self.train_after is not None:
            # on data of another scale the loss starts higher than on the training data
            start = min(start, self.train_before)
            learnt = self.train_after < self.train_before - 0.2 * abs(self.train_before)
            if not learnt or self.after < self.train_after + 0.5 * abs(self.train_after):
                return False
        no_better = not self.after < start - 0.2 * abs(start)
        gain = _BETTER if no_better else _MUCH_BETTER
        return not self.mapped > self.after - gain * abs(self.after)


def train_val_mismatch(evidence: ValidationEvidence) -> tuple[Finding, ...]:
    """Judge validation data: far from the training data, and much better when brought to them."""
    code = "train_val_mismatch"
    if evidence.remedy and evidence.harmful:
        return wiring(
            "warn",
            code,
            f"A short training takes {evidence.what} of validation from {evidence.before:.3g} to "
            f"{evidence.after:.3g}, but to {evidence.mapped:.3g} with its data {evidence.remedy}.",
            hint="Give validation the same preprocessing as training.",
            where="",
            loss_before=evidence.before,
            loss_after=evidence.after,
            loss_mapped=evidence.mapped,
        )
    held = evidence.held_out
    if held is not None and held.apart:
        return _apart(held)
    if not evidence.shifts:
        reason = evidence.reason or "no floating-point data enter one layer in both"
        return wiring("skip", code, f"Not checked: {reason}.")
    worst = max(evidence.far or evidence.shifts, key=_distance)
    said = (
        f"Validation data enter {worst.name} with means {worst.shift:.2g} training deviations away "
        f"and deviations {worst.stretch:.3g} times as large"
    )
    numbers = {"shift": worst.shift, "stretch": worst.stretch}
    if not evidence.far or not evidence.harmful:
        return wiring("pass", code, f"{said}.", hint="", where=worst.name, **numbers)
    return wiring(
        "warn",
        code,
        f"{said}; a short training takes {evidence.what} from {evidence.before:.3g} to "
        f"{evidence.after:.3g}, but to {evidence.mapped:.3g} with these data brought to the mean "
        "and deviation of the training data.",
        hint="Give validation the same scaling as training, with the training data's statistics.",
        where=worst.name,
        loss_before=evidence.before,
        loss_after=evidence.after,
        loss_mapped=evidence.mapped,
        **numbers,
    )


def _apart(held: HeldOut) -> tuple[Finding, ...]:
    train, val = held.train, held.val
    return wiring(
        "warn",
        "train_val_mismatch",
        f"After a short training the loss of {train.examples} training examples that were held "
        f"out, validated as the others are, is {train.loss:.3g}, and {train.exchanged:.3g} with "
        f"their targets exchanged at random. That of {val.examples} validation examples is "
        f"{val.loss:.3g}, and {val.exchanged:.3g}: little of what was learnt holds for them.",
        hint="Compare the preparation of both data: vocabulary, order of classes and of columns, "
        "and whether inputs still stand beside their targets.",
        where="",
        loss_held_out=train.loss,
        loss_held_out_exchanged=train.exchanged,
        loss_val=val.loss,
        loss_val_exchanged=val.exchanged,
    )


def data_shift(
    name: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    val_mean: Sequence[float],
    val_std: Sequence[float],
    count: int,
) -> DataShift:
    """Return how validation statistics differ from training ones, feature by feature.

    Args:
        name: The path of the layer's weight.
        mean: Of each feature in training.
        std: Of each feature in training.
        val_mean: In validation.
        val_std: In validation.
        count: Values of a feature, in the smaller of the two.

    Example:
        >>> data_shift("fc", mean=[0.0], std=[1.0], val_mean=[2.0], val_std=[3.0], count=99)
        DataShift(name='fc', shift=2.0, stretch=3.0, count=99)
    """
    # features that hardly vary in training say nothing of scale
    least = 0.05 * max(std, default=0.0) / max(math.sqrt(len(std)), 1.0)
    kept = [i for i, s in enumerate(std) if s > least] or list(range(len(std)))
    shifts = sorted(abs(val_mean[i] - mean[i]) / max(std[i], 1e-12) for i in kept)
    ratios = sorted(val_std[i] / max(std[i], 1e-12) for i in kept)
    middle = len(kept) // 2
    return DataShift(name=name, shift=shifts[middle], stretch=ratios[middle], count=count)


def _distance(shift: DataShift) -> float:
    return max(shift.shift, abs(math.log(max(shift.stretch, 1e-12))))
