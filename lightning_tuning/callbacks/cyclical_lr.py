"""Cyclical learning rates as a callback."""

from __future__ import annotations

from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.schedule import drop_state
from lightning_tuning._trainer.schedule_length import steps_per_epoch
from lightning_tuning._trainer.schedule_run import Plan, ScheduleRun, Start
from lightning_tuning._trainer.schedule_start import range_result
from lightning_tuning.findings import Finding
from lightning_tuning.functional.checks import positive
from lightning_tuning.functional.schedules.cyclical_lr import (
    CyclicalSchedule,
    cyclical_schedule,
    rates_between,
)
from lightning_tuning.functional.schedules.schedule import spread

_CYCLES = 4
"""Smith (2017): best after three cycles and more, stopped at the end of one."""
_WIDTH = 4.0
"""Smith (2017): the lower bound is a third or a fourth of the upper one."""


class CyclicalLR(Callback):
    """Takes the learning rate up and down again and again between two bounds.

    ``configure_optimizers`` stays as it is and returns the optimizer alone. The formula is that of
    :func:`lightning_tuning.cyclical_lr`, the schedule of ``torch.optim.lr_scheduler.CyclicLR``
    (Smith 2017), with momentum in the opposite direction. Steps are counted, and a resumed fit goes
    on, as :class:`~lightning_tuning.OneCycle` does it; a longer fit makes more cycles of the same
    length. The ends of the cycles, where the rate is lowest, are ``result.cycle_ends``.

    Args:
        max_lr: The upper bound: one rate for all parameter groups, or a list over the groups of all
            optimizers in order. ``None`` takes the upper end of the ``lr_range`` of a range test
            among the trainer's callbacks (the groups in ratio to their own rates, the largest at
            that end), else each group's own rate.
        base_lr: The lower bound, as ``max_lr``. ``None`` takes the lower end of that ``lr_range``,
            else a quarter of ``max_lr``.
        mode: ``"triangular"``; ``"triangular2"``, where the peaks' distance from ``base_lr``
            halves with each cycle; or ``"exp_range"``, where it shrinks by ``gamma`` each step.
        cycle_steps: Length of a cycle in optimizer steps.
        cycle_epochs: The same in epochs. Without either, the fit is four cycles.
        gamma: For ``"exp_range"``.
        pct_start: Fraction of a cycle in which the rate rises.
        cycle_momentum: Cycle ``momentum``, or Adam's first beta, against the rate. An optimizer
            with neither has its rate cycled alone, and a finding says so.
        base_momentum: Momentum at the peak of the rate: one number, or one for each group.
        max_momentum: Momentum at the ends of a cycle: one number, or one for each group.
        replace_scheduler: Drop a scheduler that ``configure_optimizers`` returned, instead of
            refusing it. Not under manual optimization, where the module itself steps it.

    Raises:
        ValueError: An argument is out of its range, or both lengths of a cycle are given.
        MisconfigurationException: At the start of the fit: the module returned a scheduler of its
            own, there is no optimizer, or the length of a cycle cannot be told.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> cycles = CyclicalLR(0.1, base_lr=0.01, cycle_epochs=2)
        >>> trainer = Trainer(callbacks=[cycles], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        max_lr: float | list[float] | None = None,
        *,
        base_lr: float | list[float] | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        cycle_steps: int | None = None,
        cycle_epochs: float | None = None,
        gamma: float = 0.99994,
        pct_start: float = 0.5,
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.8,
        max_momentum: float | list[float] = 0.9,
        replace_scheduler: bool = False,
    ) -> None:
        if cycle_steps is not None and cycle_epochs is not None:
            raise ValueError(
                f"cycle_steps={cycle_steps} and cycle_epochs={cycle_epochs} both tell the length of"
                " a cycle; give one of them"
            )
        if cycle_epochs is not None:
            positive("cycle_epochs", cycle_epochs)
        # made for its checks alone: a wrong argument is told here
        cyclical_schedule(
            1,
            1 if cycle_steps is None else cycle_steps,
            base_lr=0.0,
            max_lr=1.0 if max_lr is None else max_lr,
            mode=mode,
            gamma=gamma,
            pct_start=pct_start,
            base_momentum=base_momentum,
            max_momentum=max_momentum,
        )
        if base_lr is not None:
            rates_between("base_lr", base_lr, "max_lr", base_lr if max_lr is None else max_lr)
        self.max_lr = max_lr
        self.base_lr = base_lr
        self.mode: Literal["triangular", "triangular2", "exp_range"] = mode
        self.cycle_steps = cycle_steps
        self.cycle_epochs = cycle_epochs
        self.gamma = gamma
        self.pct_start = pct_start
        self.cycle_momentum = cycle_momentum
        self.base_momentum = base_momentum
        self.max_momentum = max_momentum
        self.replace_scheduler = replace_scheduler
        self._run = ScheduleRun(
            self,
            check="cyclical_lr",
            total_steps=None,
            replace_scheduler=replace_scheduler,
            plan=self._plan,
            # cycles of a known length need no end
            endless=cycle_steps,
            length_from="cycle_steps",
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the callback has to say about the latest fit."""
        return tuple(self._run.findings)

    @property
    def result(self) -> CyclicalSchedule | None:
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
            base_lr=self.base_lr,
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the schedule, unless a range test later in the list may still set the bounds."""
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
        """Settle bounds and cycles, set the first values, and show the schedule in the logger."""
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
        """Return the steps made by each optimizer, the bounds and the length of a cycle."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note the state; it is used when the schedule starts."""
        self._run.load_state_dict(state_dict)

    def _plan(self, start: Start) -> Plan[CyclicalSchedule]:
        low, high, source = self._bounds(start)
        cycle = self._cycle(start)
        schedule = cyclical_schedule(
            start.total_steps,
            cycle,
            base_lr=low,
            max_lr=high,
            mode=self.mode,
            gamma=self.gamma,
            pct_start=self.pct_start,
            cycle_momentum=start.with_momentum(self.cycle_momentum),
            base_momentum=self.base_momentum,
            max_momentum=self.max_momentum,
        )
        return Plan(
            schedule=schedule,
            described=f"Cycles of {cycle:g} steps between lr={max(low):.3g} and "
            f"lr={max(high):.3g}, {start.total_steps / cycle:.3g} of them",
            source=source,
            wants_momentum=self.cycle_momentum,
            doubt=_doubt(schedule),
            state={"base_lr": list(schedule.base_lr), "cycle_steps": cycle},
        )

    def _bounds(self, start: Start) -> tuple[list[float], list[float], str]:
        high, source = start.peaks(self.max_lr)
        tested = range_result(start.trainer)
        ranged = tested is not None and tested.lr_range is not None
        if source == "the range test" and ranged:
            high = start.in_ratio(tested.lr_range[1], tested.optimizer)
            source = "the range test's lr_range"
        if self.base_lr is not None:
            low = list(spread(self.base_lr, len(high)))
            rates_between("base_lr", low, "max_lr", high)
            return low, high, source
        if "base_lr" in start.restored and self.max_lr is None:
            return list(start.restored["base_lr"]), high, source
        if source == "the range test's lr_range":
            return start.in_ratio(tested.lr_range[0], tested.optimizer), high, source
        return [peak / _WIDTH for peak in high], high, source

    def _cycle(self, start: Start) -> float:
        if self.cycle_steps is not None:
            return float(self.cycle_steps)
        if self.cycle_epochs is not None:
            epoch = steps_per_epoch(start.trainer, by_batch=start.by_batch)
            if epoch is None:
                raise MisconfigurationException(
                    f"CyclicalLR(cycle_epochs={self.cycle_epochs}): the training loader has no"
                    " length, so that an epoch has none; give cycle_steps"
                )
            return max(self.cycle_epochs * epoch, 1.0)
        saved: float | None = start.restored.get("cycle_steps")
        return max(start.total_steps / _CYCLES, 1.0) if saved is None else saved


def _doubt(schedule: CyclicalSchedule) -> str:
    if schedule.cycle_steps <= schedule.total_steps:
        return ""
    return (
        f"The fit of {schedule.total_steps} steps ends before its first cycle of"
        f" {schedule.cycle_steps:g} does, with the rate above its lower bound."
    )
