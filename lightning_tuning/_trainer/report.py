"""The one place that shows findings: console, loggers, and a file in the run's folder."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_tuning.findings import Finding
from lightning_tuning.functional.findings_table import as_markdown, as_text
from lightning_tuning.functional.run_report import FINDINGS_FILE


def report(trainer: Trainer, findings: Sequence[Finding]) -> None:
    """Show findings of a check.

    A table goes to the console of rank zero and to the text tab of TensorBoard, and
    ``findings.json`` in the run's folder collects those of all checks.
    """
    if not findings:
        return
    rank_zero_info(as_text(findings))
    folder = run_folder(trainer)
    if folder is None:
        return
    _add_to_file(folder / FINDINGS_FILE, findings)
    for experiment in experiments(trainer, "add_text"):
        check = findings[0].check
        experiment.add_text(f"{check}/findings", as_markdown(findings), logged_step(trainer))


def run_folder(trainer: Trainer) -> pathlib.Path | None:
    """Return the folder of this run on rank zero; None on others and where nothing is logged.

    It is that of ``trainer.log_dir``, which sends the name to all ranks and would wait for ever
    where one of them has raised.
    """
    if not real_loggers(trainer) or not trainer.is_global_zero:
        return None
    first: Any = trainer.loggers[0]
    folder = getattr(first, "log_dir", None)
    if folder is None and first.save_dir is not None:
        # where Lightning puts the checkpoints of such a logger
        version = first.version if isinstance(first.version, str) else f"version_{first.version}"
        folder = pathlib.Path(first.save_dir, str(first.name), version)
    if folder is None:
        return None
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def logged_step(trainer: Trainer) -> int:
    """Return the place on the axis of ``self.log``.

    ``trainer.global_step`` is another one: it counts the steps of all optimizers.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def real_loggers(trainer: Trainer) -> list[Any]:
    """Return the loggers, without the stand-in of ``fast_dev_run`` that answers to every name."""
    return [logger for logger in trainer.loggers if not isinstance(logger, DummyLogger)]


def experiments(trainer: Trainer, method: str) -> list[Any]:
    """Return what the loggers write to, where it knows ``method``; nothing but on rank zero."""
    if not trainer.is_global_zero:
        return []
    found = [getattr(logger, "experiment", None) for logger in real_loggers(trainer)]
    return [experiment for experiment in found if callable(getattr(experiment, method, None))]


def _add_to_file(path: pathlib.Path, findings: Sequence[Finding]) -> None:
    earlier = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps(earlier + [f.to_dict() for f in findings], indent=1))
