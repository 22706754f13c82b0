"""The command ``lightning-tuning``: LightningCLI with what comes before and after a fit."""

from __future__ import annotations

import importlib.util
import logging
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import lightning.pytorch.callbacks
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import lightning_tuning
from lightning_tuning.cli_errors import in_one_line
from lightning_tuning.findings import ChecksFailedError
from lightning_tuning.functional.lr_range_test import Suggestion
from lightning_tuning.functional.run_report import read_run
from lightning_tuning.functional.schedules.schedule import Schedule
from lightning_tuning.functional.symptoms import known_symptoms
from lightning_tuning.plots import plot_schedule
from lightning_tuning.workflow.preflight import CheckName

FINE, FAILED, USAGE = 0, 1, 2
_CLASSES = (*lightning_tuning.__all__, *lightning.pytorch.callbacks.__all__)
_HERE = pathlib.Path(__file__).parent
_HELP = """usage: lightning-tuning COMMAND [options]

before a fit
  preflight        check the program, and find its learning rate
  lr-range-test    find the learning rate alone; --quiet prints the number only
  schedule [KIND]  draw a schedule of learning rate and momentum: one_cycle (the default),
                   cyclical_lr, warmup_decay

the fit (LightningCLI; all callbacks of lightning_tuning by their short names)
  fit, validate, test, predict

after a fit
  report RUN_DIR   findings and figures of a run on one page
  explain CODE     what a finding means, and what to do

preflight, lr-range-test and fit take the same configuration, that of LightningCLI:
  lightning-tuning preflight --config config.yaml
  lightning-tuning preflight --model pkg.MyModel --data pkg.MyData

lightning-tuning COMMAND --help tells the options. Exit status: 0; 1 where a check failed;
2 where the command can't be understood or done.
"""


class Parser(LightningArgumentParser):
    """Says in one line what is wrong with a command."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        """Exit with the status for a wrong command."""
        _stop(message)


class TuningTrainer(Trainer):
    """A trainer with two more things to do, as LightningCLI looks for them."""

    def preflight(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        checks: list[CheckName] | None = None,
        folder: str | None = "preflight",
    ) -> bool:
        """Check the program and find its learning rate; nothing is trained.

        Args:
            model: The module.
            datamodule: Its data.
            checks: Names of checks: wiring_check, initial_loss_check, overfit_batch_check,
                gradient_check, lr_range_test; null for all.
            folder: Where the report is written, below the trainer's default_root_dir; null for
                nowhere.
        """
        result = lightning_tuning.preflight(
            self, model, datamodule=datamodule, checks=checks, folder=folder
        )
        return result.verdict != "fail"

    def lr_range_test(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_steps: int | None = None,
        suggestion: Suggestion = "auto",
        output: str | None = None,
        quiet: bool = False,
    ) -> bool:
        """Find the learning rate; nothing is trained.

        Args:
            model: The module.
            datamodule: Its data.
            start_lr: First rate of the sweep.
            end_lr: Last rate of the sweep.
            num_steps: Optimizer steps of the sweep.
            suggestion: The rule: auto, valley, steepest, minimum or slide.
            output: A file for the figure, such as range.png.
            quiet: Print the suggested rate alone, for scripts.
        """
        result = lightning_tuning.lr_range_test(
            self,
            model,
            datamodule=datamodule,
            start_lr=start_lr,
            end_lr=end_lr,
            num_steps=num_steps,
            suggestion=suggestion,
        )
        if output is not None:
            result.plot().savefig(output, dpi=120)
        if quiet and result.suggestion is not None and self.is_global_zero:
            _print(f"{result.suggestion:.3g}")
        return result.suggestion is not None


_OWN = {"preflight": "preflight", "lr-range-test": "lr_range_test"}
setattr(TuningTrainer, "lr-range-test", TuningTrainer.lr_range_test)


class TuningCLI(LightningCLI):
    """LightningCLI with ``preflight`` and ``lr-range-test`` beside ``fit``."""

    succeeded = True

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's and ours, with the arguments that do not come from the command line."""
        own = {name: {"model", "datamodule"} for name in _OWN}
        return {**own, **LightningCLI.subcommands()}

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in _OWN:
            # a configuration that was written for fit is taken as it is
            skip: set[str | int] = set(LightningCLI.subcommands()["fit"])
            parser.add_method_arguments(Trainer, "fit", skip=skip)
        return parser

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand not in _OWN:
            super()._run_subcommand(subcommand)
            return
        arguments = self._prepare_subcommand_kwargs(subcommand)
        self.succeeded = getattr(self.trainer, _OWN[subcommand])(**arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit status.

    Example:
        >>> main(["--version"])
        lightning-tuning 0.1.0
        0
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        _print(_HELP, end="")
        return FINE
    if command == "--version":
        _print(f"lightning-tuning {lightning_tuning.__version__}")
        return FINE
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python program.py` would, so that own modules are found
    try:
        return _run(command, args[1:])
    except ChecksFailedError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return FAILED
    except MisconfigurationException as error:
        _stop(str(error))
    except ValueError as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        _stop(str(refusal))


def _run(command: str, rest: list[str]) -> int:
    if command == "explain":
        return _explain(rest)
    if importlib.util.find_spec("jsonargparse") is None:
        _stop(f'{command} needs jsonargparse: pip install "lightning-tuning[cli]"')
    if command == "schedule":
        return _schedule(rest)
    if command == "report":
        return _report(rest)
    known = TuningCLI.subcommands()
    if command not in known and not command.startswith("-"):
        _stop(f"there is no command {command!r}; choose from {', '.join([*known, *_ALONE])}")
    if "--quiet" in rest:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        rest = [part if part != "--quiet" else "--quiet=true" for part in rest]
    sys.argv = ["lightning-tuning"]  # else LightningCLI warns about arguments given twice
    cli = TuningCLI(
        trainer_class=TuningTrainer,
        parser_class=Parser,
        save_config_callback=SaveConfigCallback if command == "fit" else None,
        args=[command, *rest],
    )
    return FINE if cli.succeeded else FAILED


def _refusal(error: BaseException) -> BaseException | None:
    """Return the error, or what caused it, by which this package refused an argument.

    None where a person's own program raised; that is to be seen with its traceback.
    """
    found: BaseException | None = error
    while found is not None:
        place = found.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        if place is not None and _HERE in pathlib.Path(place.tb_frame.f_code.co_filename).parents:
            return found
        found = found.__cause__
    return None


_SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "one_cycle": lightning_tuning.one_cycle_schedule,
    "cyclical_lr": lightning_tuning.cyclical_schedule,
    "warmup_decay": lightning_tuning.warmup_decay_schedule,
}


def _schedule(rest: list[str]) -> int:
    kind, rest = (rest[0], rest[1:]) if rest and rest[0][:1] != "-" else ("one_cycle", rest)
    if kind not in _SCHEDULES:
        _stop(f"there is no schedule {kind!r}; choose from {', '.join(_SCHEDULES)}")
    parser = Parser(
        prog=f"lightning-tuning schedule {kind}",
        description=f"Draw a schedule; the kinds are {', '.join(_SCHEDULES)}.",
    )
    parser.add_function_arguments(_SCHEDULES[kind])
    parser.add_argument("--output", default="schedule.png", help="The file to draw into.")
    found = parser.instantiate_classes(parser.parse_args(rest))
    output = found.pop("output")
    figure = plot_schedule(_SCHEDULES[kind](**found.as_dict()))
    try:
        figure.savefig(output, dpi=120)
    except OSError as error:
        _stop(f"--output: {error}")
    _print(output)
    return FINE


def _report(rest: list[str]) -> int:
    parser = Parser(
        prog="lightning-tuning report", description="Findings and figures of a run on one page."
    )
    parser.add_argument("run_dir", help="The run's folder, such as lightning_logs/version_0.")
    parser.add_argument("--output", default=None, help="The page; RUN_DIR/report.html by default.")
    options = parser.parse_args(rest)
    folder = pathlib.Path(options.run_dir)
    try:
        found = read_run(folder)
    except FileNotFoundError as error:
        _stop(str(error))
    output = pathlib.Path(options.output or folder / "report.html")
    output.write_text(found.to_html(), encoding="utf-8")
    _print(found.summary())
    _print(f"Report: {output}")
    return FAILED if found.verdict == "fail" else FINE


def _explain(rest: list[str]) -> int:
    if rest in (["-h"], ["--help"]):
        _print("usage: lightning-tuning explain CODE\n\nWhat a finding means, and what to do.")
        _print("\n".join(["", "codes:", *textwrap.wrap(", ".join(known_symptoms()), 98)]))
        return FINE
    if len(rest) != 1 or rest[0].startswith("-"):
        _stop("explain takes one code of a finding, such as lr_too_high")
    _print("\n".join(textwrap.wrap(lightning_tuning.explain(rest[0]), 100)))
    return FINE


_ALONE = ("schedule", "report", "explain")


def _stop(message: str) -> NoReturn:
    print(f"lightning-tuning: {in_one_line(message, _CLASSES)}", file=sys.stderr)  # noqa: T201
    raise SystemExit(USAGE)


def _print(text: str, end: str = "\n") -> None:
    print(text, end=end)  # noqa: T201
