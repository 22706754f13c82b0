"""What a check found out, in one shape for the console, TensorBoard and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

Verdict = Literal["pass", "warn", "fail", "skip"]
Scalar = str | int | float | bool | None

CODES: frozenset[str] = frozenset(
    {
        # the learning-rate range test
        "lr_suggested",
        "lr_not_applied",
        "lr_at_sweep_border",
        "lr_curve_flat",
        "lr_curve_too_short",
        "lr_curve_not_measured",
        "lr_nothing_learned",
        "non_finite",
        # schedules
        "schedule_resolved",
        "schedule_replaced",
        "schedule_length_changed",
        # the average of the weights
        "ema_half_life",
        "ema_not_started",
        "ema_started_from_weights",
        "ema_not_judging",
        "ema_not_both",
        "batch_norm_recalibrated",
        # ensembles
        "ensemble_judged",
        "ensemble_no_gain",
        # the search
        "search_winner",
        "search_tie",
        "search_passed_better",
        "best_at_border",
        "search_trials_failed",
        # losses and outputs
        "initial_loss",
        "loss_not_at_chance",
        "regularization_not_felt",
        "softmax_before_ce",
        "sigmoid_before_bce_logits",
        "single_logit_softmax",
        "loss_sign_flipped",
        "loss_reduction_sum",
        "loss_detached",
        "broadcast_mismatch",
        "dims_scrambled",
        "output_range_mismatch",
        "metric_wrong",
        "wrong_num_classes",
        # modes and steps
        "missing_zero_grad",
        "accumulation_unscaled",
        "eval_mode_in_training",
        "train_mode_in_validation",
        "step_raised",
        # data
        "constant_input",
        "unnormalized_input",
        "nan_in_data",
        "train_val_mismatch",
        "class_imbalance",
        "unshuffled_data",
        "future_leakage",
        "batch_leakage",
        "input_ignored",
        # settings
        "lr_too_high",
        "lr_too_low",
        "momentum_too_high",
        "clip_too_small",
        "update_ratio_low",
        "update_ratio_high",
        "weight_decay_too_high",
        "dropout_too_high",
        # parameters and gradients
        "zero_init",
        "bad_init_scale",
        "saturated_activations",
        "dead_relu",
        "vanishing_gradients",
        "exploding_gradients",
        "frozen_params",
        "params_not_in_optimizer",
        "no_grad_flow",
        "weights_not_updating",
        "noisy_filters",
        "missing_nonlinearity",
        "wrong_gradient",
        "gradient_checked",
        "gradient_not_checked",
        # a tiny batch
        "batch_overfitted",
        "cannot_overfit_batch",
        "overfit_not_judged",
        # the curves of a fit
        "loss_diverging",
        "loss_oscillation",
        "loss_spikes",
        "batch_noise",
        "lr_decayed_too_fast",
        "no_learning",
        "underfitting",
        "overfitting",
        "metric_apart_from_loss",
    }
)
"""Every code a finding may carry, one spelling each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One answer of one check.

    Attributes:
        check: The check that speaks, such as ``"lr_range_test"``.
        code: What it found, one of :data:`CODES`.
        verdict: ``"pass"``, ``"warn"``, ``"fail"``, or ``"skip"`` (could not check, because ...).
        message: One sentence with the numbers.
        evidence: The numbers themselves, as flat JSON scalars.
        hint: One next action.
        where: Path of the parameter or layer, if there is one.
        step: The trainer's ``global_step`` when it was found; of monitors the step on the axis
            of ``self.log``, which several optimizers don't stretch.

    Raises:
        ValueError: The code is not in :data:`CODES`, or the verdict is not one of the four.

    Example:
        >>> finding = Finding(
        ...     check="lr_range_test", code="lr_curve_flat", verdict="skip", message="Flat loss."
        ... )
        >>> finding.verdict
        'skip'
    """

    check: str
    code: str
    verdict: Verdict
    message: str
    evidence: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    hint: str = ""
    where: str = ""
    step: int = 0

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"code={self.code!r} is not a known code; add it to findings.CODES")
        if self.verdict not in ("pass", "warn", "fail", "skip"):
            raise ValueError(f"verdict={self.verdict!r} must be 'pass', 'warn', 'fail' or 'skip'")

    def to_dict(self) -> dict[str, Scalar | dict[str, Scalar]]:
        """Return the finding as plain values for JSON; a number that is not finite becomes None.

        Example:
            >>> Finding(check="a", code="non_finite", verdict="fail", message="m").to_dict()["code"]
            'non_finite'
        """
        evidence = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self.evidence.items()
        }
        return {**dataclasses.asdict(self), "evidence": evidence}


class ChecksFailedError(RuntimeError):
    """Checks found something wrong, and were told to stop the fit.

    Attributes:
        findings: All that failed.

    Example:
        >>> finding = Finding(check="a", code="zero_init", verdict="fail", message="All are zero.")
        >>> ChecksFailedError([finding]).findings == (finding,)
        True
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        lines = [
            f"{f.check}: {f.code} {f.where}".rstrip() + f": {f.message} {f.hint}" for f in findings
        ]
        count = "One check" if len(lines) == 1 else f"{len(lines)} checks"
        super().__init__("\n- ".join([f"{count} failed:", *lines]))
        self.findings = tuple(findings)
