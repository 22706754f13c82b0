"""What do the curves of a fit say about it?"""

from __future__ import annotations

import functools
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tuning._trainer.curves.curves import CurveRecorder
from lightning_tuning._trainer.fit_losses import fit_losses, forget_losses
from lightning_tuning._trainer.last_words import last_words
from lightning_tuning._trainer.logger import log_result
from lightning_tuning._trainer.report import logged_step, report
from lightning_tuning._trainer.resting_hooks import RestingHooks, all_awake, awake
from lightning_tuning._trainer.verdict import OnFail
from lightning_tuning.findings import ChecksFailedError, Finding
from lightning_tuning.functional import checks as arguments
from lightning_tuning.functional.curves.curve_findings import (
    LOSS_CURVE_DIAGNOSIS,
    diagnose,
    went_bad,
)
from lightning_tuning.functional.curves.loss_curves import Curves, LossCurveResult


class LossCurveDiagnosis(Callback):
    """Reads the loss curves as they come, and says at the end of the fit what they mean.

    Recorded are the training loss and the learning rate of each optimizer step, and what
    validation logs. At the end one finding for each of the shapes that people look for says
    whether it is there, beyond the noise of the curve itself. It warns only where the fit also
    went badly; advice to a good fit stands in the hint of a finding that passes.

    The curves go to the trainer's loggers and, with the findings, into its log folder. A resumed
    fit goes on with the curves in its checkpoint.

    Args:
        train_metric: The name of a logged metric; None for what ``training_step`` returned at each
            optimizer step.
        val_metric: The name of a logged validation loss; None for ``"val_loss"``, or else the one
            logged validation metric that has "loss" in its name.
        on_fail: ``"raise"`` ends the fit with an exception where a finding failed.

    Raises:
        ValueError: An argument is none of these.

    Attributes:
        result: A :class:`~lightning_tuning.LossCurveResult`; None before a fit.
        findings: What there is to say about it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[LossCurveDiagnosis()], logger=False, enable_checkpointing=False
        ... )
    """

    def __init__(
        self,
        train_metric: str | None = None,
        *,
        val_metric: str | None = None,
        on_fail: OnFail = "warn",
    ) -> None:
        for name, value in (("train_metric", train_metric), ("val_metric", val_metric)):
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name}={value!r} must be the name of a logged metric")
        arguments.choice("on_fail", on_fail, ("warn", "raise"))
        self.train_metric = train_metric
        self.val_metric = val_metric
        self.on_fail: OnFail = on_fail
        self.result: LossCurveResult | None = None
        self.findings: tuple[Finding, ...] = ()
        self._curves: Curves | None = None
        self._unfinished: list[list[float]] = []
        self._recorder: CurveRecorder | None = None
        self._training: RestingHooks | None = None
        self._validation: RestingHooks | None = None

    @functools.cached_property
    def state_key(self) -> str:
        """Tells callbacks of this class apart in a checkpoint; Lightning asks at every hook."""
        return self._generate_state_key(train_metric=self.train_metric, val_metric=self.val_metric)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before."""
        if stage == "fit":
            self.result, self.findings, self._curves, self._unfinished = None, (), None, []
            forget_losses(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it over to note the losses, before other monitors begin, which need not then."""
        fit_losses(trainer).claim(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a record, or go on with that of the checkpoint."""
        self._recorder = CurveRecorder(
            trainer,
            pl_module,
            train_metric=self.train_metric,
            val_metric=self.val_metric,
            earlier=self._curves,
            unfinished=self._unfinished,
        )
        self._training = RestingHooks(trainer, self, "on_train_batch_start")
        self._validation = RestingHooks(
            trainer, self, "on_validation_batch_start", "on_validation_batch_end"
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch which losses the first batches call."""
        if self._recorder is not None:
            self._recorder.batch_start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; say at once if it is no number any more."""
        if self._recorder is None or not self._recorder.batch_end(outputs):
            return
        if self._training is not None and self._recorder.starts_seen:
            self._training.rest()
        if not self.findings and (bad := went_bad(self._recorder.record)) is not None:
            self.findings = (bad,)
            report(trainer, self.findings)
            self._raise_if_asked()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Watch which loss the first validation batch calls."""
        if self._recorder is not None:
            self._recorder.validation_batch_start()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take what was seen."""
        if self._recorder is not None:
            self._recorder.validation_batch_end()
            if self._validation is not None:
                self._validation.rest()  # only the first one is looked at

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what validation has logged."""
        if self._recorder is not None:
            self._recorder.validation_end()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where an epoch ends."""
        if self._recorder is not None:
            self._recorder.epoch_end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the curves mean."""
        if self._recorder is None:
            return
        self._recorder.read()
        # each rank has validated other examples, and all are to say the same
        curves = trainer.strategy.broadcast(self._recorder.curves())
        self._finish(trainer, curves)
        if self.result is not None:
            log_result(trainer, LOSS_CURVE_DIAGNOSIS, self.result)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise, if asked for; the last checkpoint is written by now."""
        self._raise_if_asked()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say what is known so far; other ranks may be elsewhere, so nothing more is read."""
        recorder = self._recorder
        if recorder is None:
            return
        recorder.close()
        all_awake(self)
        with last_words(self):
            if trainer.world_size == 1:
                recorder.read()
            self._finish(trainer, recorder.curves())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the trainer."""
        all_awake(self)
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def state_dict(self) -> dict[str, Any]:
        """Return the curves so far; in a fit all ranks must call it."""
        if self._recorder is not None:
            self._recorder.read()
            self._curves = self._recorder.curves()
            self._unfinished = self._recorder.record.unfinished
        if self._curves is None:
            return {}
        return {"curves": self._curves.to_json(), "unfinished": self._unfinished}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the curves of a checkpoint."""
        self._curves = Curves.from_json(state_dict["curves"]) if "curves" in state_dict else None
        self._unfinished = state_dict.get("unfinished", [])

    def __getstate__(self) -> dict[str, Any]:
        return {**awake(vars(self)), "_recorder": None, "_training": None, "_validation": None}

    def _finish(self, trainer: Trainer, curves: Curves) -> None:
        assert self._recorder is not None
        self._recorder.close()
        all_awake(self)
        self._curves, self._unfinished = curves, self._recorder.record.unfinished
        self._recorder = None
        told = self.findings
        found = diagnose(curves, step=logged_step(trainer))
        self.findings = (*told, *(f for f in found if f.code not in {t.code for t in told}))
        self.result = LossCurveResult(curves=curves, findings=self.findings)
        report(trainer, self.findings[len(told) :])

    def _raise_if_asked(self) -> None:
        failed = [finding for finding in self.findings if finding.verdict == "fail"]
        if failed and self.on_fail == "raise":
            raise ChecksFailedError(failed)
