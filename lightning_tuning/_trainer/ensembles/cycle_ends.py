"""When a schedule callback of the trainer has come to the end of a cycle."""

from __future__ import annotations

import bisect
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_tuning._trainer.schedule_start import callbacks_of


class CycleEnds:
    """Tells once for each end of a cycle that it is there.

    Callbacks don't import each other: a schedule is known by the shape of its ``result``.

    Args:
        trainer: The trainer.
        name: The callback that asks, for the error.

    Raises:
        MisconfigurationException: No callback of the trainer has a schedule.
    """

    def __init__(self, trainer: Trainer, name: str) -> None:
        schedules = [c for c in callbacks_of(trainer) if hasattr(c, "start_schedule")]
        if not schedules:
            raise MisconfigurationException(
                f"{name}(collect='cycles') needs a schedule with cycles among the callbacks:"
                " CyclicalLR, or WarmupDecay(cycles=...)"
            )
        self._schedule: Any = schedules[0]
        self._seen: int | None = None
        self._known: object = None
        self._ends: tuple[int, ...] = ()

    def reached(self) -> bool:
        """Whether one more cycle has ended since the last call."""
        schedule = self._schedule.result
        if schedule is None:
            return False
        if schedule is not self._known:
            # it is asked after every batch
            self._known, self._ends = schedule, schedule.cycle_ends
        steps: int = max(self._schedule.state_dict()["steps"])
        over = bisect.bisect_right(self._ends, steps)
        # at the first call in a resumed fit, the ends before it are over
        before = over - (steps in self._ends) if self._seen is None else self._seen
        self._seen = over
        return over > before
