"""The one-cycle policy as a callback."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.schedule import drop_state
from lightning_tuning._trainer.schedule_run import Plan, ScheduleRun, Start
from lightning_tuning.findings import Finding
from lightning_tuning.functional.schedules.one_cycle import OneCycleSchedule, one_cycle_schedule


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
        self._run = ScheduleRun(
            self,
            check="one_cycle",
            total_steps=total_steps,
            replace_scheduler=replace_scheduler,
            plan=self._plan,
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the callback has to say about the latest fit."""
        return tuple(self._run.findings)

    @property
    def result(self) -> OneCycleSchedule | None:
        """The schedule of the latest fit, or None before its first step."""
        return self._run.result

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before; a checkpoint is restored only after this."""
        self._run.setup(stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizers, without a change to them yet."""
        self._run.attach(
            trainer,
            max_lr=self.max_lr,
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the schedule, unless a range test later in the list may still set the peak."""
        self._run.start_if_known(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the schedule before the first batch, if it has not started."""
        self._run.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance under manual optimization, where batches are counted."""
        self._run.end_batch()

    def start_schedule(self, trainer: Trainer) -> None:
        """Settle length and peak, set the first values, and show the schedule in the logger."""
        self._run.start(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the loggers which peak and length were taken."""
        self._run.end(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of the optimizers."""
        self._run.detach(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the optimizers."""
        self._run.detach(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the progress in this callback's state alone."""
        drop_state(checkpoint, trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps made by each optimizer, the length and the peaks."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the state; it is used when the schedule starts."""
        self._run.load_state_dict(state_dict)

    def _plan(self, start: Start) -> Plan[OneCycleSchedule]:
        peaks, source = start.peaks(self.max_lr)
        schedule = one_cycle_schedule(
            start.total_steps,
            max_lr=peaks,
            pct_start=self.pct_start,
            anneal_strategy=self.anneal_strategy,
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
            three_phase=self.three_phase,
            cycle_momentum=start.with_momentum(self.cycle_momentum),
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
        )
        before = start.length_before
        return Plan(
            schedule=schedule,
            described=f"One cycle of {start.total_steps} steps with its peak at "
            f"lr={max(schedule.max_lr):.3g}",
            source=source,
            wants_momentum=self.cycle_momentum,
            before=None if before is None else dataclasses.replace(schedule, total_steps=before),
        )
