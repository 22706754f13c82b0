"""Programs that are right but for the settings of their optimizer or Trainer."""

import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.broken_losses import on, progression, wine
from tests.corpus.program import images, loaders, pair


class Digits(LightningModule):
    """A small CNN; ``make_optimizers`` gets the parameters."""

    def __init__(self, make_optimizers):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 4, 10)
        self.make_optimizers = make_optimizers
        self.val_acc = torchmetrics.Accuracy(task="multiclass", num_classes=10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.val_acc(logits, y)
        self.log("val_acc", self.val_acc)
        self.log("val_loss", F.cross_entropy(logits, y))

    def configure_optimizers(self):
        return self.make_optimizers(self.parameters())


class Table(LightningModule):
    """An MLP for the wines."""

    def __init__(self, lr=1e-2, weight_decay=0.0):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.criterion(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        settings = {"lr": self.hparams.lr, "weight_decay": self.hparams.weight_decay}
        return torch.optim.AdamW(self.parameters(), **settings)


class Curve(LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def digits(make_optimizers):
    return Digits(make_optimizers), *loaders(*images())


def adam(wrong, right):
    def make(broken):
        lr = wrong if broken else right
        return digits(lambda params: torch.optim.Adam(params, lr=lr))

    return make


def sgd(**settings):
    return lambda params: torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9} | settings)


def decay(broken):
    """A scheduler meant for epochs, stepped at every batch."""

    def make(params):
        optimizer = torch.optim.SGD(params, lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.6)
        when = {"scheduler": scheduler, "interval": "step" if broken else "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": when}

    return digits(make)


def group(broken):
    """Two groups; the head's rate is a slip of the keyboard."""

    def make(params):
        *trunk, weight, bias = params
        head = {"params": [weight, bias], "lr": 5.0 if broken else 0.05}
        return torch.optim.SGD([{"params": trunk}, head], lr=0.05, momentum=0.9)

    return digits(make)


def on_table(name, wrong, right):
    return on(lambda broken: Table(**{name: wrong if broken else right}), wine)


TINY_CLIP = {"gradient_clip_val": 1e-4}
PAIRS = [
    pair("adam_lr_1", adam(1.0, 1e-2), "lr_too_high"),
    pair("sgd_lr_2", on(lambda b: Curve(2.0 if b else 0.02), progression), "lr_too_high",
         metric="val_mse"),
    pair("head_lr_5", group, "lr_too_high"),
    pair("adam_lr_1e-6", adam(1e-6, 1e-2), "lr_too_low"),
    pair("table_lr_1e-7", on_table("lr", 1e-7, 1e-2), "lr_too_low"),
    pair("sgd_lr_1e-5", on(lambda b: Curve(1e-5 if b else 0.02), progression), "lr_too_low",
         metric="val_mse"),
    pair("adamw_decay_50", on_table("weight_decay", 50.0, 0.01), "weight_decay_too_high"),
    pair("sgd_decay_1", lambda b: digits(sgd(weight_decay=1.0 if b else 1e-4)),
         "weight_decay_too_high"),
    pair("clip_1e-4", lambda b: digits(sgd()), "clip_too_small", trainer=TINY_CLIP,
         repaired={"gradient_clip_val": 1.0}),
    pair("momentum_0.999", lambda b: digits(sgd(momentum=0.999 if b else 0.9)),
         "momentum_too_high", "lr_too_high"),
    pair("decay_every_step", decay, "lr_decayed_too_fast", "lr_too_low"),
]  # fmt: skip
