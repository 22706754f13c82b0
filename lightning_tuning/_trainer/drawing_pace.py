"""How often a monitor may draw during a fit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

_SHARE = 0.002
"""Three monitors draw, and all that they do is to stay below a fiftieth of the time."""
_EXPECTED = 0.5
"""Seconds that the first figure takes, as long as nobody knows better."""


class DrawingPace:
    """Lets figures be drawn while those of one monitor take 0.2 % of the time at most.

    Args:
        clock: Gives seconds.

    Example:
        >>> now = [0.0]
        >>> pace = DrawingPace(clock=lambda: now[0])
        >>> pace.allows()
        False
        >>> now[0] = 300.0
        >>> pace.allows()
        True
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._spent = 0.0
        self._latest = _EXPECTED

    def allows(self) -> bool:
        """Whether there is time for one figure more, as long as the latest one took."""
        return self._spent + self._latest <= _SHARE * (self._clock() - self._start)

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of what is drawn inside."""
        begun = self._clock()
        yield
        self._latest = self._clock() - begun
        self._spent += self._latest
