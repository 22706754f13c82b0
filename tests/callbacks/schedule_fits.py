"""Fits under a schedule, and what they are watched with."""

import types

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from tests.toys import Classifier, loader


class Recorder(Callback):
    """Notes (LR, momentum or beta1) of every group before each batch, and the number of steps."""

    def __init__(self):
        self.values = []
        self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.values.append([(float(g["lr"]), _momentum(g)) for g in groups])
        self.steps = trainer.global_step

    def first(self):
        return [values[0] for values in self.values]


def _momentum(group):
    return float(group["betas"][0]) if "betas" in group else group.get("momentum")


class SaveAfter(Callback):
    """Saves a checkpoint after so many batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint("saved.ckpt")


def fit(module=None, *callbacks, data=None, ckpt_path=None, **settings):
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "limit_val_batches": 0,
        **settings,
    }
    trainer = Trainer(callbacks=list(callbacks), **settings)
    module = Classifier() if module is None else module
    trainer.fit(module, loader() if data is None else data, loader(4), ckpt_path=ckpt_path)
    return trainer


def same_batches():
    """The same batch every time: a plain loader starts anew after a resume, which is no matter."""
    return DataLoader([loader().dataset[0]] * 24, 4)


def weights(trainer):
    return {k: v.clone() for k, v in trainer.lightning_module.state_dict().items()}


def assert_equal_weights(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


class FakeRangeTest(Callback):
    """Sets rates in on_train_start, as a range test does; the first one seen is noted."""

    def __init__(self, suggestion, apply=True):
        self.suggestion, self.apply = suggestion, apply
        self.result = None

    def on_train_start(self, trainer, pl_module):
        groups = trainer.optimizers[0].param_groups
        self.seen = [(group["lr"], group["momentum"]) for group in groups]
        self.result = types.SimpleNamespace(
            suggestion=self.suggestion, lr_range=(0.1, 1.0), optimizer=None
        )
        if self.apply and self.suggestion is not None:
            largest = max(group["lr"] for group in groups)
            for group in groups:
                group["lr"] *= self.suggestion / largest
