"""Whether training starts with the loss of a predictor that knows nothing."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.initial_loss import measure_initial_loss
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.verdict import OnFail, reason_to_skip, settle
from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks
from lightning_tuning.functional.initial_loss import InitialLossResult
from lightning_tuning.functional.initial_loss_findings import said, skipped


class InitialLossCheck(Callback):
    """Compares the loss before the first step with that of a predictor that knows nothing.

    The loss functions that ``training_step`` calls are seen with their real outputs, targets and
    options, and called again with constant outputs: all classes equally likely (cross-entropy
    gives ln C), and the best constant predictor, which knows how often each target occurs. The
    initial loss should lie at one of them, or between. Dropout is off; nothing is left behind. It
    is skipped on resume and under ``fast_dev_run``.

    A loss far above is a warning only where a short training does not get below chance either; one
    far below is no verdict but a question, since weights may have been trained before.

    Args:
        expected: The loss to expect, where the loss functions don't tell it; then a loss that lies
            elsewhere fails.
        num_batches: Batches to average over.
        rtol: Relative tolerance, beyond three standard errors of the mean.
        regularization: Name of the attribute that holds the strength of a regularization term in
            the loss, such as ``"hparams.weight_penalty"``; the loss must rise as it rises.
        on_fail: ``"warn"`` only tells; ``"raise"`` stops the fit with a
            :class:`~lightning_tuning.ChecksFailedError`.

    Raises:
        ValueError: An argument is out of its range.

    Attributes:
        result: An :class:`~lightning_tuning.InitialLossResult`, or None before the first fit.
        findings: What there is to say about it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[InitialLossCheck()], logger=False, enable_checkpointing=False
        ... )
    """

    def __init__(
        self,
        expected: float | None = None,
        *,
        num_batches: int = 8,
        rtol: float = 0.5,
        regularization: str | None = None,
        on_fail: OnFail = "warn",
    ) -> None:
        if expected is not None and not (checks.is_number(expected) and math.isfinite(expected)):
            raise ValueError(f"expected={expected!r} must be a finite number")
        checks.at_least("num_batches", num_batches, 1)
        checks.positive("rtol", rtol)
        checks.choice("on_fail", on_fail, ("warn", "raise"))
        self.expected = expected
        self.num_batches = num_batches
        self.rtol = rtol
        self.regularization = regularization
        self.on_fail: OnFail = on_fail
        self.result: InitialLossResult | None = None
        self.findings: tuple[Finding, ...] = ()

    def checked_before_fit(self) -> bool:
        """Tells checks from other callbacks."""
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before."""
        if stage == "fit":
            self.result, self.findings = None, ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check; all states are restored and data are set up at this moment."""
        settle(trainer, self, self.examine(trainer, pl_module))

    def examine(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Finding, ...]:
        """Return what there is to say of a program in ``on_train_start``; nothing is shown."""
        reason = reason_to_skip(trainer)
        if reason is None:
            try:
                with Probe(trainer, pl_module) as probe:
                    self.result = measure_initial_loss(
                        probe,
                        expected=self.expected,
                        num_batches=self.num_batches,
                        rtol=self.rtol,
                        regularization=self.regularization,
                    )
            except CannotProbeError as error:
                reason = str(error)
        return (skipped(str(reason)),) if self.result is None else said(self.result)
