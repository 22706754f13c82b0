"""The gradient check as a callback."""

from __future__ import annotations

from typing import get_args

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.gradient.gradient_measurement import (
    GradientSettings,
    measure_gradients,
)
from lightning_tuning._trainer.verdict import OnFail, reason_to_skip, settle
from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks
from lightning_tuning.functional.gradient.gradient_check import GradientCheckResult
from lightning_tuning.functional.gradient.gradient_findings import said, skipped


class GradientCheck(Callback):
    """Compares the gradients of a training program with differences of its loss, before a fit.

    After a few training steps, ``training_step`` is called in float64 on two or three examples with
    a few entries of each parameter tensor moved a little to both sides, random numbers held fixed.
    Each hand-written ``torch.autograd.Function`` of the program is compared with its own forward
    too. A Function whose backward is not the derivative of its forward, and is not meant otherwise
    (straight-through, gradient reversal), is wrong; the parameters behind it are named. Everything
    is put back bit for bit. Skipped on resume and under ``fast_dev_run``.

    Args:
        num_entries: Entries of each parameter tensor that are compared.
        eps: Step of the differences, in units of the tensor's root mean square.
        num_samples: Examples of the batch that the loss is computed on.
        burn_in_steps: Optimizer steps before the check; they are taken back.
        on_fail: ``"warn"``, or ``"raise"`` to end the fit where a gradient is wrong.

    Raises:
        ValueError: An argument is out of its range.

    Attributes:
        result: A :class:`~lightning_tuning.GradientCheckResult`; None before a fit, and where
            nothing could be checked.
        findings: What there is to say about it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> check = GradientCheck(on_fail="raise")
        >>> trainer = Trainer(callbacks=[check], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        num_entries: int = 16,
        *,
        eps: float = 1e-5,
        num_samples: int = 3,
        burn_in_steps: int = 10,
        on_fail: OnFail = "warn",
    ) -> None:
        checks.at_least("num_entries", num_entries, 1)
        checks.positive("eps", eps)
        checks.at_least("num_samples", num_samples, 1)
        checks.at_least("burn_in_steps", burn_in_steps, 0)
        checks.choice("on_fail", on_fail, get_args(OnFail))
        self.num_entries = num_entries
        self.eps = eps
        self.num_samples = num_samples
        self.burn_in_steps = burn_in_steps
        self.on_fail: OnFail = on_fail
        self.result: GradientCheckResult | None = None
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
            settings = GradientSettings(
                num_entries=self.num_entries,
                eps=self.eps,
                num_samples=self.num_samples,
                burn_in_steps=self.burn_in_steps,
            )
            try:
                self.result = measure_gradients(trainer, pl_module, settings)
            except CannotProbeError as error:
                reason = str(error)
        return (skipped(str(reason)),) if self.result is None else said(self.result)
