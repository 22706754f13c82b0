"""A short training of the program as it is, which tells whether it trains badly."""

from __future__ import annotations

import dataclasses
import time
import weakref

from torch import Tensor

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import Run, Step
from lightning_tuning.functional.chance_loss import chance_level
from lightning_tuning.functional.progress import progress

STEPS = 100
"""So many optimizer steps; a run to compare with takes as many."""
_SECONDS = 20.0
BADLY = 0.1
"""What learns less than this share of its loss learns next to nothing."""
_KNOWN: weakref.WeakKeyDictionary[object, OrdinaryRun] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrdinaryRun:
    """What a hundred steps of the program as it is have done.

    Attributes:
        run: Its losses.
        chance: The loss at chance; None where it is not known.
        progress: The share of the loss that was learnt, see
            :func:`~lightning_tuning.functional.progress.progress`.
        judgeable: Whether the loss tells how well the program trains; that of several optimizers
            does not.
    """

    run: Run
    chance: float | None
    progress: float
    judgeable: bool

    @property
    def trains_badly(self) -> bool:
        """Whether the program was seen to learn next to nothing."""
        return self.learns_less_than(BADLY)

    def learns_less_than(self, share: float) -> bool:
        """Whether the program was seen to learn less than a share of its loss."""
        return self.judgeable and self.progress < share


def ordinary_run(probe: Probe) -> OrdinaryRun:
    """Train the program as it is for a few steps; done once for all checks of a fit."""
    loader = probe.trainer.fit_loop._combined_loader
    known = _KNOWN.get(loader)
    if known is None:
        known = _KNOWN[loader] = _measured(probe)
    return known


def within_time(probe: Probe, seconds: float = _SECONDS) -> OutOfTime:
    """Return what ends a run of a slow program early, to be given as ``until``."""
    return OutOfTime(seconds if probe.trainer.world_size == 1 else float("inf"))


class OutOfTime:
    """Tells that a run has taken long enough.

    Args:
        seconds: From the first call on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._start: float | None = None

    def __call__(self, _step: int, _loss: Tensor) -> bool:
        """Whether the time is over."""
        if self._start is None:
            self._start = time.monotonic()
        return time.monotonic() - self._start > self._seconds


def _measured(probe: Probe) -> OrdinaryRun:
    probe.rewind()
    steps = [probe.step(batch, mode="silent") for batch in probe.batches(4)]
    run = probe.run(STEPS, until=within_time(probe))
    chance = _chance(steps)
    return OrdinaryRun(
        run=run,
        chance=chance,
        progress=progress(run.before, run.after, chance=chance),
        judgeable=len(probe.trainer.optimizers) == 1,
    )


def _chance(steps: list[Step]) -> float | None:
    """Return the loss at chance where one known loss function is all of the loss."""
    calls = [[call for call in step.calls if call.trained] for step in steps]
    if not all(
        len(of_step) == 1
        and step.loss is not None
        and of_step[0].value.numel() == 1
        and bool((step.loss - of_step[0].value).abs() <= 1e-4 * step.loss.abs())
        for step, of_step in zip(steps, calls, strict=True)
    ):
        return None
    if len({of_step[0].name for of_step in calls}) != 1:
        return None
    level = chance_level([of_step[0] for of_step in calls])
    if level is None:
        return None
    # a few batches of few classes know little of how frequent the classes are
    return max(level.low, level.uniform / 4)
