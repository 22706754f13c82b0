"""Healthy programs: optimizers and Trainers' settings that look odd."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.healthy_shared import digits, loaders, rows, table
from tests.corpus.program import Program


class HandAccumulated(LightningModule):
    """Four batches to a step, each loss divided by four; zero_grad only after the step."""

    def __init__(self, every=4):
        super().__init__()
        self.automatic_optimization = False
        self.every = every
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        x, y = batch
        loss = F.cross_entropy(self.net(x), y) / self.every
        self.manual_backward(loss)
        if (batch_idx + 1) % self.every == 0 or self.trainer.is_last_batch:
            self.clip_gradients(opt, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            opt.step()
            opt.zero_grad()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Plain(LightningModule):
    """Nothing odd but its optimizer and its Trainer's arguments."""

    def __init__(self, configure):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.configure = configure

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return self.configure(self.parameters())


def warm_up(parameters):
    """The first step is taken with lr 0."""
    opt = torch.optim.SGD(parameters, lr=0.3, momentum=0.9)
    ramp = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1.0, step / 50))
    return {"optimizer": opt, "lr_scheduler": {"scheduler": ramp, "interval": "step"}}


class LBFGSRegression(LightningModule):
    """Calls the training step up to ten times on one batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(30, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        penalty = 1e-3 * self.linear.weight.pow(2).sum()
        return F.binary_cross_entropy_with_logits(self.linear(x)[:, 0], y.float()) + penalty

    def validation_step(self, batch, batch_idx):
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self.linear(x)[:, 0], y.float())
        self.log("val_loss", loss)

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=1.0, max_iter=10)


class SharpnessAware(LightningModule):
    """Two backwards per batch; in between the weights are somewhere else."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        opt = self.optimizers()
        opt.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(x), y))
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
            moves = [0.05 * p.grad / (norm + 1e-12) for p in self.parameters()]
            for p, move in zip(self.parameters(), moves, strict=True):
                p.add_(move)
        opt.zero_grad()
        loss = F.cross_entropy(self.net(x), y)
        self.manual_backward(loss)
        with torch.no_grad():
            for p, move in zip(self.parameters(), moves, strict=True):
                p.sub_(move)
        opt.step()
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class TrainOnly(LightningModule):
    """No validation at all; logs under a name of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        error = self.linear(x).squeeze(1) - y
        loss = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5).mean()
        self.log("huber", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def make_train_only():
    x = rows(512, 8)
    return TrainOnly(), loaders(x, x @ rows(8, 1)[:, 0] + 0.05 * rows(512, 1, 1)[:, 0])[0], None


def plain(configure, batch_size=64):
    return lambda: (Plain(configure), *loaders(*digits(), batch_size=batch_size))


# seeds 0 to 2                   metric            untrained             trained
# accumulated_by_hand            val_acc           0.0778 to 0.149       0.936 to 0.944
# accumulated_by_trainer         val_acc           0.0778 to 0.149       0.938 to 0.949
# clipped_hard                   val_acc           0.0778 to 0.149       0.947 to 0.953
# warm_up_from_zero              val_acc           0.0778 to 0.149       0.94 to 0.96
# lbfgs                          val_loss          0.661 to 0.754        0.0484 to 0.0768
# sharpness_aware                val_acc           0.0778 to 0.149       0.953 to 0.971
# no_validation                  huber             1.95 to 2.3           0.00126 to 0.00182
PROGRAMS = [
    Program(
        "accumulated_by_hand",
        lambda: (HandAccumulated(), *loaders(*digits())),
        metric="val_acc",
        steps=300,
    ),
    Program(
        "accumulated_by_trainer",
        plain(lambda parameters: torch.optim.Adam(parameters, lr=1e-2), batch_size=16),
        trainer={"accumulate_grad_batches": 4},
        metric="val_acc",
        steps=300,
    ),
    Program(
        "clipped_hard",
        plain(lambda parameters: torch.optim.Adam(parameters, lr=5e-3)),
        trainer={"gradient_clip_val": 0.1},
        metric="val_acc",
    ),
    Program("warm_up_from_zero", plain(warm_up), metric="val_acc"),
    Program("lbfgs", lambda: (LBFGSRegression(), *loaders(*table("breast_cancer"))), steps=20),
    Program("sharpness_aware", lambda: (SharpnessAware(), *loaders(*digits())), metric="val_acc"),
    Program("no_validation", make_train_only, metric="huber"),
]
