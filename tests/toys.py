"""Small modules and data that tests share."""

import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def loader(samples=24, batch_size=4, *, shuffle=False, features=6, classes=3):
    """Random inputs and labels; the same ones at every call."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(samples, features, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), batch_size, shuffle=shuffle)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class Classifier(LightningModule):
    """Two linear layers.

    ``optimizer`` makes the optimizer from parameters or groups; ``scheduler``, if given, makes a
    scheduler from the optimizer; with ``groups`` each layer is a parameter group of its own.
    """

    def __init__(self, optimizer=None, scheduler=None, groups=(), features=6, classes=3):
        super().__init__()
        torch.manual_seed(11)
        self.net = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, classes))
        self.make_optimizer = optimizer or sgd
        self.make_scheduler = scheduler
        self.group_lrs = groups

    def forward(self, inputs):
        return self.net(inputs)

    def loss(self, batch):
        inputs, labels = batch
        return nn.functional.cross_entropy(self(inputs), labels)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch), sync_dist=True)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        params = self.parameters()
        if self.group_lrs:
            layers = [layer for layer in self.net if isinstance(layer, nn.Linear)]
            params = [
                {"params": list(layer.parameters()), "lr": lr}
                for layer, lr in zip(layers, self.group_lrs, strict=True)
            ]
        optimizer = self.make_optimizer(params)
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [self.make_scheduler(optimizer)]


class Manual(Classifier):
    """Two optimizers, stepped by hand: the first on every batch, the second on every ``every``."""

    def __init__(self, every=1, **settings):
        super().__init__(**settings)
        self.automatic_optimization = False
        self.every = every

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = self.loss(batch)
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        if (batch_idx + 1) % self.every == 0:
            second.step()
            second.zero_grad()
        self.log("train_loss", loss)

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.net[0].parameters(), lr=0.1, momentum=0.9),
            torch.optim.AdamW(self.net[2].parameters(), lr=0.01),
        ]


class OwnScheduler:
    """Not one of torch's; holds rates that nobody can guess."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class WithOwnScheduler(Classifier):
    """Steps it by hand, as Lightning asks for."""

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()


class Rates(Callback):
    """Notes the rates of all groups at every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = [group for o in trainer.optimizers for group in o.param_groups]
        self.seen.append([float(group["lr"]) for group in groups])
