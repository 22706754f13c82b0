"""Wall time of a sweep against a bare PyTorch loop over the same batches, in one run.

Run: ``python tests/benchmarks/lr_range_test_speed.py``. Both take as many steps at the same rates
and look at the loss; the two alternate, and ratios of medians are reported. "sweep" is what
``LRRangeTest`` does in ``on_train_start`` without drawing; "function" is all of ``lr_range_test``,
with the set-up of a fit around it.
"""

import argparse
import logging
import statistics
import time
import warnings

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import LRRangeTest, lr_range_test
from lightning_tuning._trainer.lr_measurement import measure
from lightning_tuning.functional.lr_range_test import sweep_rates

STEPS = 100
RATES = sweep_rates(1e-7, 1e-2, STEPS, "exponential")


class Mlp(LightningModule):
    """A net whose step takes as long as its width says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(256, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(STEPS * 128, 256, generator=generator)
    labels = torch.randint(10, (STEPS * 128,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), 128, shuffle=True)


def bare_loop(module: Mlp, loader: DataLoader) -> float:
    optimizer = module.configure_optimizers()
    start = time.perf_counter()
    for rate, (inputs, labels) in zip(RATES, loader, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module.net(inputs), labels)
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - start


def trainer(*callbacks: Callback) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    return Trainer(
        max_steps=1,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=list(callbacks),
        **quiet,
    )


class Timed(Callback):
    """Times the sweep alone, inside a fit."""

    def on_train_start(self, trainer, pl_module):
        settings = LRRangeTest(RATES[0], end_lr=RATES[-1], suggestion="valley").settings
        start = time.perf_counter()
        result = measure(trainer, pl_module, settings)
        self.seconds = time.perf_counter() - start
        assert len(result.rates) == STEPS


def sweep(module: Mlp, loader: DataLoader) -> float:
    timed = Timed()
    trainer(timed).fit(module, loader)
    return timed.seconds


def function(module: Mlp, loader: DataLoader) -> float:
    start = time.perf_counter()
    lr_range_test(
        trainer(), module, loader, start_lr=RATES[0], end_lr=RATES[-1], suggestion="valley"
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 1000, 1600])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| width | bare loop, ms a step | sweep / bare | function / bare |\n|---|---|---|---|")
    for width in arguments.widths:
        times: dict[str, list[float]] = {"bare": [], "sweep": [], "function": []}
        for _ in range(arguments.repeats):
            for name, run in (("bare", bare_loop), ("sweep", sweep), ("function", function)):
                times[name].append(run(Mlp(width), data()))
        median = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"| {width} | {1000 * median['bare'] / STEPS:.1f} "
            f"| {median['sweep'] / median['bare']:.2f} "
            f"| {median['function'] / median['bare']:.2f} |"
        )


if __name__ == "__main__":
    main()
