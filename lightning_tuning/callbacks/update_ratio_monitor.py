"""How far do the steps of a fit move the weights, relative to their size?"""

from __future__ import annotations

import re
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_tuning._trainer.fit_losses import forget_losses
from lightning_tuning._trainer.last_words import last_words
from lightning_tuning._trainer.resting_hooks import all_awake, awake
from lightning_tuning._trainer.step_hooks import StepHooks
from lightning_tuning._trainer.update_ratio.update_record import UpdateRecord
from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks as arguments
from lightning_tuning.functional.update_ratio.update_ratio import UpdateRatioResult


class UpdateRatioMonitor(Callback):
    r"""Measures :math:`\|\Delta W\| / \|W\|` of each weight at the optimizer's real steps.

    Weights are compared before and after ``optimizer.step``, so that the ratio is right for any
    optimizer, with clipping, weight decay, accumulation and mixed precision, under automatic and
    manual optimization; a step that the loss scaler skips is none. Karpathy's rule of thumb is
    a ratio of about 0.001. Norms of gradients before and after clipping are measured beside it.

    Nothing is changed, and on steps that are not measured nothing is done. Ratios and norms go to
    the trainer's loggers, a heat map of all tensors over time at the end of the fit, and what is
    to be said about them is said then; that weights have become NaN is said at once.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next (batches under manual
            optimization); None for the trainer's ``log_every_n_steps``, or what gives twenty
            points at least and a hundred at most.
        include: A regular expression, to be found in the names of those parameters that are to be
            measured, such as ``"encoder|head"``; None for all that an optimizer holds.

    Raises:
        ValueError: An argument is out of its range; when the fit starts also where ``include`` is
            found in no name.

    Attributes:
        result: An :class:`~lightning_tuning.UpdateRatioResult`; None before the first fit.
        findings: What there is to say, one or more for each code.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[UpdateRatioMonitor(include="weight")],
        ...     logger=False,
        ...     enable_checkpointing=False,
        ... )
    """

    def __init__(self, every_n_steps: int | None = None, *, include: str | None = None) -> None:
        if every_n_steps is not None:
            arguments.steps("every_n_steps", every_n_steps)
        _refuse_no_pattern("include", include)
        self.every_n_steps = every_n_steps
        self.include = include
        self.result: UpdateRatioResult | None = None
        self.findings: tuple[Finding, ...] = ()
        self._record: UpdateRecord | None = None
        self._hooks: StepHooks | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**awake(vars(self)), "_record": None, "_hooks": None}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before."""
        if stage == "fit":
            self.result, self.findings, self._record = None, (), None
            forget_losses(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn what there is to measure; all states are restored at this moment."""
        self._record = UpdateRecord(
            trainer, pl_module, self, every_n_steps=self.every_n_steps, include=self.include
        )
        self._hooks = StepHooks(
            trainer,
            self,
            self._record.cadence,
            "on_before_optimizer_step",
            "on_train_batch_end",
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the step of this batch, if it is to be measured."""
        if self._record is not None and self._record.begin_batch() and self._hooks is not None:
            self._hooks.measure()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Keep the weights before the step, and look at the gradients."""
        if self._record is not None:
            self._record.updates.before_optimizer_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was measured."""
        if self._record is not None:
            self.findings += self._record.end_batch(outputs)
            if self._hooks is not None and not self._record.updates.watching:
                self._hooks.measured()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was measured so far, if that is cheap."""
        if self._record is not None:
            self._record.draw_if_cheap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what there is to say."""
        self._finish()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say what is known so far, and leave nothing behind."""
        with last_words(self):
            self._finish(interrupted=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._finish(interrupted=True)

    def _finish(self, *, interrupted: bool = False) -> None:
        record, self._record = self._record, None
        all_awake(self)
        if record is not None:
            self.result, findings = record.finish(self.findings, interrupted=interrupted)
            self.findings += findings
            record.show(findings, interrupted=interrupted)


def _refuse_no_pattern(name: str, value: str | None) -> None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise ValueError(f"{name}={value!r} is no regular expression: {error}") from error
