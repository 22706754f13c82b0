"""A warm-up and a way down of the learning rate, as a callback."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.schedule import drop_state
from lightning_tuning._trainer.schedule_run import Plan, ScheduleRun, Start
from lightning_tuning._trainer.validated_metric import validated_metric
from lightning_tuning.findings import Finding
from lightning_tuning.functional.checks import at_least, fraction, is_number, steps
from lightning_tuning.functional.metric_mode import MetricMode, mode_of
from lightning_tuning.functional.schedules.plateau import Plateau
from lightning_tuning.functional.schedules.warmup_decay import (
    Decay,
    Warmup,
    WarmupDecaySchedule,
    warmup_decay_schedule,
)

_WITHOUT_END = ("constant", "plateau")


class WarmupDecay(Callback):
    """Warms the learning rate up, holds it, and takes it down in one of the usual ways.

    ``configure_optimizers`` stays as it is and returns the optimizer alone. The formulas are those
    of :func:`lightning_tuning.warmup_decay_schedule`, which agree with torch's schedulers where
    one exists. Steps are counted, and a resumed fit goes on, as :class:`~lightning_tuning.OneCycle`
    does it: with another ``max_epochs`` each later step has the rate that a fit of that length has
    at that step. With ``decay_fraction`` below 1 (warmup-stable-decay) that is seamless as long as
    the way down has not begun.

    Args:
        max_lr: The rate after the warm-up: one rate for all parameter groups, or a list over the
            groups of all optimizers in order. ``None`` takes the suggestion of a range test among
            the trainer's callbacks (the groups in ratio to their own rates, the largest at the
            suggestion), else each group's own rate.
        warmup: The shape of the way up: ``"linear"``, ``"exponential"``, or ``"constant"``, which
            stays low and then jumps.
        warmup_steps: Its length in optimizer steps; 0 for none. ``None`` takes
            ``warmup_fraction`` of the steps.
        warmup_fraction: Its length as a fraction of the steps.
        warmup_factor: The first rate divided by ``max_lr``.
        decay: The shape of the way down: ``"cosine"``, ``"linear"``, ``"polynomial"``,
            ``"sqrt"``, ``"exponential"``, ``"inverse_time"`` (1/t), ``"step"``, ``"plateau"`` (down
            when a validation metric rests) or ``"constant"``.
        decay_fraction: The last fraction of the steps, in which the way down lies.
        final_factor: The last rate divided by ``max_lr``. ``None`` takes 0, or 0.01 for
            ``"exponential"`` and ``"inverse_time"``, which never reach 0.
        power: Of ``"polynomial"``.
        factor: By what ``"step"`` and ``"plateau"`` multiply the rate.
        milestones: Of ``"step"``, as fractions of the steps.
        cycles: Cycles of the way down; each but the last is followed by a restart at the peak.
        cycle_mult: Length of each cycle divided by that of the one before.
        monitor: The metric of ``"plateau"``, as the module logs it.
        mode: Whether it improves downwards (``"min"``) or upwards (``"max"``); ``None`` takes what
            its name tells.
        patience: Validations without an improvement that ``"plateau"`` waits for.
        threshold: By what share of the best value a better one must be better.
        cooldown: Validations after a reduction that don't count.
        start_momentum: Momentum, or Adam's first beta, at the start; it goes linearly to
            ``end_momentum`` over the steps. ``None`` leaves momentum alone.
        end_momentum: Momentum at the end.
        total_steps: Length of the schedule in optimizer steps; after it the last values stay.
            ``None`` takes the length of the fit.
        replace_scheduler: Drop a scheduler that ``configure_optimizers`` returned, instead of
            refusing it. Not under manual optimization, where the module itself steps it.

    Raises:
        ValueError: An argument is out of its range, or two contradict each other.
        MisconfigurationException: At the start of the fit: the module returned a scheduler of its
            own, there is no optimizer, or the fit has no known end though the shape needs one. At
            a validation: there is no metric ``monitor``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> late = WarmupDecay(0.1, decay="sqrt", decay_fraction=0.2)
        >>> trainer = Trainer(callbacks=[late], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        max_lr: float | list[float] | None = None,
        *,
        warmup: Warmup = "linear",
        warmup_steps: int | None = None,
        warmup_fraction: float = 0.05,
        warmup_factor: float = 0.01,
        decay: Decay = "cosine",
        decay_fraction: float = 1.0,
        final_factor: float | None = None,
        power: float = 2.0,
        factor: float = 0.1,
        milestones: Sequence[float] = (0.5, 0.75),
        cycles: int = 1,
        cycle_mult: float = 1.0,
        monitor: str = "val_loss",
        mode: MetricMode | None = None,
        patience: int = 5,
        threshold: float = 1e-4,
        cooldown: int = 0,
        start_momentum: float | None = None,
        end_momentum: float | None = None,
        total_steps: int | None = None,
        replace_scheduler: bool = False,
    ) -> None:
        if total_steps is not None:
            steps("total_steps", total_steps)
        fraction("warmup_fraction", warmup_fraction)
        mode_of(monitor, mode)
        at_least("patience", patience, 0)
        at_least("cooldown", cooldown, 0)
        if not is_number(threshold) or not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold} must be at least 0 and below 1")
        self.max_lr = max_lr
        self.warmup: Warmup = warmup
        self.warmup_steps = warmup_steps
        self.warmup_fraction = warmup_fraction
        self.warmup_factor = warmup_factor
        self.decay: Decay = decay
        self.decay_fraction = decay_fraction
        self.final_factor = final_factor
        self.power = power
        self.factor = factor
        self.milestones = milestones
        self.cycles = cycles
        self.cycle_mult = cycle_mult
        self.monitor = monitor
        self.mode: MetricMode | None = mode
        self.patience = patience
        self.threshold = threshold
        self.cooldown = cooldown
        self.start_momentum = start_momentum
        self.end_momentum = end_momentum
        self.total_steps = total_steps
        self.replace_scheduler = replace_scheduler
        # made for its checks alone: a wrong argument is told here
        self._schedule(
            1 if total_steps is None else total_steps,
            1.0 if max_lr is None else max_lr,
            momentum=True,
        )
        without_end = decay in _WITHOUT_END and warmup_steps is not None and start_momentum is None
        self._plateau = self._new_plateau()
        self._run = ScheduleRun(
            self,
            check="warmup_decay",
            total_steps=total_steps,
            replace_scheduler=replace_scheduler,
            plan=self._plan,
            endless=max(warmup_steps or 0, 1) if without_end else None,
            # a reduction is one step for all optimizers
            by_batch=True if decay == "plateau" else None,
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the callback has to say about the latest fit."""
        return tuple(self._run.findings)

    @property
    def result(self) -> WarmupDecaySchedule | None:
        """The schedule of the latest fit, or None before its first step."""
        return self._run.result

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before; a checkpoint is restored only after this."""
        self._run.setup(stage)
        if stage == "fit":
            self._plateau = self._new_plateau()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizers, without a change to them yet."""
        self._run.attach(trainer, max_lr=self.max_lr)

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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reduce the rate where the metric has rested for long enough."""
        schedule = self._run.result
        if self.decay != "plateau" or schedule is None or trainer.sanity_checking:
            return
        value = validated_metric(trainer, self.monitor, name="WarmupDecay(monitor=...)")
        step = max(self._run.steps)
        counts = step >= schedule.warmup_steps
        self._plateau, reduced = self._plateau.after(value, counts=counts)
        schedule = schedule.reduced(step) if reduced else schedule
        self._run.follow(schedule, **self._progress(schedule))

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
        """Return the steps made by each optimizer, the length, the peaks and the reductions."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the state; it is used when the schedule starts."""
        self._run.load_state_dict(state_dict)

    def _new_plateau(self) -> Plateau:
        return Plateau(
            mode=mode_of(self.monitor, self.mode),
            patience=self.patience,
            threshold=self.threshold,
            cooldown=self.cooldown,
        )

    def _progress(self, schedule: WarmupDecaySchedule) -> dict[str, Any]:
        return {"plateau": self._plateau.progress(), "reductions": list(schedule.reductions)}

    def _plan(self, start: Start) -> Plan[WarmupDecaySchedule]:
        peaks, source = start.peaks(self.max_lr)
        momentum = start.with_momentum(self.start_momentum is not None)
        schedule = self._schedule(start.total_steps, peaks, momentum=momentum)
        state: dict[str, Any] = {}
        if self.decay == "plateau":
            restored = {"plateau": {}, "reductions": [], **start.restored}
            schedule = dataclasses.replace(schedule, reductions=tuple(restored["reductions"]))
            self._plateau = dataclasses.replace(self._plateau, **restored["plateau"])
            state = self._progress(schedule)
        before = start.length_before
        return Plan(
            schedule=schedule,
            described=f"{self._described(schedule)} with its peak at lr={max(peaks):.3g}",
            source=source,
            wants_momentum=self.start_momentum is not None,
            before=None if before is None else self._schedule(before, peaks, momentum=momentum),
            state=state,
            doubt=self._doubt(schedule),
        )

    def _schedule(
        self, total_steps: int, max_lr: float | list[float], *, momentum: bool | list[bool]
    ) -> WarmupDecaySchedule:
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = round(self.warmup_fraction * total_steps)
        return warmup_decay_schedule(
            total_steps,
            max_lr=max_lr,
            warmup=self.warmup,
            warmup_steps=warmup_steps,
            warmup_factor=self.warmup_factor,
            decay=self.decay,
            decay_fraction=self.decay_fraction,
            final_factor=self.final_factor,
            power=self.power,
            factor=self.factor,
            milestones=self.milestones,
            cycles=self.cycles,
            cycle_mult=self.cycle_mult,
            start_momentum=self.start_momentum,
            end_momentum=self.end_momentum,
            set_momentum=momentum,
        )

    def _described(self, schedule: WarmupDecaySchedule) -> str:
        steps, how = schedule.warmup_steps, ""
        warmup = f"A {schedule.warmup} warm-up of {steps} steps" if steps else "No warm-up"
        if schedule.cycles > 1:
            how = f" in {schedule.cycles} cycles"
        if schedule.decay_fraction < 1:
            how += f" in the last {schedule.decay_fraction:.3g} of it"
        if schedule.decay == "step":
            how = f" by {schedule.factor:g} at {', '.join(f'{m:g}' for m in schedule.milestones)}"
        if schedule.decay == "plateau":
            how = f" by {schedule.factor:g} when {self.monitor} rests for {self.patience}"
        return f"{warmup} and {schedule.decay} decay over {schedule.total_steps} steps{how}"

    def _doubt(self, schedule: WarmupDecaySchedule) -> str:
        total = schedule.total_steps
        # where the fit has no known end, that of the warm-up stands for it
        if schedule.warmup_steps < total or schedule.decay in _WITHOUT_END or total == 1:
            return ""
        return (
            f"The warm-up of {schedule.warmup_steps} steps is as long as the schedule of {total}:"
            " the peak is never reached."
        )
