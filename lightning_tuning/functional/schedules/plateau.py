"""When a validation metric has stopped improving."""

from __future__ import annotations

import dataclasses
import math

from lightning_tuning.functional.metric_mode import MetricMode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plateau:
    """How a validation metric has gone so far.

    The rule is that of ``torch.optim.lr_scheduler.ReduceLROnPlateau`` with a relative threshold.

    Attributes:
        mode: Whether the metric improves downwards or upwards.
        patience: Validations without an improvement that are waited for.
        threshold: By what share of the best value a better one must be better.
        cooldown: Validations after a reduction that don't count.
        best: The best value so far; None before the first.
        waited: Validations without an improvement since then.
        cooling: Validations that still don't count.
    """

    mode: MetricMode
    patience: int
    threshold: float
    cooldown: int
    best: float | None = None
    waited: int = 0
    cooling: int = 0

    def after(self, value: float, *, counts: bool = True) -> tuple[Plateau, bool]:
        """Return the state after one more validation, and whether the rate is to be reduced.

        Args:
            value: The metric; a value that is not a number is no improvement.
            counts: Whether a validation without an improvement counts; not during a warm-up.

        Example:
            >>> plateau = Plateau(mode="min", patience=0, threshold=0.0, cooldown=0)
            >>> plateau, reduced = plateau.after(1.0)
            >>> plateau.after(1.0)[1]
            True
        """
        better = self._better(value)
        waited = 0 if better else self.waited + counts
        cooling = self.cooling
        if cooling > 0:
            cooling, waited = cooling - 1, 0
        best = value if better else self.best
        reduced = waited > self.patience
        if reduced:
            cooling, waited = self.cooldown, 0
        return dataclasses.replace(self, best=best, waited=waited, cooling=cooling), reduced

    def progress(self) -> dict[str, float | None]:
        """Return what changes from one validation to the next, for a checkpoint.

        Example:
            >>> Plateau(mode="min", patience=0, threshold=0.0, cooldown=0, best=1.0).progress()
            {'best': 1.0, 'waited': 0, 'cooling': 0}
        """
        return {"best": self.best, "waited": self.waited, "cooling": self.cooling}

    def _better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        if self.mode == "min":
            return value < self.best * (1 - self.threshold)
        return value > self.best * (1 + self.threshold)
