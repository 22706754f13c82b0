"""Whether a schedule brings the learning rate to nothing as soon as a fit has begun."""

from __future__ import annotations

import dataclasses

GONE = 1e-3
"""The share of its highest value below which a rate is gone."""
_FEW_EPOCHS = 2
_MANY_EPOCHS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleFall:
    """What schedulers alone do to the learning rates over a fit.

    Attributes:
        length: Steps of the fit.
        epoch: Steps of an epoch.
        alive: Steps after which all rates are gone for good; as many as the fit has where one never
            is.
        last: The share of its highest value that the rate has in the last step.
    """

    length: int
    epoch: int
    alive: int
    last: float

    @property
    def too_fast(self) -> bool:
        """Whether rates are gone before all examples came twice, in a fit of many epochs.

        A schedule that was meant in epochs and is stepped at each batch does that.

        Example:
            >>> fall = ScheduleFall(length=1000, epoch=50, alive=30, last=1e-9)
            >>> fall.too_fast, dataclasses.replace(fall, alive=400).too_fast
            (True, False)
        """
        soon = 0 < self.alive <= _FEW_EPOCHS * self.epoch
        return soon and self.length >= _MANY_EPOCHS * self.epoch
