"""The one-cycle policy as a callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer import schedule
from lightning_tuning._trainer.choices import log_choices, note_choices
from lightning_tuning._trainer.learning_rates import rates_of
from lightning_tuning._trainer.monitor_log import keeps_figures, log_figure
from lightning_tuning._trainer.report import logged_step, report
from lightning_tuning._trainer.schedule_length import refuse_endless, steps_left
from lightning_tuning._trainer.schedule_start import others_start_later, range_result
from lightning_tuning.findings import Finding
from lightning_tuning.functional.lr_range_test import LRRangeResult
from lightning_tuning.functional.one_cycle import OneCycleSchedule, one_cycle_schedule
from lightning_tuning.functional.one_cycle_findings import cycle_findings, replaced_finding
from lightning_tuning.plots import plot_one_cycle


class OneCycle(Callback):
    """Takes the learning rate up and down once over the fit, and momentum down and up.

    ``configure_optimizers`` stays as it is and returns the optimizer alone. The formula is that of
    :func:`lightning_tuning.one_cycle`, the schedule of ``torch.optim.lr_scheduler.OneCycleLR``
    (Smith 2018). It advances with every optimizer step, also one that AMP skips, as Lightning
    counts it in ``global_step``; so the cycle ends where the fit ends. Under manual optimization
    it advances with every training batch, or, with ``total_steps``, with each step of each
    optimizer (there a step that AMP skips does not count).

    A resumed fit goes on where it was. The cycle is as long as the steps made under it plus those
    still to come: with another ``max_epochs`` each later step has the rate that a fit of that
    length has at that step, and a finding says so. A cycle that starts from a checkpoint made
    without ``OneCycle`` takes the steps that are left.

    Args:
        max_lr: The peak: one rate for all parameter groups, or a list over the groups of all
            optimizers in order. ``None`` takes the suggestion of a range test among the trainer's
            callbacks (the groups in ratio to their own rates, the largest at the suggestion), else
            each group's own rate.
        total_steps: Length of the cycle in optimizer steps; after it the last rate stays. ``None``
            takes the length of the fit.
        pct_start: Fraction of the steps in which the rate rises.
        anneal_strategy: The shape of the ways up and down, ``"cos"`` or ``"linear"``.
        div_factor: The peak divided by the first rate.
        final_div_factor: The first rate divided by the last.
        three_phase: Come back to the first rate before the last descent.
        cycle_momentum: Cycle ``momentum``, or Adam's first beta, against the rate. An optimizer
            with neither has its rate cycled alone, and a finding says so.
        base_momentum: Momentum at the peak of the rate: one number, or one for each group.
        max_momentum: Momentum at the start and the end: one number, or one for each group.
        replace_scheduler: Drop a scheduler that ``configure_optimizers`` returned, instead of
            refusing it. Not under manual optimization, where the module itself steps it.

    Raises:
        ValueError: An argument is out of its range.
        MisconfigurationException: At the start of the fit: the module returned a scheduler of its
            own, there is no optimizer, or the fit has no known end and ``total_steps`` is None.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[OneCycle(0.1)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        max_lr: float | list[float] | None = None,
        *,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.85,
        max_momentum: float | list[float] = 0.95,
        replace_scheduler: bool = False,
    ) -> None:
        # made for its checks alone: a wrong argument is told here
        one_cycle_schedule(
            1 if total_steps is None else total_steps,
            max_lr=1.0 if max_lr is None else max_lr,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            base_momentum=base_momentum,
            max_momentum=max_momentum,
        )
        self.max_lr = max_lr
        self.total_steps = total_steps
        self.pct_start = pct_start
        self.anneal_strategy: Literal["cos", "linear"] = anneal_strategy
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        self.three_phase = three_phase
        self.cycle_momentum = cycle_momentum
        self.base_momentum = base_momentum
        self.max_momentum = max_momentum
        self.replace_scheduler = replace_scheduler
        self._findings: list[Finding] = []
        self._result: OneCycleSchedule | None = None
        self._attached: schedule.Attached | None = None
        self._progress: dict[str, Any] = {}
        self._restored: dict[str, Any] = {}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the callback has to say about the latest fit."""
        return tuple(self._findings)

    @property
    def result(self) -> OneCycleSchedule | None:
        """The schedule of the latest fit, or None before its first step."""
        return self._result

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before; a checkpoint is restored only after this."""
        if stage == "fit":
            self._findings, self._result = [], None
            self._progress, self._restored = {}, {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizers, without a change to them yet."""
        if self.total_steps is None:
            refuse_endless(trainer, name="OneCycle")
        self._attached = schedule.attach(
            trainer,
            self,
            replace_scheduler=self.replace_scheduler,
            by_batch=self.total_steps is None,
        )
        self._attached.check_groups(
            max_lr=self.max_lr, base_momentum=self.base_momentum, max_momentum=self.max_momentum
        )
        if self._attached.replaced:
            self._findings.append(replaced_finding(self._attached.replaced))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the schedule, unless a range test later in the list may still set the peak."""
        if not others_start_later(trainer, self):
            self.start_schedule(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the schedule before the first batch, if it has not started."""
        self.start_schedule(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance under manual optimization, where batches are counted."""
        if self._attached is not None:
            self._attached.end_batch()

    def start_schedule(self, trainer: Trainer) -> None:
        """Settle length and peak, set the first values, and show the schedule in the logger."""
        if self._attached is None or self._attached.started:
            return
        steps = self._restored.get("steps", [0] * len(self._attached.schedulers))
        total = self.total_steps
        if total is None:
            by_batch = self._attached.by_batch
            total = max(steps) + steps_left(trainer, name="OneCycle", by_batch=by_batch)
        peaks, source = self._peaks(trainer)
        self._result = one_cycle_schedule(
            total,
            max_lr=peaks,
            pct_start=self.pct_start,
            anneal_strategy=self.anneal_strategy,
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
            three_phase=self.three_phase,
            cycle_momentum=[
                self.cycle_momentum and ("betas" in group or "momentum" in group)
                for group in self._attached.groups
            ],
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
        )
        self._attached.start(self._result.at, steps)
        self._findings += cycle_findings(
            self._result,
            step=max(steps),
            source=source,
            length_before=self._restored.get("total_steps", total),
            wants_momentum=self.cycle_momentum,
        )
        report(trainer, self.findings)
        note_choices(trainer, max_lr=max(self._result.max_lr), total_steps=total)
        if keeps_figures(trainer):
            figure = plot_one_cycle(self._result)
            step = logged_step(trainer)
            log_figure(trainer, "one_cycle/schedule", figure, step, file="one_cycle")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the loggers which peak and length were taken."""
        log_choices(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of the optimizers."""
        self._detach(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the optimizers."""
        self._detach(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the progress in this callback's state alone."""
        schedule.drop_state(checkpoint, trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps made by each optimizer, the length and the peaks."""
        if self._attached is None or self._result is None:
            return dict(self._progress)
        return {
            "steps": list(self._attached.steps),
            "total_steps": self._result.total_steps,
            "max_lr": list(self._result.max_lr),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the state; it is used when the schedule starts."""
        self._restored = dict(state_dict)

    def _detach(self, trainer: Trainer) -> None:
        if self._attached is not None:
            # a checkpoint may still be saved after this
            self._progress = self.state_dict()
            self._attached.detach(trainer)
            self._attached = None

    def _peaks(self, trainer: Trainer) -> tuple[list[float], str]:
        """Return the peak of each group, and where it comes from."""
        assert self._attached is not None
        own = [float(group["lr"]) for group in self._attached.groups]
        tested = range_result(trainer)
        if self.max_lr is not None:
            given = self.max_lr
            peaks = list(given) if isinstance(given, Sequence) else [given] * len(own)
            unused = f" (the range test suggested {tested.suggestion:.3g})" if tested else ""
            return peaks, "max_lr" + unused
        if "max_lr" in self._restored:
            return list(self._restored["max_lr"]), "the checkpoint"
        if tested is not None:
            return self._peaks_of(tested, trainer), "the range test"
        return own, "the optimizer's own rate"

    def _peaks_of(self, tested: LRRangeResult, trainer: Trainer) -> list[float]:
        """Return the suggestion for the groups that were swept, in ratio; others keep their own."""
        assert self._attached is not None
        assert tested.suggestion is not None
        swept = rates_of(trainer, tested.optimizer)
        peaks = {
            id(group): tested.suggestion * (base / swept.rate)
            for group, base in zip(swept.groups, swept.base_rates, strict=True)
        }
        return [peaks.get(id(group), float(group["lr"])) for group in self._attached.groups]
