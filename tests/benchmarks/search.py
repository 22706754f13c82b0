"""A search from coarse to fine beside Optuna's TPE alone, and random search beside a grid.

    python tests/benchmarks/search.py --seeds 5 --draws 20

Both have the same ranges and the same number of training epochs in all, the repetitions of the last
candidates among them. What they choose is trained anew with seeds that no search has used, and
judged on test data. Random search and grid have the same number of trials on a real task with three
hyperparameters (Bergstra and Bengio 2012).
"""

import argparse
import logging
import statistics
import tempfile
import warnings

import optuna
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits, make_friedman1
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning.functional.search.ranges import as_space
from lightning_tuning.search import Stage, coarse_to_fine
from lightning_tuning.search.optuna_bridge import distributions, grid

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
STAGES = (
    Stage(trials=16, epochs=1, sampler="sobol"),
    Stage(trials=8, epochs=4, sampler="random"),
    Stage(trials=8, epochs=10, sampler="tpe"),
)
FINALISTS, REPEATS = 2, 2
EPOCHS = 10
BUDGET = sum(int(s.trials * s.epochs) for s in STAGES) + FINALISTS * REPEATS * EPOCHS
SPACE = {
    "lr": (1e-5, 10.0),
    "weight_decay": (1e-7, 1.0),
    "dropout": (0.0, 0.7),
    "width": (8, 256),
    "batch_size": [8, 16, 32, 64, 128],
}


class Model(LightningModule):
    def __init__(self, make, loss, lr, weight_decay, dropout, width):
        super().__init__()
        self.net, self.loss = make(width, dropout), loss
        self.lr, self.weight_decay = lr, weight_decay

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay)


def perceptron(inputs, outputs):
    return lambda width, dropout: nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )


class Rows(nn.Module):
    """Reads an image row by row."""

    def __init__(self, width, dropout):
        super().__init__()
        self.rows = nn.GRU(8, max(width // 4, 2), batch_first=True)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(max(width // 4, 2), 10)

    def forward(self, x):
        return self.head(self.drop(self.rows(x.view(-1, 8, 8))[0][:, -1]))


def digits():
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def friedman():
    x, y = make_friedman1(1500, noise=1.0, random_state=0)
    x, y = (torch.tensor(part, dtype=torch.float32) for part in (x, y))
    return (x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std())[:, None]


TASKS = {
    "digits, perceptron": (digits, perceptron(64, 10), nn.functional.cross_entropy),
    "digits, GRU over rows": (digits, Rows, nn.functional.cross_entropy),
    "Friedman's function, perceptron": (friedman, perceptron(10, 1), nn.functional.mse_loss),
}


def program(task, seed):
    """Return what makes the model, its data, and the loss of hyperparameters on test data."""
    make_data, make_net, loss = TASKS[task]
    x, y = make_data()
    generator = torch.Generator().manual_seed(seed)
    parts = random_split(TensorDataset(x, y), [400, 200, len(x) - 600], generator)
    train, val, test = parts

    def model(lr, weight_decay, dropout, width):
        return Model(make_net, loss, lr, weight_decay, dropout, width)

    def data(batch_size):
        return DataLoader(train, batch_size, shuffle=True, drop_last=True), DataLoader(val, 200)

    def fit(params, number, epochs=EPOCHS):
        seed_everything(number, verbose=False)
        params = dict(params)
        loaders = data(params.pop("batch_size"))
        trainer = Trainer(max_epochs=epochs, enable_checkpointing=False, **QUIET)
        module = model(**params)
        trainer.fit(module, *loaders)
        return trainer, module

    def tested(params):
        """Return the mean over new seeds of the test loss."""
        losses = []
        for number in range(3):
            trainer, module = fit(params, 7000 + 10 * seed + number)
            [found] = trainer.test(module, DataLoader(test, 500), verbose=False)
            losses.append(min(found["test_loss"], 10.0))
        return statistics.mean(losses)

    return model, data, fit, tested


def ours(task, seed):
    model, data, _, tested = program(task, seed)
    with tempfile.TemporaryDirectory() as folder:
        found = coarse_to_fine(
            model, data, SPACE, STAGES, trainer=QUIET, finalists=FINALISTS, repeats=REPEATS,
            widenings=0, folder=folder, seed=seed,
        )  # fmt: skip
    trials = [t for s in found.stages for t in s.trials]
    return tested(found.best_params), sum(len(t.curve) for t in trials)


def tpe(task, seed):
    _, _, fit, tested = program(task, seed)
    space = distributions(as_space(SPACE))

    def objective(trial):
        trainer, _ = fit(trial.params, seed)
        value = float(trainer.callback_metrics["val_loss"])
        return value if value == value else 1e9

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(BUDGET // EPOCHS):
        trial = study.ask(space)
        study.tell(trial, objective(trial))
    return tested(study.best_params), len(study.trials) * EPOCHS


def against_tpe(seeds):
    print("| task | coarse to fine, test loss | TPE alone, test loss | ratio of means | better in |"
          " epochs |\n| --- | --- | --- | --- | --- | --- |")  # fmt: skip
    for task in TASKS:
        mine, theirs = (list(zip(*(way(task, s) for s in range(seeds)), strict=True))
                        for way in (ours, tpe))  # fmt: skip
        told = [
            f"{statistics.mean(v):.4f} (deviation {statistics.stdev(v):.4f}, {min(v):.4f} to"
            f" {max(v):.4f})"
            for v in (mine[0], theirs[0])
        ]
        wins = sum(a < b for a, b in zip(mine[0], theirs[0], strict=True))
        ratio = statistics.mean(mine[0]) / statistics.mean(theirs[0])
        epochs = f"{statistics.mean(mine[1]):.0f} and {statistics.mean(theirs[1]):.0f}"
        print(f"| {task} | {told[0]} | {told[1]} | {ratio:.2f} | {wins} of {seeds} | {epochs} |",
              flush=True)  # fmt: skip


def random_and_grid(draws):
    """Compare the best of so many trials, over many draws from one pool of trained points."""
    _, _, fit, _ = program("digits, perceptron", 0)
    space = as_space({k: SPACE[k] for k in ("lr", "weight_decay", "dropout")})
    fixed = {"width": 64, "batch_size": 32}

    def value(params):
        trainer, _ = fit({**params, **fixed}, 0, 4)
        found = float(trainer.callback_metrics["val_loss"])
        return found if found == found else 10.0

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    pool = [value(study.ask(distributions(space)).params) for _ in range(160)]
    generator = torch.Generator().manual_seed(0)
    print("\n| trials | grid | random, median of draws | random, 10th to 90th percentile |"
          " random is better in |\n| --- | --- | --- | --- | --- |")  # fmt: skip
    for side in (2, 3, 4):
        points = grid(space, side**3)
        values = [
            value({"lr": lr, "weight_decay": decay, "dropout": dropout})
            for lr in points["lr"]
            for decay in points["weight_decay"]
            for dropout in points["dropout"]
        ]
        best = []
        for _ in range(draws):
            chosen = torch.randperm(len(pool), generator=generator)[: side**3]
            best.append(min(pool[i] for i in chosen))
        best.sort()
        low, high = best[len(best) // 10], best[-1 - len(best) // 10]
        wins = sum(b < min(values) for b in best) / len(best)
        print(f"| {side**3} | {min(values):.4f} | {statistics.median(best):.4f} | {low:.4f} to"
              f" {high:.4f} | {wins:.0%} of draws |", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    random_and_grid(arguments.draws)
    against_tpe(arguments.seeds)


if __name__ == "__main__":
    main()
