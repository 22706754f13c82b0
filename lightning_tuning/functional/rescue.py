"""Whether a training without the suspected fault is so much better that this was the fault."""

from __future__ import annotations

import dataclasses
import math

from lightning_tuning.functional.progress import progress

_BADLY = 0.1
_WELL = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a short training of the program as it is came to.

    Attributes:
        before: Mean loss over a few batches at the start.
        after: The same at the end.
        chance: Loss at chance, where it is known.
        well: Share of the loss beyond which no cure is looked for.

    Example:
        >>> trained = Trained(before=2.4, after=2.3, chance=2.28)
        >>> trained.may_be_cured, trained.cured_by(1.2), trained.cured_by(2.0)
        (True, True, False)
    """

    before: float
    after: float
    chance: float | None = None
    well: float = _WELL

    @property
    def learnt(self) -> float:
        """The share of the loss that was learnt."""
        return progress(self.before, self.after, chance=self.chance)

    @property
    def stands_still(self) -> bool:
        """Whether it learnt next to nothing."""
        return self.learnt < _BADLY

    @property
    def may_be_cured(self) -> bool:
        """Whether it trained so badly that another run is worth its time."""
        return self.learnt < self.well

    def cured_by(self, rescued: float | None) -> bool:
        """Whether another run ended so much lower that what it changed was the fault.

        A program that learnt next to nothing (less than 0.1) must lose a quarter of its lowest
        loss, chance included; one that ended far above its start or chance, a seventh. The better
        it trained, the more must be won: six tenths where it learnt 0.6, beyond which most programs
        train well.

        Args:
            rescued: Mean loss at the end of the other run; None where there was none.
        """
        if rescued is None or not math.isfinite(rescued) or not self.may_be_cured:
            return False
        known = (self.before, math.inf if self.chance is None else self.chance)
        start = min((loss for loss in known if math.isfinite(loss)), default=math.inf)
        if not self.after < start + 0.5 * abs(start):
            return rescued < start - abs(start) / 7
        lowest = min(start, self.after)
        gain = 0.25 + 0.35 * max(self.learnt - _BADLY, 0.0) / (_WELL - _BADLY)
        return rescued < lowest - gain * abs(lowest)
