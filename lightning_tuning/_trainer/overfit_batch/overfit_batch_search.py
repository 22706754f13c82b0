"""Runs on one batch, over and over, at one learning rate after the other."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.learning_rates import GroupRates, rates_of
from lightning_tuning._trainer.overfit_batch.overfit_batch_data import TinyBatch, with_leaves
from lightning_tuning._trainer.overfit_batch.overfit_batch_inputs import Inputs
from lightning_tuning._trainer.overfit_batch.settings_changes import (
    DuringSteps,
    NoDropout,
    pinned,
    without_layer_dropout,
    without_weight_decay,
)
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning.functional.overfit_batch import OverfitRun, share_done, target_of
from lightning_tuning.functional.overfit_batch_findings import HARDLY

_NEAR = (10.0, 0.1)
_FAR = (100.0, 0.01, 1000.0, 0.001)
_FARTHER = (1e4, 1e5)
_SOME = 0.02
"""What is better at the highest rate, by so much, may be better still at a higher one."""
_LOOK_EVERY = 5
"""Losses stay on the device and are looked at from time to time."""
_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverfitSettings:
    """What was asked for; see ``OverfitBatchCheck`` for each."""

    num_samples: int
    max_steps: int
    target_loss: float | None
    lr: float | None


class Search:
    """Runs on one batch at several rates, until one reaches the target or time is over.

    Args:
        probe: An entered probe.
        batch: What to train on.
        settings: What was asked for.
        known: The loss at chance and the floor; None where they are not known.

    Attributes:
        target: The loss to reach; known after the first run at the latest.
    """

    def __init__(
        self,
        probe: Probe,
        batch: TinyBatch,
        settings: OverfitSettings,
        known: tuple[float | None, float | None],
    ) -> None:
        self._probe = probe
        self._batch = batch
        self._settings = settings
        self._known = known
        self._deadline = time.monotonic() + _SECONDS
        self.target = math.nan if settings.target_loss is None else settings.target_loss

    def at_all_rates(self, *, far: bool) -> list[OverfitRun]:
        """Return the runs; rates far from the person's own are tried only where told to."""
        runs = [self._run(1.0)]
        start = runs[0].losses[0] if runs[0].losses else math.nan
        if self._settings.target_loss is None:
            chance, floor = self._known
            self.target = target_of(start=start, chance=chance, floor=floor)
        for factor in (*_NEAR, *_FAR, *_FARTHER):
            best = min(runs, key=lambda run: run.reached)
            if best.reached <= self.target or self._over() or not math.isfinite(start):
                break
            if factor not in _NEAR and not (far and self._share(best, start) < HARDLY):
                break
            if factor in _FARTHER and not (
                best.factor * 10 == factor and self._share(best, start) > _SOME
            ):
                break
            lowest = min(runs, key=lambda run: run.factor)
            if factor < lowest.factor and lowest.unmoved:
                continue
            runs.append(self._run(factor))
        return runs

    def zeroed(self, best: OverfitRun, inputs: Inputs) -> OverfitRun | None:
        """Return the best run with zeros for inputs; None where the program takes none."""
        try:
            run = self._run(best.factor, max_steps=len(best.losses), zeroed=inputs.inputs)
        except StepError:  # zero is no length, for one
            return None
        return run if run.losses else None

    def _share(self, run: OverfitRun, start: float) -> float:
        chance, floor = self._known
        return share_done(run.reached, start=start, chance=chance, floor=floor)

    def _run(
        self, factor: float, *, max_steps: int | None = None, zeroed: Sequence[int] = ()
    ) -> OverfitRun:
        probe = self._probe
        probe.rewind()
        rates = _rates(probe)
        base = rates.rate if self._settings.lr is None else self._settings.lr
        scale = factor * base / rates.rate
        groups = [(g, rate * scale) for g, rate in zip(rates.groups, rates.base_rates, strict=True)]
        steps = self._settings.max_steps if max_steps is None else max_steps

        def same(data: Any) -> Any:
            _fix_randomness()
            data = apply_to_collection(data, Tensor, torch.clone)  # a step may write to it
            return with_leaves(data, torch.zeros_like, zeroed) if zeroed else data

        until = _Until(probe, -math.inf if zeroed else self._goal(), self._deadline)
        run = probe.run(
            steps,
            prepare=lambda: without_layer_dropout(probe.module),
            batches=self._batch.repeats,
            change=same,
            schedules=False,
            judged_by=self._batch.repeats[:1],
            watch=[DuringSteps(pinned(groups), without_weight_decay), NoDropout()],
            until=until,
        )
        return OverfitRun(
            rate=base * factor,
            factor=factor,
            losses=run.losses,
            whole=not until.late,
            zeroed=bool(zeroed),
            error=run.error,
        )

    def _goal(self) -> float:
        if not math.isnan(self.target):
            return self.target
        chance, floor = self._known
        # a start that is not yet known does not end a run
        return -math.inf if chance is None else target_of(start=chance, chance=chance, floor=floor)

    def _over(self) -> bool:
        return self._probe.trainer.world_size == 1 and time.monotonic() > self._deadline


class _Until:
    """Ends a run at its goal, at a loss that is no number, or when time is over."""

    def __init__(self, probe: Probe, goal: float, deadline: float) -> None:
        self._probe = probe
        self._goal = goal
        self._deadline = deadline
        self.late = False

    def __call__(self, step: int, loss: Tensor) -> bool:
        alone = self._probe.trainer.world_size == 1
        self.late = alone and time.monotonic() > self._deadline
        if self.late or (step + 1) % _LOOK_EVERY:
            return self.late
        if not alone:
            loss = self._probe.trainer.strategy.reduce(loss, reduce_op="mean")
        value = float(loss)
        return not math.isfinite(value) or value <= self._goal


def _rates(probe: Probe) -> GroupRates:
    try:
        return rates_of(probe.trainer, None)
    except MisconfigurationException as error:
        raise CannotProbeError("all learning rates are zero") from error


def _fix_randomness() -> None:
    """Give each step the same noise, masks and time steps."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
