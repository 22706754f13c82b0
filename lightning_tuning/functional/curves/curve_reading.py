"""Levels, trends and steadiness of the curves of a fit, which all rules share."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.typing import NDArray

from lightning_tuning.functional.curves.curve_noise import (
    Array,
    binned,
    mean_interval,
    noise,
    slope_interval,
    wander,
)
from lightning_tuning.functional.curves.loss_curves import Curve, Curves

_BINS = 20
_PRETRAINED = 0.7
_LIVE_RATE = 0.3
_GOOD_METRIC = 0.8
_FAR_ABOVE = 1.5
_UNLEARNT = 0.98


@dataclasses.dataclass(frozen=True)
class Reading:
    """What can be read off the curves of a fit, each number when it is asked for.

    Attributes:
        curves: The curves.
    """

    curves: Curves

    @functools.cached_property
    def losses(self) -> Array:
        """The training loss."""
        return np.asarray(self.curves.train.values, float)

    @functools.cached_property
    def rates(self) -> Array:
        """The learning rates."""
        return np.asarray(self.curves.rates, float)

    @functools.cached_property
    def smooth(self) -> Array:
        """The training loss as means over twentieths of the fit."""
        return binned(self.losses, _BINS)[1]

    @functools.cached_property
    def start(self) -> float:
        """The loss of the untrained program: of the first batch, or three of few examples."""
        few = self.curves.batch_size is not None and self.curves.batch_size < 8
        if few or self.curves.first is None:
            return float(np.median(self.losses[: 3 if few else 1]))
        return self.curves.first

    @functools.cached_property
    def early_top(self) -> float:
        """The highest level in the first third of the fit, above five points of it at least."""
        third = self.losses[: max(5, len(self.losses) // 3)]
        windows = np.lib.stride_tricks.sliding_window_view(third, 5)
        return float(np.median(windows, axis=1).max())

    @functools.cached_property
    def tail(self) -> Array:
        """The last tenth of the training loss, ten points at least."""
        return self.losses[-max(10, len(self.losses) // 10) :]

    @functools.cached_property
    def end(self) -> float:
        """Mean loss of the last tenth."""
        return float(self.tail.mean())

    @functools.cached_property
    def end_interval(self) -> tuple[float, float]:
        """Between what that mean lies, by its noise."""
        return mean_interval(self.tail)

    @functools.cached_property
    def reference(self) -> float:
        """The loss at which learning begins: chance, or else the start."""
        chance = self.curves.chance
        return self.start if chance is None or self.pretrained else chance

    @property
    def pretrained(self) -> bool:
        """Whether the program knew much at the start already."""
        chance = self.curves.chance
        if chance is None or self.start >= _PRETRAINED * chance:
            return False
        # a single batch may have a small loss by luck
        return self.start + 2 * noise(self.losses[:20]) < chance

    @functools.cached_property
    def lowest(self) -> float:
        """The lowest smoothed loss."""
        return float(self.smooth.min())

    @functools.cached_property
    def gain(self) -> float:
        """How far the loss fell from its reference to its lowest level; 0 at least."""
        return max(self.reference - self.lowest, 0.0)

    @functools.cached_property
    def noise(self) -> float:
        """Standard deviation of single points about their neighbours, in the latter half."""
        return noise(self.losses[len(self.losses) // 2 :])

    @functools.cached_property
    def progress(self) -> float | None:
        """Share of the reference that is gone at the end; None where the floor is not known."""
        if not len(self.losses) or self.losses.min() < 0 or not self.reference > 0:
            return None
        return (self.reference - self.end) / self.reference

    # ------------------------------------------------------------------------------ validation

    @functools.cached_property
    def val(self) -> Array:
        """The validation loss; empty without one."""
        return np.asarray(self.curves.val.values if self.curves.val else (), float)

    @functools.cached_property
    def val_end(self) -> float:
        """The validation loss at the end, the median of the last fifth of the validations."""
        return float(np.median(self.val[-max(1, len(self.val) // 5) :]))

    @functools.cached_property
    def val_progress(self) -> float | None:
        """Share of the reference that validation is below at the end; None where not comparable."""
        comparable = self.curves.alike and len(self.val) > 0 and self.progress is not None
        return (self.reference - self.val_end) / self.reference if comparable else None

    @functools.cached_property
    def val_never_learns(self) -> bool:
        """Whether no validation was better than a predictor that knows nothing."""
        chance = self.curves.chance
        if chance is None or self.val_progress is None or len(self.val) < 3 or self.pretrained:
            return False
        flat = self.val_end > _UNLEARNT * float(self.val[0])
        never = float(self.val.min()) > _UNLEARNT * chance
        return never and flat and not any(_has_gained(m) for m in self.curves.metrics)

    @property
    def metric_is_good(self) -> bool:
        """Whether a metric between 0 and 1 says that the fit went well.

        No metric speaks for a training loss that ends far above where it began.
        """
        chance = self.curves.chance
        third = self.losses[-max(10, len(self.losses) // 3) :]
        if chance is not None and np.median(third) > _FAR_ABOVE * max(self.start, chance):
            return False
        return any(_is_good(metric) for metric in self.curves.metrics)

    def bad(self, share: float) -> bool:
        """Whether the fit is known to have learnt less than a share of what there is to learn."""
        known = [p for p in (self.progress, self.val_progress) if p is not None]
        if self.progress is None or self.metric_is_good or self.pretrained:
            return False
        return max(known) < share

    # ------------------------------------------------------------------------------ steadiness

    @functools.cached_property
    def live(self) -> NDArray[np.intp]:
        """Places after the first third of the fit with a learning rate near its largest."""
        third = len(self.losses) // 3
        peak = self.rates.max() if len(self.rates) else 0.0
        places = np.arange(len(self.losses))
        near = self.rates >= _LIVE_RATE * peak if len(self.rates) else np.ones(len(places), bool)
        return places[(places >= third) & near]

    @functools.cached_property
    def train_wander(self) -> float:
        """How far twentieths of the live stretch stray from a line, beyond the noise of batches."""
        values = self.losses[self.live]
        if len(values) < 40:
            return 0.0
        # single spikes are not a wandering level
        values = np.minimum(values, np.quantile(values, 0.97))
        size = len(values) / _BINS
        of_level, of_batches = wander(binned(values, _BINS)[1]) ** 2, noise(values) ** 2 / size
        # the variance of twenty values is known to a third: twice the batches' share may be theirs
        return float(np.sqrt(of_level - of_batches)) if of_level > 2 * of_batches else 0.0

    @functools.cached_property
    def live_val(self) -> Array:
        """The validation losses in the live stretch."""
        if not self.curves.val or not len(self.live):
            return np.zeros(0)
        steps = np.asarray(self.curves.val.steps)
        first, last = (self.curves.train.steps[self.live[i]] for i in (0, -1))
        return np.asarray(self.val[(steps >= first) & (steps <= last + self.curves.width)], float)

    @functools.cached_property
    def val_wander(self) -> float | None:
        """How far single validations stray from their neighbours in the live stretch."""
        return wander(self.live_val) if len(self.live_val) >= 6 else None

    def falls(self, values: Array) -> tuple[float, float]:
        """Between what the fall of a stretch lies, positive where it falls."""
        low, high = slope_interval(values)
        return -high, -low


def _has_gained(metric: Curve) -> bool:
    values = metric.values
    if not metric.higher_is_better or not values or not 0 <= min(values) <= max(values) <= 1:
        return False
    return values[-1] >= _GOOD_METRIC or max(values) > values[0] + 0.1


def _is_good(metric: Curve) -> bool:
    values = metric.values
    if not metric.higher_is_better or not values or not 0 <= min(values) <= max(values) <= 1:
        return False
    return values[-1] >= _GOOD_METRIC
