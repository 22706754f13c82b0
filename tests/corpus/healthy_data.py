"""Healthy programs: data that looks odd."""

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn import datasets
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from tests.corpus.healthy_shared import digits, loaders, rows, table
from tests.corpus.program import Program


class BinaryInputs(LightningModule):
    """Genes on or off; a third of them is never on, one is always on."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(60, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.binary_cross_entropy_with_logits(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_binary_inputs():
    x = (rows(1024, 60) > 1).float()
    x[:, :20], x[:, 20] = 0, 1
    return BinaryInputs(), *loaders(x, (x[:, 21:30].sum(1) > x[:, 30:39].sum(1)).float()[:, None])


class RawTable(LightningModule):
    """Wine as it was measured, from 0.1 to 1700; normalised by statistics found in a hook."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(13))
        self.register_buffer("std", torch.ones(13))
        self.net = nn.Sequential(nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 3))

    def on_train_start(self):
        x = torch.cat([batch[0] for batch in self.trainer.train_dataloader])
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0))

    def forward(self, x):
        return self.net((x - self.mean) / self.std)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class MissingValues(LightningModule):
    """NaN where nothing was measured: replaced, and marked by a second input, in the forward."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(30, affine=False)
        self.net = nn.Sequential(nn.Linear(60, 24), nn.ReLU(), nn.Linear(24, 2))

    def forward(self, x):
        missing = torch.isnan(x)
        x = self.norm(torch.nan_to_num(x))
        return self.net(torch.cat([x, missing.float()], 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def make_missing_values():
    x, y = table("breast_cancer")
    gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.15
    return MissingValues(), *loaders(x.masked_fill(gone, float("nan")), y, batch_size=32)


class Iris(LightningModule):
    """A tiny classifier for several loaders below."""

    def __init__(self, weight=None, inputs=4, classes=3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, classes))
        self.loss = nn.CrossEntropyLoss(weight=weight)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_sorted():
    """All of class 0, then 1, then 2, as the file has them; the loader shuffles."""
    x, y = datasets.load_iris(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    train, val = TensorDataset(x, y), TensorDataset(x[::9], y[::9])
    return Iris(), DataLoader(train, 16, shuffle=True), DataLoader(val, 16)


def make_batch_of_one():
    return Iris(), *loaders(*table("iris"), batch_size=1)


def make_other_validation():
    """Trained on balanced classes, validated on twelve examples, nine of class 0."""
    x, y = table("iris")
    order = torch.argsort(y, stable=True)
    held_out = torch.cat([order[:9], order[50:51], order[100:102]])
    kept = torch.ones(len(y), dtype=torch.bool)
    kept[held_out] = False
    train = TensorDataset(x[kept], y[kept])
    val = TensorDataset(x[held_out], y[held_out])
    return Iris(), DataLoader(train, 16, shuffle=True), DataLoader(val, 12)


def rare_class():
    x = rows(3000, 6)
    y = (x[:, 0] + x[:, 1] ** 2 > 3.5).long()
    return x[:2400], y[:2400], DataLoader(TensorDataset(x[2400:], y[2400:]), 600)


class Fraud(LightningModule):
    """One in thirteen is positive; balanced accuracy tells."""

    def __init__(self, weight=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
        self.register_buffer("weight", weight)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y, weight=self.weight)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        right = (self.net(x).argmax(1) == y).float()
        self.log("val_balanced_acc", (right[y == 0].mean() + right[y == 1].mean()) / 2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_weighted_sampler():
    x, y, val = rare_class()
    sampler = WeightedRandomSampler((1 / y.bincount().float())[y], len(y))
    return Fraud(), DataLoader(TensorDataset(x, y), 64, sampler=sampler), val


def make_weighted_loss():
    x, y, val = rare_class()
    weight = len(y) / (2 * y.bincount().float())
    return Fraud(weight), DataLoader(TensorDataset(x, y), 128, shuffle=True), val


class Stream(IterableDataset):
    """No length, no end, whole batches."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(4)
        while True:
            x = torch.randn(64, 6, generator=generator)
            yield x, (x[:, 0] * x[:, 1] > 0).long()


def make_stream():
    x = rows(512, 6)
    val = DataLoader(TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long()), 512)
    return Fraud(), DataLoader(Stream(), batch_size=None), val


@dataclasses.dataclass
class Batch:
    image: torch.Tensor
    label: torch.Tensor
    names: list

    @classmethod
    def collate(cls, samples):
        images, labels, names = zip(*samples, strict=True)
        return cls(torch.stack(images), torch.stack(labels), list(names))


class FromDataclass(LightningModule):
    """Batches are a dataclass of tensors and strings; augmented in Lightning's hook."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            noise = 0.1 * torch.randn_like(batch.image)
            return dataclasses.replace(batch, image=batch.image + noise)
        return batch

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch.image), batch.label)

    def validation_step(self, batch, batch_idx):
        acc = (self.net(batch.image).argmax(1) == batch.label).float().mean()
        self.log("val_acc", acc, batch_size=len(batch.label))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def make_dataclass():
    x, y = digits()
    data = [(a, b, f"scan-{i}") for i, (a, b) in enumerate(zip(x[:1200], y[:1200], strict=True))]
    train = DataLoader(data[:900], 32, shuffle=True, collate_fn=Batch.collate)
    return FromDataclass(), train, DataLoader(data[900:], 100, collate_fn=Batch.collate)


class Graph(NamedTuple):
    nodes: torch.Tensor
    adjacency: torch.Tensor
    labels: torch.Tensor
    seen: torch.Tensor


class NodeClassifier(LightningModule):
    """One graph is the whole data set: a batch of one, and every node depends on its neighbours."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, g):
        return g.adjacency @ self.w2(F.relu(g.adjacency @ self.w1(g.nodes)))

    def training_step(self, g, batch_idx):
        return F.cross_entropy(self(g)[g.seen], g.labels[g.seen])

    def validation_step(self, g, batch_idx):
        right = (self(g).argmax(1) == g.labels)[~g.seen]
        self.log("val_acc", right.float().mean(), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=5e-4)


def make_graph():
    labels = torch.arange(150) % 3
    chance = torch.rand(150, 150, generator=torch.Generator().manual_seed(0))
    links = (chance < torch.where(labels[:, None] == labels, 0.12, 0.01)).float()
    links = ((links + links.T + torch.eye(150)) > 0).float()
    nodes = 0.5 * F.one_hot(labels, 8) + rows(150, 8, seed=1)
    graph = Graph(nodes, links / links.sum(1, keepdim=True), labels, torch.arange(150) < 30)
    return NodeClassifier(), DataLoader([graph], batch_size=None), DataLoader([graph], None)


def make_raw_table():
    x, y = datasets.load_wine(return_X_y=True)
    order = torch.randperm(178, generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(x, dtype=torch.float32)[order], torch.tensor(y)[order]
    return RawTable(), *loaders(x, y, batch_size=16)


# seeds 0 to 2                   metric            untrained             trained
# binary_and_constant_inputs     val_loss          0.684 to 0.695        0.00602 to 0.00662
# raw_table_normalised_in_hook   val_acc           0.267 to 0.311        0.956 to 0.956
# missing_values_as_nan          val_loss          0.607 to 0.677        0.0615 to 0.0808
# sorted_but_shuffled            val_loss          1.02 to 1.36          0.126 to 0.154
# batch_size_one                 val_loss          1.13 to 1.31          0.114 to 0.147
# other_balance_in_validation    val_loss          1.04 to 1.4           0.0241 to 0.0253
# rare_class_sampler             val_balanced_acc  0.466 to 0.534        0.963 to 0.971
# rare_class_weighted_loss       val_balanced_acc  0.466 to 0.534        0.976 to 0.978
# endless_stream                 val_balanced_acc  0.47 to 0.52          0.978 to 0.982
# dataclass_batches              val_acc           0.0867 to 0.117       0.913 to 0.927
# one_graph                      val_acc           0.333 to 0.592        1 to 1
PROGRAMS = [
    Program("binary_and_constant_inputs", make_binary_inputs),
    Program("raw_table_normalised_in_hook", make_raw_table, metric="val_acc"),
    Program("missing_values_as_nan", make_missing_values),
    Program("sorted_but_shuffled", make_sorted),
    Program("batch_size_one", make_batch_of_one, steps=200),
    Program("other_balance_in_validation", make_other_validation),
    Program("rare_class_sampler", make_weighted_sampler, metric="val_balanced_acc"),
    Program("rare_class_weighted_loss", make_weighted_loss, metric="val_balanced_acc"),
    Program("endless_stream", make_stream, metric="val_balanced_acc", steps=200),
    Program("dataclass_batches", make_dataclass, metric="val_acc"),
    Program("one_graph", make_graph, metric="val_acc", steps=100),
]
