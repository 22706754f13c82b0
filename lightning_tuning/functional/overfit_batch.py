"""Overfitting a tiny batch: what was tried and what it reached.

Source: A. Karpathy, *A Recipe for Training Neural Networks* (2019); CS231n, *Learning and
Evaluation*.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERFITTED = 0.95
"""The batch counts as overfitted when so much of the way from chance to the floor is done."""

_UNMOVED = 1e-3
"""Of the first loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverfitRun:
    """Training on the tiny batch at one learning rate.

    Attributes:
        rate: The learning rate, that of the group with the largest one.
        factor: The same as a multiple of the person's own.
        losses: The loss of each step.
        whole: Whether it ran its course: it came to an end by itself or took all its steps.
        zeroed: Whether the inputs were replaced by zeros.
        error: What the program said where it broke down.
    """

    rate: float
    factor: float
    losses: tuple[float, ...]
    whole: bool = True
    zeroed: bool = False
    error: str = ""

    @property
    def reached(self) -> float:
        """The lowest loss; infinite if none was finite.

        Example:
            >>> OverfitRun(rate=0.1, factor=1.0, losses=(2.0, 0.5, float("nan"))).reached
            0.5
        """
        return min((loss for loss in self.losses if math.isfinite(loss)), default=math.inf)

    @property
    def unmoved(self) -> bool:
        """Whether the loss stayed where it was, to a thousandth; a lower rate moves it less.

        Example:
            >>> OverfitRun(rate=0.1, factor=1.0, losses=(2.0, 2.001, 2.0)).unmoved
            True
        """
        if not all(map(math.isfinite, self.losses)) or not self.losses:
            return False
        return max(self.losses) - min(self.losses) < _UNMOVED * abs(self.losses[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverfitBatchResult:
    """What :class:`~lightning_tuning.OverfitBatchCheck` measured.

    Attributes:
        samples: Examples in the tiny batch; None where that can't be told.
        chance: Loss of the best constant output for it; None where it is not known.
        floor: The lowest loss that its targets allow; None where it is not known.
        target: The loss to reach.
        runs: All that was tried on the real inputs, in that order.
        zeroed: The same with zeros for inputs, at the best rate; None where that was not tried.
    """

    samples: int | None
    chance: float | None
    floor: float | None
    target: float
    runs: tuple[OverfitRun, ...]
    zeroed: OverfitRun | None = None

    @property
    def best(self) -> OverfitRun:
        """The run that reached the lowest loss; the first one that reached the target."""
        reached = [run for run in self.runs if run.reached <= self.target]
        return reached[0] if reached else min(self.runs, key=lambda run: run.reached)

    @property
    def overfitted(self) -> bool:
        """Whether a run reached the target."""
        return self.best.reached <= self.target

    @property
    def start(self) -> float:
        """The loss of the first step."""
        return self.runs[0].losses[0] if self.runs[0].losses else math.nan

    @property
    def share(self) -> float:
        """How much of the way was done: from chance, or else the start, to the floor, or else 0.

        Example:
            >>> run = OverfitRun(rate=0.1, factor=1.0, losses=(2.5, 1.5))
            >>> known = OverfitBatchResult(
            ...     samples=20, chance=2.0, floor=0.0, target=0.1, runs=(run,)
            ... )
            >>> known.share
            0.25
        """
        return share_done(self.best.reached, start=self.start, chance=self.chance, floor=self.floor)

    def plot(self) -> Figure:
        """Draw the loss of each run over its steps.

        Returns:
            A ``matplotlib.figure.Figure`` that belongs to no window.
        """
        from lightning_tuning.plots import plot_overfit_batch

        return plot_overfit_batch(self)

    def to_json(self) -> str:
        """Return all of it as JSON; values that are not finite become null."""
        fields = dataclasses.asdict(self)
        for run in [*fields["runs"], *([fields["zeroed"]] if fields["zeroed"] else [])]:
            run["losses"] = [x if math.isfinite(x) else None for x in run["losses"]]
        if not math.isfinite(fields["target"]):
            fields["target"] = None
        return json.dumps(fields, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> OverfitBatchResult:
        """Return the result that :meth:`to_json` wrote; null becomes NaN again.

        Example:
            >>> run = OverfitRun(rate=0.1, factor=1.0, losses=(2.0, 0.5))
            >>> result = OverfitBatchResult(
            ...     samples=20, chance=None, floor=None, target=0.1, runs=(run,)
            ... )
            >>> OverfitBatchResult.from_json(result.to_json()) == result
            True
        """
        fields = json.loads(text)
        fields["runs"] = tuple(_run(run) for run in fields["runs"])
        fields["zeroed"] = _run(fields["zeroed"]) if fields["zeroed"] else None
        fields["target"] = math.nan if fields["target"] is None else fields["target"]
        return cls(**fields)


def share_done(reached: float, *, start: float, chance: float | None, floor: float | None) -> float:
    """Return how much of the way from chance to the floor a loss has gone.

    Args:
        reached: The loss.
        start: The loss before the first step, which is taken where chance is not known.
        chance: Loss of the best constant output.
        floor: The lowest loss; 0 where it is not known.

    Example:
        >>> share_done(0.5, start=9.0, chance=2.0, floor=0.0)
        0.75
    """
    top = start if chance is None else chance
    bottom = 0.0 if floor is None else floor
    if not math.isfinite(reached) or not top > bottom:
        return 0.0
    return (top - reached) / (top - bottom)


def target_of(*, start: float, chance: float | None, floor: float | None) -> float:
    """Return the loss at which a batch counts as overfitted.

    Example:
        >>> round(target_of(start=9.0, chance=2.0, floor=0.0), 2)
        0.1
    """
    top = start if chance is None else chance
    bottom = 0.0 if floor is None else floor
    return top - OVERFITTED * (top - bottom) if top > bottom else -math.inf


def _run(fields: dict[str, object]) -> OverfitRun:
    losses = fields.pop("losses")
    assert isinstance(losses, list)
    values = tuple(math.nan if loss is None else loss for loss in losses)
    return OverfitRun(losses=values, **fields)  # type: ignore[arg-type]
