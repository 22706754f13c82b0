"""Whether a fit goes badly, by its training losses alone: the gate of rules about statistics."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from lightning_tuning.functional.progress import progress

_FEWEST = 20
_STUCK = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitState:
    """How the loss of a fit went.

    Attributes:
        known: Whether the losses tell; where not, ``why`` says it.
        why: The reason.
        fell: Share of the first loss that is gone at the end.
        late: The same from the end of the first tenth of the fit.
        start: First loss over that after a tenth of the fit.
        first: The first loss.
        last: The last loss, both medians of some steps.
    """

    known: bool
    why: str = ""
    fell: float = math.nan
    late: float = math.nan
    start: float = math.nan
    first: float = math.nan
    last: float = math.nan

    @property
    def stuck(self) -> bool:
        """Whether next to nothing of the loss is gone."""
        return self.known and self.fell < _STUCK

    @property
    def flat(self) -> bool:
        """Whether nothing more is learnt after the first tenth."""
        return self.known and self.late < _STUCK

    @property
    def diverged(self) -> bool:
        """Whether the loss is not finite at the end."""
        return self.known and self.fell == -math.inf


def fit_state(losses: Sequence[float], *, comparable: bool = True) -> FitState:
    """Judge the losses of a fit.

    Args:
        losses: Of each optimizer step.
        comparable: Whether a loss that falls means that the fit goes well; not so where several
            optimizers work against each other.

    Example:
        >>> fit_state([2.3] * 50).stuck, fit_state([2.3 * 0.9**k for k in range(50)]).stuck
        (True, False)
    """
    count = len(losses)
    if not comparable:
        return FitState(known=False, why="several optimizers share the fit")
    if count < _FEWEST:
        return FitState(known=False, why=f"only {count} losses are known")
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite or min(finite) <= 0:
        return FitState(known=False, why="the loss is not a positive number")
    if not math.isfinite(losses[-1]):
        return FitState(known=True, fell=-math.inf, late=-math.inf, first=losses[0])
    first = statistics.median(losses[: max(1, min(5, count // 10))])
    last = statistics.median(losses[-max(5, count // 10) :])
    early = statistics.median(losses[count // 10 : count // 10 + max(5, count // 10)])
    return FitState(
        known=True,
        fell=progress(first, last),
        late=progress(early, last),
        start=first / early if early > 0 else math.nan,
        first=first,
        last=last,
    )
