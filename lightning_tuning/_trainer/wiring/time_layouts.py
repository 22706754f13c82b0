"""Where examples and time lie in what a loss compares."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.examples import Examples
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_mode import Mode
from lightning_tuning._trainer.wiring.fixed_statistics import fixed_statistics
from lightning_tuning._trainer.wiring.observed import Observed, observe

_SHORTEST = 3


class TimeLayout(NamedTuple):
    """How a loss's comparisons are arranged: their shape with examples and time apart."""

    shape: tuple[int, ...]
    time_dim: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SequenceTrial:
    """A batch of sequences, and what the program did with it.

    Attributes:
        probe: Runs it.
        examples: The batch.
        mode: How it is run.
        base: What the program did.
    """

    probe: Probe
    examples: Examples
    mode: Mode
    base: Observed

    def observe(self, batch: ProbeBatch, *, mode: Mode | None = None, seed: int = 1) -> Observed:
        """Run the program on a changed batch; normalisation takes nothing from other times."""
        return observe(
            self.probe,
            batch,
            mode=mode or self.mode,
            seed=seed,
            watch=[fixed_statistics(over_time=True)],
        )


def time_layouts(setting: SequenceTrial, number: int) -> list[TimeLayout]:
    """Return how the comparisons of a loss may be arranged; more than one where unclear."""
    size = setting.examples.size
    base = setting.base.comparisons[number]
    same = base.reached(base)
    if same is None or base.pairs_up(size):
        return []
    shape = tuple(same[0].shape)
    if not shape:
        return []
    if size not in shape[:2] and shape[0] % size == 0:
        length = shape[0] // size
        example_first = _example_first(setting, number, length)
        if example_first is None:
            return []
        shape = (*((size, length) if example_first else (length, size)), *shape[1:])
    if size not in shape:
        return []
    own = shape.index(size)
    return [
        TimeLayout(shape, dim)
        for dim, count in enumerate(shape)
        if dim != own and count >= _SHORTEST
    ]


def _example_first(setting: SequenceTrial, number: int, length: int) -> bool | None:
    """Return whether a flat list of comparisons goes example by example; None if unknown."""
    if length < 2:
        return None
    size = setting.examples.size
    batch = setting.examples.replaced(1)
    if batch is None:
        return None
    changed = setting.observe(batch)
    if not setting.base.same_course(changed):
        return None
    reached = setting.base.comparisons[number].reached(changed.comparisons[number])
    if reached is None or not reached[1].any():
        return None
    at = reached[1].reshape(reached[1].size(0), -1).any(1).nonzero().flatten()
    if bool((at // length == 1).all()):
        return True
    return False if bool((at % size == 1).all()) else None
