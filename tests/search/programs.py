"""A model with a known best learning rate, in milliseconds."""

import os
import time

import optuna
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning.search import Stage, coarse_to_fine

QUIET = {"accelerator": "cpu", "logger": False}
BEST = 1e-2


class Bowl(LightningModule):
    """Validates to (log10(lr / BEST))^2, plus a little by seed, and less with each epoch."""

    def __init__(self, lr, width=8, *, noise=0.0, seconds=0.0, fails_above=None, nan_above=None):
        super().__init__()
        self.net = nn.Linear(2, 1)
        self.lr, self.noise, self.seconds = lr, noise * float(torch.randn(())), seconds
        self.fails_above, self.nan_above = fails_above, nan_above
        self.width = width

    def training_step(self, batch, batch_idx):
        if self.fails_above is not None and self.lr > self.fails_above:
            raise RuntimeError("of my own")
        time.sleep(self.seconds)
        return self.net(batch[0]).mean() * 0.0

    def validation_step(self, batch, batch_idx):
        far = torch.log10(torch.tensor(self.lr / BEST)) ** 2
        value = far + self.noise + 0.1 / (1 + self.current_epoch)
        if self.nan_above is not None and self.lr > self.nan_above:
            value = torch.tensor(float("nan"))
        self.log("val_loss", value, sync_dist=True)
        self.log("val/score", -value, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def data():
    loader = DataLoader(TensorDataset(torch.ones(8, 2)), 2)
    return loader, loader


SPACE = {"lr": (1e-5, 1.0)}
STAGES = [
    Stage(trials=6, epochs=0.5, sampler="sobol", prune=False),
    Stage(trials=5, epochs=1, sampler="tpe"),
]


def search(make=Bowl, space=None, stages=None, **settings):
    settings = {"trainer": QUIET, "finalists": 2, "repeats": 2, "folder": "found", **settings}
    return coarse_to_fine(make, data, space or SPACE, stages or STAGES, **settings)


def slowly(lr):
    """A trial takes about half a second."""
    return Bowl(lr, seconds=0.12)


def worker(storage=None):
    """One of several processes; returns which trials it has run itself, and the winner."""
    result = search(slowly, stages=[Stage(trials=8, epochs=1, prune=False)], storage=storage)
    return os.getpid(), dict(result.best_params), [len(stage.trials) for stage in result.stages]


def serve_grpc(port):
    """Serve a journal file, until killed."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend("behind.log")
    )
    optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port=port)
