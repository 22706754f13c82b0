"""The callbacks that we would begin with."""

from __future__ import annotations

from lightning.pytorch import Callback

from lightning_tuning.callbacks.activation_monitor import ActivationMonitor
from lightning_tuning.callbacks.ema import EMAWeights
from lightning_tuning.callbacks.filter_monitor import FilterMonitor
from lightning_tuning.callbacks.gradient_check import GradientCheck
from lightning_tuning.callbacks.initial_loss_check import InitialLossCheck
from lightning_tuning.callbacks.loss_curve_diagnosis import LossCurveDiagnosis
from lightning_tuning.callbacks.lr_range_test import LRRangeTest
from lightning_tuning.callbacks.one_cycle import OneCycle
from lightning_tuning.callbacks.overfit_batch_check import OverfitBatchCheck
from lightning_tuning.callbacks.update_ratio_monitor import UpdateRatioMonitor
from lightning_tuning.callbacks.wiring_check import WiringCheck


def recipe(
    *,
    checks: bool = False,
    lr_range_test: bool = True,
    one_cycle: bool = True,
    ema: bool = True,
    update_ratio_monitor: bool = True,
    activation_monitor: bool = True,
    filter_monitor: bool = True,
    loss_curve_diagnosis: bool = True,
) -> list[Callback]:
    """Return the recommended callbacks at their defaults, as a list to edit.

    Args:
        checks: The four checks before the fit; :func:`~lightning_tuning.preflight` does the same
            once, without a fit.
        lr_range_test: :class:`~lightning_tuning.LRRangeTest`, which sets the learning rate.
        one_cycle: :class:`~lightning_tuning.OneCycle`, with that rate as its peak. Leave it out
            where the module returns a scheduler of its own.
        ema: :class:`~lightning_tuning.EMAWeights`.
        update_ratio_monitor: :class:`~lightning_tuning.UpdateRatioMonitor`.
        activation_monitor: :class:`~lightning_tuning.ActivationMonitor`.
        filter_monitor: :class:`~lightning_tuning.FilterMonitor`.
        loss_curve_diagnosis: :class:`~lightning_tuning.LossCurveDiagnosis`.

    Returns:
        A new list of new callbacks, for ``Trainer(callbacks=...)``.

    Example:
        >>> [type(callback).__name__ for callback in recipe(ema=False, filter_monitor=False)][:2]
        ['LRRangeTest', 'OneCycle']
    """
    makers: list[tuple[bool, type[Callback]]] = [
        (checks, WiringCheck),
        (checks, InitialLossCheck),
        (checks, OverfitBatchCheck),
        (checks, GradientCheck),
        (lr_range_test, LRRangeTest),
        (one_cycle, OneCycle),
        (ema, EMAWeights),
        (update_ratio_monitor, UpdateRatioMonitor),
        (activation_monitor, ActivationMonitor),
        (filter_monitor, FilterMonitor),
        (loss_curve_diagnosis, LossCurveDiagnosis),
    ]
    return [make() for wanted, make in makers if wanted]
