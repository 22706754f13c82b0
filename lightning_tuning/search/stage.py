"""One stage of a search."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from lightning_tuning.functional import checks

SamplerName = Literal["random", "sobol", "tpe", "gp", "grid"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """How many trials, how long, and where.

    Attributes:
        trials: How many trials.
        epochs: How long each trains; below 1 for a part of the first epoch.
        sampler: Optuna's sampler: ``"random"``, ``"sobol"``, ``"tpe"``, ``"gp"`` or ``"grid"``.
        keep: The share of the trials around which the next stage searches.
        prune: Whether trials that are worse than the median of the others at the same epoch end
            early.

    Raises:
        ValueError: A value is out of its range.

    Example:
        >>> Stage(trials=20, epochs=1).sampler
        'random'
    """

    trials: int
    epochs: float
    sampler: SamplerName = "random"
    keep: float = 0.2
    prune: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        checks.at_least("trials", self.trials, 1)
        checks.positive("epochs", self.epochs)
        if self.epochs > 1 and self.epochs != int(self.epochs):
            raise ValueError(f"epochs={self.epochs} must be a whole number, or below 1")
        checks.choice("sampler", self.sampler, get_args(SamplerName))
        if not checks.is_number(self.keep) or not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} must be above 0 and at most 1")


DEFAULT_STAGES = (
    Stage(trials=30, epochs=1, sampler="sobol"),
    Stage(trials=20, epochs=5, sampler="random"),
    Stage(trials=20, epochs=20, sampler="tpe"),
)
"""CS231n: a coarse search over one epoch or less, a finer one over five, the last one longer."""
