"""What the monitors say of whole fits.

``python -m tests.corpus.fits LossCurveDiagnosis,FilterMonitor fits_broken,fits_healthy``; with
``--measure`` and any name, how well each program trains instead.
"""

import argparse
import contextlib
import io
import logging
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lightning_tuning
from tests.corpus.confusion import line, modules
from tests.corpus.program import QUIET, StopAfter, cost


class Curves(Callback):
    """The training loss of the first and of the last batches, and validation at its best."""

    def __init__(self, program):
        self.program = program
        self.losses, self.values, self.val_losses = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if outputs and "loss" in outputs:
            self.losses.append(float(outputs["loss"]))
        self.steps = trainer.global_step

    def on_validation_end(self, trainer, pl_module):
        logged = trainer.callback_metrics
        if self.program.metric in logged:
            self.values.append(float(logged[self.program.metric]))
        if "val_loss" in logged:
            self.val_losses.append(float(logged["val_loss"]))

    def __str__(self):
        text = f"{self.steps} steps"
        if self.values:
            text += f", best {min(self.values, key=lambda value: cost(self.program, value)):.3g}"
        if self.val_losses:
            text += f", val_loss {min(self.val_losses):.3g} then {self.val_losses[-1]:.3g}"
        if self.losses:
            first, last = (statistics.fmean(part) for part in (self.losses[:5], self.losses[-20:]))
            text += f", train {first:.3g} to {last:.3g}"
        return text


def whole(program, callbacks=(), seed=0):
    """Train from the beginning to the end that the author has set; the trainer and the seconds.

    A program of the other sets, which has no end of its own, trains for its ``steps``.
    """
    seed_everything(seed, verbose=False)
    module, train, val = program.make()
    settings = QUIET | {"check_val_every_n_epoch": 1} | program.trainer
    callbacks = [*settings.pop("callbacks", []), *callbacks]
    if not {"max_epochs", "max_steps"} & set(program.trainer):
        callbacks.append(StopAfter(program.steps))
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory() as folder,
    ):
        warnings.simplefilter("ignore")
        trainer = Trainer(default_root_dir=folder, **settings, callbacks=callbacks)
        started = time.perf_counter()
        trainer.fit(module, train, val)
        seconds = time.perf_counter() - started
        if val is not None:
            trainer.validate(module, val, verbose=False)
    return trainer, seconds


def metric(program, seed=0):
    """The program's own metric after a whole fit, and its curves in words."""
    curves = Curves(program)
    trainer, _ = whole(program, [curves], seed)
    values = trainer.callback_metrics
    return float(values[program.metric] if program.metric else curves.losses[-1]), str(curves)


def untrained(program, seed=0):
    """The metric before any step, or not a number where nothing is validated."""
    seed_everything(seed, verbose=False)
    module, _, val = program.make()
    if val is None or not program.metric:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(**QUIET)
        trainer.validate(module, val, verbose=False)
    return float(trainer.callback_metrics[program.metric])


def programs(kind):
    """The programs of a set such as ``fits_broken``, ``fits_repaired`` or ``held_healthy``."""
    prefix, what = kind.rsplit("_", 1)
    if what == "healthy":
        found = [p for module in modules(kind) for p in module.PROGRAMS]
    else:
        pairs = [p for module in modules(f"{prefix}_broken") for p in module.PAIRS]
        found = [pair[("broken", "repaired").index(what)] for pair in pairs]
    if not found:
        raise SystemExit(f"no files tests/corpus/{kind}_*.py")
    return found


def measure(kind, pattern, seeds):
    """Print how well each trains; of a broken one whether its twin is always better."""
    twins = programs(kind.replace("_broken", "_repaired"))
    for program, twin in zip(programs(kind), twins, strict=True):
        if not re.search(pattern, program.name):
            continue
        started = time.process_time()
        row = f"{program.name:30} {program.metric:9}"
        results = [metric(program, seed) for seed in seeds]
        seconds = (time.process_time() - started) / len(seeds)
        values = [value for value, _ in results]
        if twin is program:
            row += f" {[f'{untrained(program, seed):.3g}' for seed in seeds]} to"
        row += f" {[f'{value:.3g}' for value in values]} {results[0][1]} {seconds:.1f}s"
        if twin is not program:
            good = [metric(twin, seed) for seed in seeds]
            worst = max(cost(twin, value) for value, _ in good)
            hurts = worst < min(cost(program, value) for value in values)
            row += f" | {[f'{value:.3g}' for value, _ in good]} {good[0][1]}"
            row += "" if hurts else " OVERLAP"
        print(row, flush=True)


def monitors(names):
    """A callback of each name at its defaults."""
    missing = [name for name in names if name not in lightning_tuning.__all__]
    if missing:
        sys.exit(f"lightning_tuning has no {', '.join(missing)}")
    return [getattr(lightning_tuning, name)() for name in names]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("monitors", help="class names, joined by commas")
    parser.add_argument("kinds", nargs="?", default="fits_broken,fits_repaired,fits_healthy")
    parser.add_argument("--only", default="", help="a pattern for names of programs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="how well each trains, three seeds")
    options = parser.parse_args()
    for name in ("lightning.pytorch", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    kinds = options.kinds.split(",")
    if options.measure:
        for kind in kinds:
            measure(kind, options.only, range(options.seed, options.seed + 3))
        return
    names = options.monitors.split(",")
    monitors(names)
    summary = []
    for kind in kinds:
        verdicts, spoke = Counter(), Counter()
        for program in programs(kind):
            if not re.search(options.only, program.name):
                continue
            callbacks = monitors(names)
            try:
                _, seconds = whole(program, callbacks, options.seed)
                findings = [finding for callback in callbacks for finding in callback.findings]
                row = line(program, findings, seconds)
            except Exception as error:
                row = f"RAISED {program.name}: {type(error).__name__}: {str(error)[:200]}"
                findings = []
            verdicts[row.split()[0]] += 1
            spoke.update({f.code for f in findings if f.verdict in ("warn", "fail")})
            print(row, flush=True)
        summary.append(f"{kind}: {dict(verdicts)}, alarms {dict(spoke.most_common())}")
    print("\n".join(summary), flush=True)


if __name__ == "__main__":
    main()
