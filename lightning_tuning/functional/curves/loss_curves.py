"""The curves of a fit: losses, metrics and learning rates over its steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_tuning.findings import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Values of one quantity.

    Attributes:
        name: The name under which it is logged.
        steps: Optimizer steps, counted as the loggers do, in rising order.
        values: Finite values at these steps.
        higher_is_better: The better direction; None where nobody knows.
    """

    name: str
    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    higher_is_better: bool | None = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """What was recorded of a fit.

    Attributes:
        train: The training loss. Of a long fit each point is the mean of ``width`` steps,
            and stands at the last of them.
        width: Optimizer steps in one point of ``train``.
        rates: The learning rate at each point of ``train``, the largest of all groups.
        highs: The largest single loss in each point of ``train``.
        first: The loss of the first step; None where it is not known.
        non_finite: Steps whose loss was not a finite number.
        first_non_finite: The first of the latest run of such steps; None if the last loss is
            finite.
        steps: Steps that were recorded.
        val: The validation loss; None without one.
        metrics: Other validation metrics.
        epoch_ends: The last step of each training epoch.
        chance: Training loss of the best constant prediction; None where that is not known.
        chance_high: The same of a prediction that does not know how often each target occurs.
        alike: Whether validation calls the same loss functions as training does.
        regularized: What makes the training loss higher than the validation loss; empty if nothing
            is known to.
        batch_size: Examples in one optimizer step; None where that is not known.
        momentum: The largest momentum, or beta1 of Adam, at the start; 0 without any.
        optimizers: How many there are.
        no_train: Why there is no training loss; empty if there is one.
        no_val: Why there is no validation loss; empty if there is one.
    """

    train: Curve
    width: int = 1
    rates: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    first: float | None = None
    non_finite: int = 0
    first_non_finite: int | None = None
    steps: int = 0
    val: Curve | None = None
    metrics: tuple[Curve, ...] = ()
    epoch_ends: tuple[int, ...] = ()
    chance: float | None = None
    chance_high: float | None = None
    alike: bool = False
    regularized: str = ""
    batch_size: int | None = None
    momentum: float = 0.0
    optimizers: int = 1
    no_train: str = ""
    no_val: str = ""

    def to_json(self) -> str:
        """Return the curves as JSON.

        Example:
            >>> curves = Curves(train=Curve(name="loss", steps=(0, 1), values=(2.0, 1.5)))
            >>> Curves.from_json(curves.to_json()) == curves
            True
        """
        return json.dumps(self, default=vars)

    @classmethod
    def from_json(cls, text: str) -> Curves:
        """Return the curves that :meth:`to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Curves:
        """Return the curves from plain values."""
        lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
        val = values["val"]
        read = {
            "train": _curve(values["train"]),
            "val": None if val is None else _curve(val),
            "metrics": tuple(_curve(metric) for metric in values["metrics"]),
        }
        return cls(**{**values, **lists, **read})

    def epochs(self, steps: Sequence[int]) -> tuple[float, ...]:
        """Return where steps lie on an axis of epochs; the steps themselves before one has ended.

        Example:
            >>> curves = Curves(train=Curve(name="loss"), epoch_ends=(9, 19))
            >>> curves.epochs([4, 9, 19])
            (0.5, 1.0, 2.0)
        """
        if not self.epoch_ends:
            return tuple(float(step) for step in steps)
        ends = self.epoch_ends
        # of a resumed fit the first epochs may be missing: all are taken for equally long
        length = (ends[-1] + 1) / len(ends) if len(ends) == 1 else _mean_gap(ends)
        return tuple(round((step - ends[0]) / length + (ends[0] + 1) / length, 6) for step in steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossCurveResult:
    """What ``LossCurveDiagnosis`` recorded, and what it says.

    Attributes:
        curves: The record.
        findings: What it means.
    """

    curves: Curves
    findings: tuple[Finding, ...] = ()

    def plot(self) -> Figure:
        """Draw the curves in linear and in log scale, with the findings marked on them."""
        from lightning_tuning.plot_curves import plot_curves

        return plot_curves(self)

    def to_json(self) -> str:
        """Return curves and findings as JSON."""
        return json.dumps(
            {
                "curves": self.curves,
                "findings": [finding.to_dict() for finding in self.findings],
            },
            default=vars,
        )


def _curve(values: dict[str, Any]) -> Curve:
    return Curve(
        **{**values, "steps": tuple(values["steps"]), "values": tuple(values["values"])},
    )


def _mean_gap(ends: Sequence[int]) -> float:
    return (ends[-1] - ends[0]) / (len(ends) - 1)
