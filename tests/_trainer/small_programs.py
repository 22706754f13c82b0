"""A small problem that a network learns in a hundred steps, and what topics say about programs."""

import contextlib

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.topic import judge

QUIET = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def sectors(count=256, batch_size=32):
    """Points of a plane with eight numbers of noise, in four classes by their quadrant."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 10, generator=generator)
    labels = (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0).long()
    return DataLoader(TensorDataset(inputs, labels), batch_size, shuffle=True)


class Base(LightningModule):
    """A network that learns them; each test changes what it is about."""

    def __init__(self, *layers):
        super().__init__()
        layers = layers or (nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Judges(Callback):
    def __init__(self, topics, *, ends=True):
        self.topics = topics
        self.findings = ()
        self.result = True
        self.ends = ends

    def on_train_start(self, trainer, pl_module):
        names = {name for topic in self.topics for name in topic.rules}
        with Probe(trainer, pl_module) as probe:
            self.findings = judge(probe, self.topics, names)
        if self.ends:
            raise KeyboardInterrupt


def found(topics, make, *, seed=0, **settings):
    """What topics say about a program before its fit: its findings by their code."""
    torch.manual_seed(seed)
    judges = Judges(topics if isinstance(topics, tuple) else (topics,))
    module = make()
    trainer = Trainer(**QUIET | settings, callbacks=[judges])
    with contextlib.suppress(SystemExit):
        trainer.fit(module, sectors(), sectors(64))
    return {finding.code: finding for finding in judges.findings}
