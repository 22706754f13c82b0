"""All checks before a fit, in one go and one report."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from tqdm import tqdm

from lightning_tuning._trainer.before_fit import refuse_module, run_before_fit
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.probe import forget_batches
from lightning_tuning._trainer.verdict import OnFail, of_all_ranks
from lightning_tuning.callbacks.gradient_check import GradientCheck
from lightning_tuning.callbacks.initial_loss_check import InitialLossCheck
from lightning_tuning.callbacks.lr_range_test import LRRangeTest
from lightning_tuning.callbacks.overfit_batch_check import OverfitBatchCheck
from lightning_tuning.callbacks.wiring_check import WiringCheck
from lightning_tuning.findings import ChecksFailedError, Finding
from lightning_tuning.functional import checks as arguments
from lightning_tuning.functional.preflight import (
    PREFLIGHT,
    Measured,
    PreflightResult,
    in_context,
)
from lightning_tuning.functional.run_report import FINDINGS_FILE

REPORT_FILE = f"{PREFLIGHT}.html"
CheckName = Literal[
    "wiring_check", "initial_loss_check", "overfit_batch_check", "gradient_check", "lr_range_test"
]


class Check(Protocol):
    """A callback that can look at a program before its fit."""

    def examine(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Finding, ...]:
        """Return what there is to say."""


_MAKERS: dict[CheckName, Callable[[], Check]] = {
    "wiring_check": WiringCheck,
    "initial_loss_check": InitialLossCheck,
    "overfit_batch_check": OverfitBatchCheck,
    "gradient_check": GradientCheck,
    "lr_range_test": lambda: LRRangeTest(apply=False),
}


def preflight(
    trainer: Trainer,
    model: LightningModule,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    datamodule: LightningDataModule | None = None,
    *,
    checks: Sequence[CheckName | Check] | None = None,
    folder: str | pathlib.Path | None = PREFLIGHT,
    on_fail: OnFail = "warn",
) -> PreflightResult:
    """Check a training program and find its learning rate before a fit.

    These are the first steps of CS231n's recipe: is the loss right at the start, can a tiny batch
    be learnt by heart, which learning rate; with checks of the wiring and of gradients. One table
    on the console tells the outcome. Afterwards trainer and model are as before bit for bit, so
    that ``trainer.fit`` may follow; a suggested learning rate is not set.

    Args:
        trainer: The trainer that is to fit the model. Its callbacks and loggers see nothing.
        model: The module.
        train_dataloaders: As for ``trainer.fit``.
        val_dataloaders: As for ``trainer.fit``.
        datamodule: As for ``trainer.fit``.
        checks: Names out of ``"wiring_check"``, ``"initial_loss_check"``,
            ``"overfit_batch_check"``, ``"gradient_check"`` and ``"lr_range_test"``, or such
            callbacks with settings of their own; None for all.
        folder: Where ``preflight.html`` and ``findings.json`` are written, below the trainer's
            ``default_root_dir`` unless absolute; None to write nothing.
        on_fail: ``"raise"`` ends with an exception where a check failed, after the report.

    Returns:
        All findings, what each check measured, and the verdict.

    Raises:
        ChecksFailedError: A check failed, and ``on_fail="raise"``.
        MisconfigurationException: The trainer has nothing left to train, its strategy starts its
            processes within the fit or shards the model, the program can't be put back, or the
            module comes first.
        ValueError: There is no check of that name, or another argument is out of its range.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> trainer = Trainer(
        ...     max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        ... )
        >>> result = preflight(
        ...     trainer, BoringModel(), checks=["initial_loss_check"], folder=None
        ... )
        >>> [finding.check for finding in result.findings]
        ['initial_loss_check']
    """
    arguments.choice("on_fail", on_fail, ("warn", "raise"))
    chosen = _chosen(checks)
    refuse_module(trainer)
    # what torch.compile returned holds the module, as trainer.fit knows
    model = getattr(model, "_orig_mod", model)
    findings: list[Finding] = []
    results: dict[str, Measured] = {}
    seconds: dict[str, float] = {}
    visible = trainer.progress_bar_callback is not None and trainer.is_global_zero

    def work(trainer: Trainer, module: LightningModule) -> None:
        with tqdm(total=len(chosen), desc="Preflight", disable=not visible, leave=False) as bar:
            for check in chosen:
                bar.set_postfix_str(type(check).__name__)
                started = time.perf_counter()
                said = of_all_ranks(trainer, check.examine(trainer, module))
                name = said[0].check
                seconds[name] = time.perf_counter() - started
                findings.extend(said)
                if getattr(check, "result", None) is not None:
                    results[name] = check.result  # type: ignore[attr-defined]
                bar.update()
        forget_batches(trainer)

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
        raise MisconfigurationException(f"The preflight can't run here: {error}.") from error
    result = PreflightResult(findings=in_context(findings), results=results, seconds=seconds)
    rank_zero_info(result.summary())
    if folder is not None and trainer.is_global_zero:
        _write(pathlib.Path(trainer.default_root_dir) / folder, result)
    failed = [finding for finding in result.findings if finding.verdict == "fail"]
    if failed and on_fail == "raise":
        raise ChecksFailedError(failed)
    return result


def _chosen(checks: Sequence[CheckName | Check] | None) -> list[Check]:
    if checks is None:
        return [make() for make in _MAKERS.values()]
    if isinstance(checks, str) or not checks:
        raise ValueError(f"checks={checks!r} must be a list of {', '.join(_MAKERS)}, or None")
    unknown = [c for c in checks if not hasattr(c, "examine") and c not in _MAKERS]
    if unknown:
        raise ValueError(f"checks={checks!r}: {unknown[0]!r} is none of {', '.join(_MAKERS)}")
    return [_MAKERS[check]() if isinstance(check, str) else check for check in checks]


def _write(folder: pathlib.Path, result: PreflightResult) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT_FILE).write_text(result.to_html(), encoding="utf-8")
    told = [finding.to_dict() for finding in result.findings]
    (folder / FINDINGS_FILE).write_text(json.dumps(told, indent=1))
    rank_zero_info(f"Report: {folder / REPORT_FILE}")
