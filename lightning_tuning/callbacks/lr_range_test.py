"""The learning-rate range test as a callback, and as a function for use before a fit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_tuning._trainer.before_fit import run_before_fit
from lightning_tuning._trainer.choices import log_choices, note_choices
from lightning_tuning._trainer.custom_scalars import RATE
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.learning_rates import (
    GroupRates,
    apply_learning_rate,
    rate_attributes,
    rates_of,
    set_module_rate,
)
from lightning_tuning._trainer.logger import log_result
from lightning_tuning._trainer.losses_of_a_batch import losses_of_a_batch
from lightning_tuning._trainer.lr_measurement import TRAIN_LOSS, SweepSettings, measure
from lightning_tuning._trainer.monitor_log import chart, log_curve
from lightning_tuning._trainer.report import report
from lightning_tuning._trainer.schedule_start import start_waiting
from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks
from lightning_tuning.functional.lr_auto import MIN_RUN_STEPS
from lightning_tuning.functional.lr_findings import doubtful, overruled, said, skipped
from lightning_tuning.functional.lr_range_test import (
    LRRangeResult,
    Mode,
    Suggestion,
    sweep_rates,
)
from lightning_tuning.functional.metric_mode import MetricMode

_CHECK = "lr_range_test"
_STEPS = 100
_STEPS_BEFORE_RUNS = 60


class LRRangeTest(Callback):
    """Finds a learning rate before the first step of a fit, shows why, and sets it.

    The rate is raised step by step from ``start_lr`` to ``end_lr`` over real training steps of the
    module; then everything is put back bit for bit. Where the loss begins to fall, falls fastest
    and breaks down tells which rates are useful. ``suggestion="auto"`` then trains a few short runs
    at single rates and takes the best. The result, a figure and the findings go to the trainer's
    loggers and into its log folder; it is skipped on resume and under ``fast_dev_run``.

    "The rate" is that of the parameter group with the largest one; all others keep their ratio.

    Args:
        start_lr: First rate of the sweep.
        end_lr: Last rate of the sweep.
        num_steps: Optimizer steps of a sweep. None takes 60 for ``"auto"``, whose runs need the
            rest of ``max_steps``, and 100 for the other rules.
        mode: ``"exponential"`` or ``"linear"`` spacing of the rates.
        suggestion: The rule to suggest by: ``"auto"``, ``"valley"``, ``"steepest"``, ``"minimum"``
            or ``"slide"``.
        metric: ``"train_loss"``, or a key that ``validation_step`` logs, which is then measured
            after each step.
        metric_mode: ``"min"`` where a lower metric is better, ``"max"`` where a higher one is.
        weight_decays: Values of weight decay to sweep with, one sweep each.
        momenta: Values of momentum (Adam: beta1) to sweep with, one sweep each.
        repeats: Sweeps over independent data orders for each of these.
        diverge_factor: A sweep ends where the loss has risen to so many times its best value.
        max_steps: Optimizer steps that a sweep and the short runs of ``"auto"`` take together. None
            takes 300, or 200 more than ``num_steps`` where that is more.
        num_val_batches: Batches of each validation loader that a validation metric is measured on.
        optimizer: Which optimizer to sweep where there are several, by index or class name; all
            together by default.
        apply: Set the suggested rate: in the optimizers' groups, their schedulers, and the module's
            ``lr`` or ``learning_rate``.

    Raises:
        ValueError: An argument is out of its range.

    Attributes:
        result: An :class:`~lightning_tuning.LRRangeResult`, or None before the first fit.
        findings: What there is to say about it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LRRangeTest()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        start_lr: float = 1e-7,
        *,
        end_lr: float = 10.0,
        num_steps: int | None = None,
        mode: Mode = "exponential",
        suggestion: Suggestion = "auto",
        metric: str = "train_loss",
        metric_mode: MetricMode = "min",
        weight_decays: Sequence[float] | None = None,
        momenta: Sequence[float] | None = None,
        repeats: int = 1,
        diverge_factor: float = 4.0,
        max_steps: int | None = None,
        num_val_batches: int = 4,
        optimizer: int | str | None = None,
        apply: bool = True,
    ) -> None:
        checks.choice("suggestion", suggestion, get_args(Suggestion))
        checks.choice("metric_mode", metric_mode, get_args(MetricMode))
        checks.at_least("repeats", repeats, 1)
        checks.at_least("num_val_batches", num_val_batches, 1)
        if not checks.is_number(diverge_factor) or not diverge_factor > 1:
            raise ValueError(f"diverge_factor={diverge_factor!r} must be a number greater than 1")
        if weight_decays is not None:
            checks.weight_decays("weight_decays", weight_decays)
        if momenta is not None:
            checks.sequence("momenta", momenta)
            checks.momenta("momenta", momenta)
        if not isinstance(metric, str):
            raise ValueError(f"metric={metric!r} must be a name")
        if optimizer is not None and not isinstance(optimizer, int | str):
            raise ValueError(f"optimizer={optimizer!r} must be an index or a class name")
        self.start_lr = start_lr
        self.end_lr = end_lr
        self.num_steps = num_steps
        self.mode: Mode = mode
        self.suggestion: Suggestion = suggestion
        self.metric = metric
        self.metric_mode: MetricMode = metric_mode
        self.weight_decays = weight_decays
        self.momenta = momenta
        self.repeats = repeats
        self.diverge_factor = diverge_factor
        self.max_steps = max_steps
        self.num_val_batches = num_val_batches
        self.optimizer = optimizer
        self.apply = apply
        num_rates = len(self.settings.rates)
        if max_steps is not None and suggestion == "auto":
            checks.at_least("max_steps", max_steps, num_rates + MIN_RUN_STEPS)
        self.result: LRRangeResult | None = None
        self.findings: tuple[Finding, ...] = ()

    @property
    def settings(self) -> SweepSettings:
        """What is measured, as the sandbox takes it."""
        num_steps = self.num_steps
        if num_steps is None:
            num_steps = _STEPS_BEFORE_RUNS if self.suggestion == "auto" else _STEPS
        return SweepSettings(
            rates=sweep_rates(self.start_lr, self.end_lr, num_steps, self.mode),
            suggestion=self.suggestion,
            metric=self.metric,
            metric_mode=self.metric_mode,
            weight_decays=(None,) if self.weight_decays is None else tuple(self.weight_decays),
            momenta=(None,) if self.momenta is None else tuple(self.momenta),
            repeats=self.repeats,
            diverge_factor=self.diverge_factor,
            max_steps=max(300, num_steps + 200) if self.max_steps is None else self.max_steps,
            num_val_batches=self.num_val_batches,
            optimizer=self.optimizer,
        )

    @functools.cached_property
    def state_key(self) -> str:
        """Tells two tests of one trainer apart, such as one for each optimizer."""
        return self._generate_state_key(optimizer=self.optimizer, metric=self.metric)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before; a checkpoint is restored only after this."""
        if stage == "fit":
            self.result, self.findings = None, ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the test; all states are restored and data are set up at this moment."""
        of_checkpoint = self.result
        self.findings = self.examine(trainer, pl_module)
        if self.result is not None and self.result is not of_checkpoint:
            if self.apply and self.result.suggestion is not None:
                self.findings += self._apply(trainer, pl_module, self.result.suggestion)
            self._show(trainer, self.result)
        report(trainer, self.findings)
        start_waiting(trainer, self)

    def examine(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Finding, ...]:
        """Return what there is to say of a program in ``on_train_start``; nothing is shown."""
        reason = _reason_to_skip(trainer)
        if reason is None:
            try:
                self._refuse_opposed_losses(trainer, pl_module)
                self.result = measure(trainer, pl_module, self.settings)
            except CannotProbeError as error:
                reason = str(error)
        if reason is not None or self.result is None:
            return (skipped(str(reason)),)
        own = None if self.apply else rates_of(trainer, self.optimizer).rate
        return said(self.result, own=own)

    def _refuse_opposed_losses(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave networks alone that work against each other: neither loss tells of a good rate."""
        several = len(trainer.optimizers)
        if several == 1 or self.optimizer is not None:
            return
        losses = losses_of_a_batch(trainer, module)
        if losses > 1:
            raise CannotProbeError(
                f"{several} optimizers train by {losses} losses, and no one loss tells how both do;"
                " to sweep one of them name it, LRRangeTest(optimizer=0)"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the loggers which rate was set."""
        log_choices(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the result, so that a resumed run still has it."""
        return {"result": None if self.result is None else self.result.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the result of the run that wrote the checkpoint."""
        text = state_dict["result"]
        self.result = None if text is None else LRRangeResult.from_json(text)

    @property
    def _name(self) -> str:
        """Name of files and tags; of its own where one optimizer or another metric is tested."""
        own = [str(self.optimizer)] if self.optimizer is not None else []
        own += [self.metric.replace("/", "_")] if self.metric != TRAIN_LOSS else []
        return "_".join([_CHECK, *own])

    def _show(self, trainer: Trainer, result: LRRangeResult) -> None:
        log_result(trainer, self._name, result)
        curve = {"loss": result.losses, "smoothed": result.smoothed, "rate": result.rates}
        log_curve(trainer, {f"{self._name}/{name}": values for name, values in curve.items()})
        name = self._name
        charts = {
            f"{name}: loss over the sweep's steps": [f"{name}/loss", f"{name}/smoothed"],
            f"{name}: learning rate of the sweep": [f"{name}/rate"],
        }
        if any(
            isinstance(callback, LearningRateMonitor) for callback in vars(trainer)["callbacks"]
        ):
            charts["learning rate of the fit"] = ["lr-.*"]
        chart(trainer, {RATE: {title: ["Multiline", tags] for title, tags in charts.items()}})

    def _apply(self, trainer: Trainer, module: LightningModule, rate: float) -> tuple[Finding, ...]:
        rates = rates_of(trainer, self.optimizer)
        unknown = apply_learning_rate(trainer, rates, rate)
        set_module_rate(module, rate, rates)
        note_choices(trainer, learning_rate=rate)
        if not unknown:
            return ()
        finding = overruled(unknown, rate)
        rank_zero_warn(f"{finding.message} {finding.hint}")
        return (finding,)


def lr_range_test(
    trainer: Trainer,
    model: LightningModule,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: LightningDataModule | None = None,
    *,
    apply: bool = False,
    **settings: Any,
) -> LRRangeResult:
    """Run the learning-rate range test before a fit; trainer and model are as before afterwards.

    Args:
        trainer: The trainer that is to fit the model.
        model: The module.
        train_dataloaders: As for ``trainer.fit``.
        val_dataloaders: As for ``trainer.fit``.
        datamodule: As for ``trainer.fit``.
        apply: Set the suggestion as the module's ``lr`` or ``learning_rate`` (also in ``hparams``),
            which its ``configure_optimizers`` reads.
        **settings: The arguments of :class:`LRRangeTest`.

    Returns:
        The result; its ``suggestion`` is None where the curve can't be used, and its ``findings``
        say why.

    Raises:
        MisconfigurationException: ``apply=True`` and the module has no such attribute; the program
            can't be tried and put back; or the trainer has nothing left to train.
        ValueError: A setting is out of its range.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> trainer = Trainer(
        ...     max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        ... )
        >>> result = lr_range_test(trainer, BoringModel(), num_steps=20)
        >>> len(result.rates) <= 20
        True
    """
    callback = LRRangeTest(apply=False, **settings)
    # what torch.compile returned holds the module, as trainer.fit knows
    model = getattr(model, "_orig_mod", model)
    if apply and not rate_attributes(model):
        raise MisconfigurationException(
            "apply=True sets the module's attribute `lr` or `learning_rate` (or that of its "
            f"hparams), and {type(model).__name__} has none; read it in configure_optimizers."
        )
    found: list[LRRangeResult] = []
    bases: list[GroupRates] = []

    def work(trainer: Trainer, module: LightningModule) -> None:
        bases.append(rates_of(trainer, callback.optimizer))
        found.append(measure(trainer, module, callback.settings))

    try:
        run_before_fit(
            trainer,
            model,
            work,
            train_dataloaders=train_dataloaders,
            val_dataloaders=val_dataloaders,
            datamodule=datamodule,
        )
    except CannotProbeError as error:
        raise MisconfigurationException(f"The range test can't run here: {error}.") from error
    result = found[0]
    if apply and result.suggestion is not None:
        doubt = set_module_rate(model, result.suggestion, bases[0])
        if doubt is not None:
            result = dataclasses.replace(result, findings=(*result.findings, doubtful(doubt)))
    rank_zero_info(result.summary())
    return result


def _reason_to_skip(trainer: Trainer) -> str | None:
    if getattr(trainer, "fast_dev_run", False):
        return "under fast_dev_run there is nothing to tune"
    if trainer.global_step > 0:
        return f"training goes on from step {trainer.global_step} with the learning rate it had"
    return None
