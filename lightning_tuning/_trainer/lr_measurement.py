"""Sweeping the learning rate inside the sandbox, and trying single rates there."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.learning_rates import rates_of
from lightning_tuning._trainer.sandbox import Sandbox
from lightning_tuning.functional.lr_analysis import (
    analyse,
    best_setting,
    by_setting,
    mean_curve,
)
from lightning_tuning.functional.lr_auto import AutoChoice, Stop, choose_rate
from lightning_tuning.functional.lr_range_test import (
    LRRangeResult,
    LRSweep,
    Suggestion,
    has_diverged,
)
from lightning_tuning.functional.metric_mode import MetricMode, sign_of

TRAIN_LOSS = "train_loss"
_LOOK_EVERY = 5
"""Losses stay on the device and are looked at together; a sweep runs at most so many steps on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What a range test was asked to do; see ``LRRangeTest`` for each."""

    rates: tuple[float, ...]
    suggestion: Suggestion
    metric: str
    metric_mode: MetricMode
    weight_decays: tuple[float | None, ...]
    momenta: tuple[float | None, ...]
    repeats: int
    diverge_factor: float
    max_steps: int
    num_val_batches: int
    optimizer: int | str | None


def measure(trainer: Trainer, module: LightningModule, settings: SweepSettings) -> LRRangeResult:
    """Run all sweeps, and the trials of ``auto``, in one sandbox; nothing of it stays.

    Args:
        trainer: A trainer in ``on_train_start``.
        module: Its module.
        settings: What to sweep.

    Raises:
        CannotProbeError: The program can't be tried and put back.
        MisconfigurationException: A setting does not fit the module or its optimizers.
    """
    sweeps: list[LRSweep] = []
    with _progress_bar(trainer, settings) as advance, Sandbox(trainer, module) as box:
        probe = _Probe(box, settings, advance)
        plan = itertools.product(settings.weight_decays, settings.momenta, range(settings.repeats))
        for weight_decay, momentum, order in plan:
            sweeps.append(probe.sweep(weight_decay, momentum, order))
        auto = _try_rates(probe, sweeps, settings) if settings.suggestion == "auto" else None
    return analyse(
        sweeps,
        suggestion=settings.suggestion,
        auto=auto,
        ends=(settings.rates[0], settings.rates[-1]),
        num_steps=len(settings.rates),
        metric=settings.metric,
        metric_mode=settings.metric_mode,
        optimizer=settings.optimizer,
    )


def _try_rates(probe: _Probe, sweeps: list[LRSweep], settings: SweepSettings) -> AutoChoice | None:
    """Run the trials of ``auto`` with the best weight decay and momentum."""
    setting = best_setting(sweeps, metric_mode=settings.metric_mode)
    repeats = by_setting(sweeps)[setting]
    rates, losses = mean_curve(repeats)
    sign = sign_of(settings.metric_mode)

    def run(rate: float, steps: int, stop: Stop) -> list[float]:
        values = probe.trial(rate, steps, *setting, lambda v: stop([sign * x for x in v]))
        return [sign * value for value in values]

    choice = choose_rate(
        rates,
        sign * losses,
        run,
        max_steps=settings.max_steps - max(len(sweep.losses) for sweep in repeats),
        highest=settings.rates[-1],
        diverged=len(repeats[0].losses) < len(settings.rates),
    )
    if choice is None or sign > 0:
        return choice
    trials = [
        dataclasses.replace(trial, losses=tuple(-loss for loss in trial.losses))
        for trial in choice.trials
    ]
    return dataclasses.replace(choice, trials=tuple(trials))


class _Probe:
    """Runs at one learning rate or through a sweep of them, each from the initial state."""

    def __init__(
        self, box: Sandbox, settings: SweepSettings, advance: Callable[[int], object]
    ) -> None:
        self._box = box
        self._settings = settings
        self._advance = advance
        self._rates = rates_of(box.trainer, settings.optimizer)

    def sweep(self, weight_decay: float | None, momentum: float | None, order: int) -> LRSweep:
        """Raise the rate step by step until the end, or until the loss has diverged."""
        rates = self._settings.rates
        losses = self._run(rates, weight_decay, momentum, order)
        return LRSweep(
            rates=rates[: len(losses)],
            losses=tuple(losses),
            weight_decay=weight_decay,
            momentum=momentum,
            order=order,
        )

    def trial(
        self,
        rate: float,
        steps: int,
        weight_decay: float | None,
        momentum: float | None,
        stop: Stop,
    ) -> list[float]:
        """Train with one rate on the first sweep's batches; return the metric of each step."""
        return self._run((rate,) * steps, weight_decay, momentum, 0, stop)

    def _run(
        self,
        rates: tuple[float, ...],
        weight_decay: float | None,
        momentum: float | None,
        order: int,
        stop: Stop | None = None,
    ) -> list[float]:
        self._box.rewind(order=order)
        if weight_decay is not None:
            self._rates.set_weight_decay(weight_decay)
        if momentum is not None:
            self._rates.set_momentum(momentum)
        track = _Track(self._box, self._settings, self._advance, stop)
        hooks = [o.register_step_pre_hook(self._check_rate) for o in self._rates.optimizers]
        try:
            self._box.run(
                len(rates),
                before_step=lambda step: self._set(rates[step]),
                after_step=track,
            )
        except Exception:
            if not track.broke_down():
                raise
        finally:
            for hook in hooks:
                hook.remove()
        track.look()
        return track.values

    def _set(self, rate: float) -> None:
        self._rates.set(rate)
        self._written = [float(group["lr"]) for group in self._rates.groups]

    def _check_rate(self, *_: object) -> None:
        if [float(group["lr"]) for group in self._rates.groups] != self._written:
            raise CannotProbeError("the module sets the learning rate itself before each step")


class _Track:
    """Collects the metric of a run; few transfers from the device; one mind on all ranks."""

    def __init__(
        self,
        box: Sandbox,
        settings: SweepSettings,
        advance: Callable[[int], object],
        stop: Stop | None,
    ) -> None:
        self.values: list[float] = []
        self._pending: list[Tensor] = []
        self._box = box
        self._settings = settings
        self._advance = advance
        self._stop = stop

    def __call__(self, _: int, loss: Tensor) -> bool:
        """Note one step; return whether the run should end."""
        self._advance(1)
        by_loss = self._settings.metric == TRAIN_LOSS
        self._pending.append(loss if by_loss else self._evaluate())
        return len(self._pending) >= (_LOOK_EVERY if by_loss else 1) and self.look()

    def look(self) -> bool:
        """Bring the pending values to the host; cut the run where it diverged."""
        if self._pending:
            trainer = self._box.trainer
            values = torch.stack([value.reshape(()).float() for value in self._pending])
            self._pending = []
            if trainer.world_size > 1:
                values = trainer.strategy.reduce(values, reduce_op="mean")
                values = trainer.strategy.broadcast(values)
            self.values += values.tolist()
        return self._cut() or (self._stop is not None and self._stop(self.values))

    def broke_down(self) -> bool:
        """Whether an error can be put down to the weights having left all bounds."""
        if self._box.trainer.world_size > 1:
            return False
        self.look()
        weights = [p.detach() for p in self._box.module.parameters() if p.is_floating_point()]
        norms = torch.stack([n.float().cpu() for n in torch._foreach_norm(weights)])
        return bool(self.values) and (self._cut() or not bool(norms.isfinite().all()))

    def _cut(self) -> bool:
        sign = sign_of(self._settings.metric_mode)
        for end in range(max(len(self.values) - _LOOK_EVERY, 0), len(self.values)):
            seen = [sign * value for value in self.values[: end + 1]]
            if has_diverged(seen, diverge_factor=self._settings.diverge_factor):
                self.values = self.values[: end + 1]
                return True
        return False

    def _evaluate(self) -> Tensor:
        logged = self._box.evaluate(num_batches=self._settings.num_val_batches)
        if self._settings.metric not in logged:
            raise MisconfigurationException(
                f"metric={self._settings.metric!r} is not what validation logs; choose one of "
                f"{sorted(logged)}, or {TRAIN_LOSS!r} for the training loss."
            )
        return logged[self._settings.metric]


@contextlib.contextmanager
def _progress_bar(trainer: Trainer, settings: SweepSettings) -> Iterator[Callable[[int], object]]:
    """Show a bar where the trainer shows one; yield what advances it."""
    shown = trainer.progress_bar_callback
    visible = shown is not None and getattr(shown, "is_enabled", True) and trainer.is_global_zero
    sweeps = len(settings.weight_decays) * len(settings.momenta) * settings.repeats
    trials = settings.max_steps - len(settings.rates) if settings.suggestion == "auto" else 0
    total = sweeps * len(settings.rates) + max(trials, 0)
    with tqdm(
        total=total, desc="Learning-rate range test", disable=not visible, leave=False
    ) as bar:
        yield bar.update
