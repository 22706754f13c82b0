"""How long a fit trains until a metric has reached a target."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.validated_metric import validated_metric
from lightning_tuning.functional.metric_mode import MetricMode, sign_of


class TimeToTarget(Callback):
    """Takes the time of training alone, and ends the fit at a target.

    Args:
        monitor: The metric, as the module logs it in validation.
        mode: Which values are better.
        target: The value to reach.

    Attributes:
        seconds: Until then, without validation; None where it was not reached.
    """

    def __init__(self, monitor: str, mode: MetricMode, target: float) -> None:
        self._monitor, self._sign = monitor, sign_of(mode)
        self._target = target
        self._spent = 0.0
        self._begun = 0.0
        self.seconds: float | None = None
        self._best = math.inf

    @property
    def best(self) -> float:
        """The best value of the metric."""
        return self._sign * self._best

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock, with the loading of the first batch left out."""
        if not self._begun:
            self._begun = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock; what a device still does is waited for."""
        if self._begun:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._spent += time.perf_counter() - self._begun
            self._begun = 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether the target is reached."""
        if trainer.sanity_checking:
            return
        value = self._sign * validated_metric(trainer, self._monitor, name="batch_sizes(monitor)")
        self._best = min(self._best, value)
        if value <= self._sign * self._target:
            self.seconds, trainer.should_stop = self._spent, True
