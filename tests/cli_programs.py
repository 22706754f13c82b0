"""A module and its data, as a configuration file names them."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from tests.toys import loader


class Net(LightningModule):
    def __init__(self, width: int = 8, lr: float = 0.05, softmax: bool = False):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))

    def training_step(self, batch, batch_idx):
        outputs = self.net(batch[0])
        if self.hparams.softmax:
            outputs = outputs.softmax(1)
        return nn.functional.cross_entropy(outputs, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Data(LightningDataModule):
    def __init__(self, batch_size: int = 4):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return loader(batch_size=self.batch_size)
