"""The craft of training neural networks, as drop-in PyTorch Lightning callbacks."""

from lightning_tuning.callbacks.activation_monitor import ActivationMonitor
from lightning_tuning.callbacks.checkpoint_ensemble import CheckpointEnsemble
from lightning_tuning.callbacks.cyclical_lr import CyclicalLR
from lightning_tuning.callbacks.ema import EMAWeights
from lightning_tuning.callbacks.filter_monitor import FilterMonitor
from lightning_tuning.callbacks.gradient_check import GradientCheck
from lightning_tuning.callbacks.initial_loss_check import InitialLossCheck
from lightning_tuning.callbacks.loss_curve_diagnosis import LossCurveDiagnosis
from lightning_tuning.callbacks.lr_range_test import LRRangeTest, lr_range_test
from lightning_tuning.callbacks.one_cycle import OneCycle
from lightning_tuning.callbacks.overfit_batch_check import OverfitBatchCheck
from lightning_tuning.callbacks.update_ratio_monitor import UpdateRatioMonitor
from lightning_tuning.callbacks.warmup_decay import WarmupDecay
from lightning_tuning.callbacks.wiring_check import WiringCheck
from lightning_tuning.ensembles.ensemble_module import EnsembleModule
from lightning_tuning.ensembles.soup import Soup, soup
from lightning_tuning.findings import ChecksFailedError, Finding
from lightning_tuning.functional.activations.activation_result import ActivationResult
from lightning_tuning.functional.checkpoint_weights import checkpoint_weights
from lightning_tuning.functional.curves.loss_curves import LossCurveResult
from lightning_tuning.functional.ema import ema_decay
from lightning_tuning.functional.ensembles.ensemble_result import EnsembleMember, EnsembleResult
from lightning_tuning.functional.filters.filter_result import FilterResult
from lightning_tuning.functional.gradient.gradient_check import GradientCheckResult
from lightning_tuning.functional.initial_loss import InitialLossResult
from lightning_tuning.functional.lr_range_test import LRRangeResult
from lightning_tuning.functional.overfit_batch import OverfitBatchResult
from lightning_tuning.functional.preflight import PreflightResult
from lightning_tuning.functional.run_report import RunReport, read_run
from lightning_tuning.functional.schedules.cyclical_lr import (
    CyclicalSchedule,
    cyclical_lr,
    cyclical_schedule,
)
from lightning_tuning.functional.schedules.one_cycle import (
    OneCycleSchedule,
    one_cycle,
    one_cycle_schedule,
)
from lightning_tuning.functional.schedules.warmup_decay import (
    WarmupDecaySchedule,
    warmup_decay_schedule,
)
from lightning_tuning.functional.symptoms import explain
from lightning_tuning.functional.update_ratio.update_ratio import UpdateRatioResult
from lightning_tuning.workflow.preflight import preflight
from lightning_tuning.workflow.recipe import recipe

__version__ = "0.1.0"

__all__ = [
    "ActivationMonitor",
    "ActivationResult",
    "CheckpointEnsemble",
    "ChecksFailedError",
    "CyclicalLR",
    "CyclicalSchedule",
    "EMAWeights",
    "EnsembleMember",
    "EnsembleModule",
    "EnsembleResult",
    "FilterMonitor",
    "FilterResult",
    "Finding",
    "GradientCheck",
    "GradientCheckResult",
    "InitialLossCheck",
    "InitialLossResult",
    "LRRangeResult",
    "LRRangeTest",
    "LossCurveDiagnosis",
    "LossCurveResult",
    "OneCycle",
    "OneCycleSchedule",
    "OverfitBatchCheck",
    "OverfitBatchResult",
    "PreflightResult",
    "RunReport",
    "Soup",
    "UpdateRatioMonitor",
    "UpdateRatioResult",
    "WarmupDecay",
    "WarmupDecaySchedule",
    "WiringCheck",
    "checkpoint_weights",
    "cyclical_lr",
    "cyclical_schedule",
    "ema_decay",
    "explain",
    "lr_range_test",
    "one_cycle",
    "one_cycle_schedule",
    "preflight",
    "read_run",
    "recipe",
    "soup",
    "warmup_decay_schedule",
]
