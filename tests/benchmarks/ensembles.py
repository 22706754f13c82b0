"""What ensembles gain over single fits, with spread, and what members cost one by one or at once.

    python tests/benchmarks/ensembles.py --repeats 5

Every repetition has its own split, its own seeds and a test set that no choice has seen. A single
fit and the ensembles out of one fit have the same number of steps; that of seeds has as many fits
as members. Times are medians of forward passes over one batch.
"""

import argparse
import logging
import pathlib
import statistics
import tempfile
import time
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_diabetes, load_digits, make_friedman1
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import CheckpointEnsemble, EnsembleModule, OneCycle, WarmupDecay, soup

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
MEMBERS = 5


class Model(LightningModule):
    """A network, its loss, and the loss on test data."""

    def __init__(self, net, loss, lr):
        super().__init__()
        self.net, self.loss, self.lr = net, loss, lr

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def standard(x):
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-6)


def digits():
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def values(x, y):
    x, y = (standard(torch.tensor(part, dtype=torch.float32)) for part in (x, y))
    return x, y[:, None]


def perceptron(inputs, outputs, width=128):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


# name: (data, network, loss, learning rate, training examples, how outputs are averaged)
TASKS = {
    "digits, perceptron": (
        digits,
        lambda: perceptron(64, 10),
        nn.functional.cross_entropy,
        0.2,
        300,
        "probabilities",
    ),
    "digits, CNN with BatchNorm": (
        digits,
        cnn,
        nn.functional.cross_entropy,
        0.05,
        300,
        "probabilities",
    ),
    "Friedman's function, perceptron": (
        lambda: values(*make_friedman1(1500, noise=2.0, random_state=0)),
        lambda: perceptron(10, 1),
        nn.functional.mse_loss,
        0.05,
        300,
        "mean",
    ),
    "diabetes, perceptron": (
        lambda: values(*load_diabetes(return_X_y=True)),
        lambda: perceptron(10, 1),
        nn.functional.mse_loss,
        0.02,
        200,
        "mean",
    ),
}


def repetition(task, seed):
    """Return the test loss of each way, of one split and one set of seeds."""
    make_data, make_net, loss, lr, count, how = task
    x, y = make_data()
    split = [count, count // 3, len(x) - count - count // 3]
    parts = random_split(TensorDataset(x, y), split, torch.Generator().manual_seed(seed))
    val, test = (DataLoader(part, 500) for part in parts[1:])

    def fit(number, *callbacks):
        seed_everything(1000 * seed + number, verbose=False)
        model = Model(make_net(), loss, lr)
        trainer = Trainer(max_epochs=60, callbacks=list(callbacks), **QUIET)
        trainer.fit(model, DataLoader(parts[0], 32, shuffle=True, drop_last=True), val)
        return model

    def tested(model):
        return Trainer(**QUIET).test(model, test, verbose=False)[0]["test_loss"]

    def together(members):
        return tested(EnsembleModule(Model(make_net(), loss, lr), members, combine=how))

    def collecting(collect, folder):
        settings = {"k": MEMBERS, "combine": how, "judge": False}
        return CheckpointEnsemble(collect=collect, dirpath=folder, **settings)

    with tempfile.TemporaryDirectory() as place:
        best, last, cycles = (
            collecting(which, str(pathlib.Path(place, which)))
            for which in ("best", "last", "cycles")
        )
        single = fit(0, OneCycle(lr), best, last)
        found = {"single fit, one cycle": tested(single)}
        fit(0, WarmupDecay(lr, cycles=MEMBERS, warmup_fraction=0.02), cycles)
        found[f"its best {MEMBERS} epochs"] = together(best.paths)
        found[f"its last {MEMBERS} epochs"] = together(last.paths)
        loader = DataLoader(parts[0], 100)
        found[f"weights of the last {MEMBERS} epochs averaged"] = tested(
            soup(single, last.paths, loader=loader).model
        )
        found["snapshots: the last one alone"] = together(cycles.paths[:1])
        found[f"snapshots: all {MEMBERS}"] = together(cycles.paths)
    others = [fit(number, OneCycle(lr)) for number in range(1, MEMBERS)]
    found[f"{MEMBERS} seeds ({MEMBERS} times the steps)"] = together([single, *others])
    return found


def gains(repeats):
    for name, task in TASKS.items():
        rows = [repetition(task, seed) for seed in range(repeats)]
        first = next(iter(rows[0]))
        print(
            f"\n| {name}: test loss of {repeats} repetitions | mean | deviation | : single fit"
            " (mean, least, most) |\n| --- | --- | --- | --- |"
        )
        for way in rows[0]:
            losses = [row[way] for row in rows]
            ratios = [row[way] / row[first] for row in rows]
            print(
                f"| {way} | {statistics.mean(losses):.4f} | {statistics.stdev(losses):.4f} |"
                f" {statistics.mean(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) |",
                flush=True,
            )


def times():
    print(
        "\n| forward pass of members | batch | one by one, ms | at once, ms | ratio |"
        "\n| --- | --- | --- | --- | --- |"
    )
    for name, make, inputs in (
        ("perceptron of width 32", lambda: perceptron(64, 10, 32), 64),
        ("perceptron of width 1024", lambda: perceptron(64, 10, 1024), 64),
        ("CNN", cnn, 64),
    ):
        for members in (5, 50):
            for batch in (32, 512):
                x = torch.randn(batch, inputs)
                made = Model(make(), None, 0.1).eval()
                weights = [Model(make(), None, 0.1) for _ in range(members)]
                both = [EnsembleModule(made, weights, vectorize=v).eval() for v in (False, True)]
                taken = [[], []]
                with torch.no_grad():
                    for ensemble in both:
                        ensemble(x)
                    for _ in range(15):
                        for ensemble, seconds in zip(both, taken, strict=True):
                            begin = time.perf_counter()
                            ensemble(x)
                            seconds.append(time.perf_counter() - begin)
                loop, once = (1000 * statistics.median(seconds) for seconds in taken)
                print(
                    f"| {members} of a {name} | {batch} | {loop:.2f} | {once:.2f} |"
                    f" {once / loop:.2f} |",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    gains(arguments.repeats)
    times()


if __name__ == "__main__":
    main()
