"""Can the program learn a tiny batch by heart? If not, is it a setting, or is it broken?"""

from __future__ import annotations

import dataclasses

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.custom_scalars import RIGHT
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.logger import log_result
from lightning_tuning._trainer.monitor_log import chart, log_curve
from lightning_tuning._trainer.overfit_batch import overfit_batch, settings_rescue
from lightning_tuning._trainer.overfit_batch.overfit_batch_search import OverfitSettings
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.verdict import OnFail, reason_to_skip, settle
from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks as arguments
from lightning_tuning.functional.overfit_batch import OverfitBatchResult
from lightning_tuning.functional.overfit_batch_findings import (
    OVERFIT_BATCH_CHECK,
    batch_overfitted,
    input_heeded,
    speak,
)
from lightning_tuning.functional.settings_findings import settings_findings


class OverfitBatchCheck(Callback):
    """Checks, before the first step, that the program can learn a tiny batch by heart.

    About twenty examples of the training data are put together as one batch, and the program trains
    on it over and over with dropout and weight decay off, by its own ``training_step``, loss and
    optimizer. The loss must come near the lowest that its targets allow. Where it does not at the
    program's learning rate, others are tried before the model is blamed. The same with zeros for
    inputs shows whether the inputs matter. A program that learns next to nothing in a hundred
    ordinary steps is also tried with one setting changed at a time, to tell which one spoils it.

    Everything is put back bit for bit. The curves go to the trainer's loggers and, with the
    findings, into its log folder. It is skipped on resume and under ``fast_dev_run``.

    Args:
        num_samples: Examples in the tiny batch.
        max_steps: Optimizer steps at each learning rate, at most.
        target_loss: The loss to reach; missing it is a failure. None takes 95 % of the way from
            the loss of the best constant output to the lowest loss that the targets allow.
        lr: The learning rate to begin with, that of the group with the largest one. None takes the
            optimizer's own.
        on_fail: ``"raise"`` ends the fit with an exception where a check failed.

    Raises:
        ValueError: An argument is out of its range.

    Attributes:
        result: An :class:`~lightning_tuning.OverfitBatchResult`; None where nothing was measured.
        findings: What there is to say about it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[OverfitBatchCheck()], logger=False, enable_checkpointing=False
        ... )
    """

    def __init__(
        self,
        num_samples: int = 20,
        *,
        max_steps: int = 300,
        target_loss: float | None = None,
        lr: float | None = None,
        on_fail: OnFail = "warn",
    ) -> None:
        arguments.at_least("num_samples", num_samples, 1)
        arguments.at_least("max_steps", max_steps, 1)
        if target_loss is not None and not arguments.is_number(target_loss):
            raise ValueError(f"target_loss={target_loss!r} must be a number")
        if lr is not None:
            arguments.positive("lr", lr)
        arguments.choice("on_fail", on_fail, ("warn", "raise"))
        self.num_samples = num_samples
        self.max_steps = max_steps
        self.target_loss = target_loss
        self.lr = lr
        self.on_fail: OnFail = on_fail
        self.result: OverfitBatchResult | None = None
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
        findings = self.examine(trainer, pl_module)
        if self.result is not None:
            self._show(trainer, self.result)
        settle(trainer, self, findings)

    def examine(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Finding, ...]:
        """Return what there is to say of a program in ``on_train_start``; nothing is shown."""
        reason = reason_to_skip(trainer)
        findings: tuple[Finding, ...] = ()
        if reason is None:
            try:
                with Probe(trainer, pl_module) as probe:
                    findings = self._measure(probe)
            except CannotProbeError as error:
                reason = str(error)
        if reason is not None:
            findings = speak("skip", "overfit_not_judged", f"Nothing was tried: {reason}.")
        return findings

    def _show(self, trainer: Trainer, result: OverfitBatchResult) -> None:
        log_result(trainer, OVERFIT_BATCH_CHECK, result)
        curve = {"overfit_batch/loss": result.best.losses}
        if result.zeroed is not None:
            curve["overfit_batch/loss_without_inputs"] = result.zeroed.losses
        log_curve(trainer, curve)
        chart(trainer, {RIGHT: {"loss on a tiny batch": ["Multiline", ["overfit_batch/.*"]]}})

    def _measure(self, probe: Probe) -> tuple[Finding, ...]:
        asked = OverfitSettings(
            num_samples=self.num_samples,
            max_steps=self.max_steps,
            target_loss=self.target_loss,
            lr=self.lr,
        )
        evidence = overfit_batch.measure(probe, asked)
        self.result = evidence.result
        with_others = settings_rescue.measure(probe, own_targets=not evidence.judgeable)
        settings_said = settings_findings(with_others)
        guilty = next((f.code for f in settings_said if f.verdict == "warn"), "")
        evidence = dataclasses.replace(evidence, setting=guilty)
        return (*batch_overfitted(evidence), *input_heeded(evidence), *settings_said)
