"""What the checks before a fit cost: seconds, and epochs of the examples' own training.

``python tests/benchmarks/checks.py``; prints a Markdown table, medians of ``--repeats`` runs.
"""

import argparse
import contextlib
import io
import logging
import pathlib
import runpy
import statistics
import time
import warnings

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import GradientCheck, InitialLossCheck, OverfitBatchCheck, WiringCheck

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
CHECKS = (InitialLossCheck, OverfitBatchCheck, GradientCheck, WiringCheck)


class Clock(Callback):
    """Seconds from the start of training to the end, and of its second epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(time.perf_counter() - self.started)


class Timed(Callback):
    """Another callback's start of training, timed."""

    def __init__(self, callback):
        self.callback = callback

    @property
    def state_key(self):
        return type(self.callback).__name__

    def on_train_start(self, trainer, pl_module):
        started = time.perf_counter()
        self.callback.on_train_start(trainer, pl_module)
        self.seconds = time.perf_counter() - started


class Convolutions(nn.Sequential):
    """A small convolutional network for 8 x 8 images."""

    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, 8)),
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(0.2), nn.Linear(1024, 10)),
        )


def programs():
    """The examples' modules on digits, by name."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
    cycle = runpy.run_path(str(EXAMPLES / "one_cycle.py"))["Digits"]

    def perceptron():
        return cycle()

    def convolutional():
        module = cycle()
        module.net = nn.Sequential(nn.Unflatten(1, (8, 8)), Convolutions())
        return module

    loaders = [DataLoader(train, 64, shuffle=True), DataLoader(val, 360)]
    return {"perceptron of examples/one_cycle.py": (perceptron, loaders)} | {
        "the same with two convolutions": (convolutional, loaders)
    }


def measured(make, loaders):
    """Seconds of each check, all in one trainer, and of one epoch."""
    seed_everything(1, verbose=False)
    timed, clock = [Timed(cls()) for cls in CHECKS], Clock()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[*timed, clock],
        )
        trainer.fit(make(), *loaders)
    return [each.seconds for each in timed], min(clock.epochs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name in ("lightning.pytorch", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    names = [cls.__name__ for cls in CHECKS]
    print(f"| program | {' | '.join(names)} | all | one epoch | all in epochs |")
    print("|---" * (len(names) + 4) + "|")
    for name, (make, loaders) in programs().items():
        runs = [measured(make, loaders) for _ in range(repeats)]
        seconds = [statistics.median(run[0][i] for run in runs) for i in range(len(names))]
        epoch = statistics.median(run[1] for run in runs)
        columns = [f"{s:.2f} s" for s in seconds]
        print(
            f"| {name} | {' | '.join(columns)} | {sum(seconds):.1f} s | {epoch:.2f} s |"
            f" {sum(seconds) / epoch:.0f} |"
        )


if __name__ == "__main__":
    main()
