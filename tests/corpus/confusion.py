"""Which checks speak on which program: `python -m tests.corpus.confusion WiringCheck [broken]`."""

import argparse
import contextlib
import importlib
import io
import logging
import pathlib
import re
import time
import warnings

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lightning_tuning
from tests.corpus import test_broken, test_healthy
from tests.corpus.program import QUIET


class EndHere(Callback):
    """Leaves the fit when all checks before it have spoken."""

    def on_train_start(self, trainer, pl_module):
        raise KeyboardInterrupt


def spoken(program, callbacks, seed=0):
    """The findings of callbacks on a program, and the seconds they took."""
    seed_everything(seed, verbose=False)
    module, train, val = program.make()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        trainer = Trainer(**QUIET | program.trainer, callbacks=[*callbacks, EndHere()])
        started = time.perf_counter()
        with contextlib.suppress(SystemExit):
            trainer.fit(module, train, val)
    return [f for c in callbacks for f in c.findings], time.perf_counter() - started


def alarms(findings):
    """Those that call something wrong."""
    return [finding for finding in findings if finding.verdict in ("warn", "fail")]


def line(program, findings, seconds):
    """One row: what was said, and whether it is right."""
    loud = alarms(findings)
    codes = {finding.code for finding in loud}
    if program.codes:
        verdict = "found " if codes & program.codes else ("WRONG " if codes else "MISSED")
    else:
        verdict = "ALARM " if codes else "quiet "
    text = "; ".join(f"[{f.verdict}] {f.code} {f.where}: {f.message}" for f in loud)
    return f"{verdict} {program.name:28} {seconds:5.1f}s {sorted(program.codes) or ''} {text}"


def modules(start):
    """All files of programs whose name begins so."""
    paths = sorted(pathlib.Path(__file__).parent.glob(f"{start}_*.py"))
    return [importlib.import_module(f"tests.corpus.{path.stem}") for path in paths]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checks", help="class names, joined by commas")
    parser.add_argument("kind", nargs="?", default="broken,repaired,healthy")
    parser.add_argument("--only", default="", help="a pattern for names of programs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning_utilities.core.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    programs = {
        "broken": [broken for broken, _ in test_broken.PAIRS],
        "repaired": [repaired for _, repaired in test_broken.PAIRS],
        "healthy": test_healthy.PROGRAMS,
    }
    for name in ("second", "third", "fourth"):
        pairs = [pair for module in modules(f"{name}_broken") for pair in module.PAIRS]
        programs[f"{name}_broken"] = [broken for broken, _ in pairs]
        programs[f"{name}_repaired"] = [repaired for _, repaired in pairs]
        programs[f"{name}_healthy"] = [
            program for module in modules(f"{name}_healthy") for program in module.PROGRAMS
        ]
    for kind in options.kind.split(","):
        counts = {}
        for program in programs[kind]:
            if not re.search(options.only, program.name):
                continue
            checks = [getattr(lightning_tuning, name)() for name in options.checks.split(",")]
            try:
                row = line(program, *spoken(program, checks, options.seed))
            except Exception as error:
                row = f"RAISED {program.name}: {type(error).__name__}: {str(error)[:200]}"
            counts[row.split()[0]] = counts.get(row.split()[0], 0) + 1
            print(row, flush=True)
        print(kind, counts, flush=True)


if __name__ == "__main__":
    main()
