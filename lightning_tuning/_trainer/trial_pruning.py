"""Reporting a trial's metric, and ending it early, on all ranks alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.validated_metric import validated_metric
from lightning_tuning.functional.metric_mode import MetricMode

_EVERY = 60.0
Ended = Literal["", "pruned", "diverged"]


class TrialPruning(Callback):
    """Reports a metric after each validation, and stops the fit where that is told to.

    A metric that is no finite number ends the trial: it has diverged.

    Args:
        monitor: The metric, as the module logs it.
        mode: Which values are better.
        report: Takes the metric and the epoch on rank zero; returns whether to stop.
        alive: Called on rank zero about once a minute of training.

    Attributes:
        ended: Why the fit was stopped; empty if it was not.
        curve: The metric after each validation.
    """

    def __init__(
        self,
        monitor: str,
        mode: MetricMode,
        report: Callable[[float, int], bool],
        alive: Callable[[], None],
    ) -> None:
        self._monitor = monitor
        self._mode = mode
        self._report = report
        self._alive = alive
        self._told = time.monotonic()
        self.ended: Ended = ""
        self.curve: list[float] = []

    @property
    def best(self) -> float | None:
        """The best value; None before the first, or where none was finite."""
        finite = [value for value in self.curve if math.isfinite(value)]
        if not finite:
            return None
        return min(finite) if self._mode == "min" else max(finite)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Give a sign of life: an epoch may take longer than others wait for one."""
        if trainer.is_global_zero and time.monotonic() - self._told > _EVERY:
            self._told = time.monotonic()
            self._alive()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report; rank zero decides for all."""
        if trainer.sanity_checking:
            return
        value = validated_metric(trainer, self._monitor, name="search(monitor=...)")
        self.curve.append(value)
        if not math.isfinite(value):
            self.ended = "diverged"
        else:
            stop = trainer.is_global_zero and self._report(value, trainer.current_epoch)
            self.ended = "pruned" if trainer.strategy.broadcast(stop) else ""
        if self.ended:
            trainer.should_stop = True
            # a smallest number of epochs is for fits that are to end well
            trainer.fit_loop.min_epochs = None
