"""Whether a schedule of the learning rate ever leaves its floor."""

from __future__ import annotations

import dataclasses

_MANY = 100
_CHANGES = 10
"""A schedule by epochs may well begin with an epoch at zero."""
_LOW = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleRise:
    """What schedulers alone do to the learning rates, from the start until one is near its base.

    Attributes:
        length: Steps of the fit; None where that is not known, or too short to mean anything.
        followed: Steps that were followed.
        zeros: How many steps from the start on have a rate of zero for all parameters.
        changes: How many times a scheduler was due during these.
        highest: The largest share of its base rate that a group has in the steps followed.
        last: The same in the last of them.
        unmoved: Whether real steps of the program were seen to change nothing.
    """

    length: int | None
    followed: int
    zeros: int
    changes: int
    highest: float
    last: float
    unmoved: bool

    @property
    def stays_zero(self) -> bool:
        """Whether the rate is zero for very long: in all of the fit, or most of it if it ends.

        Example:
            >>> rise = ScheduleRise(
            ...     length=1000, followed=1000, zeros=1000, changes=1000, highest=0.0, last=0.0,
            ...     unmoved=True,
            ... )
            >>> rise.stays_zero, dataclasses.replace(rise, zeros=1).stays_zero
            (True, False)
        """
        enough = self.zeros >= max(_MANY, (self.length or 0) // 2 + 1)
        return self.unmoved and enough and self.changes >= _CHANGES

    @property
    def never_ends(self) -> bool:
        """Whether the fit ends in the middle of a warm-up that has hardly begun.

        Rates that have fallen from their highest don't count, since a schedule may give absolute
        rates to an optimizer whose own rate is 1.
        """
        whole = self.length is not None and self.followed == self.length
        return whole and 0 < self.highest == self.last < _LOW

    def zero_in_words(self) -> str:
        """Tell for how long the rate is zero."""
        if self.length is not None and self.zeros >= self.length:
            return f"all {self.length} steps of the fit"
        more = " or more" if self.zeros >= self.followed else ""
        whole = "" if self.length is None else f" of {self.length}"
        return f"the first {self.zeros}{more}{whole} steps"
