"""Averaged weights on a noisy task; see both curves with `tensorboard --logdir .`."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import EMAWeights


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        scores = self.net(images)
        self.log("val_loss", nn.functional.cross_entropy(scores, labels))
        self.log("val_accuracy", (scores.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        # small batches and a rate that never falls: the weights jump around what they look for
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def fit(seed, max_epochs=10):
    """Return what the last validation logged, for averaged and for raw weights."""
    seed_everything(seed, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    train, val = random_split(TensorDataset(images, labels), [1437, 360])
    # every tenth label of the training data is wrong
    wrong = torch.tensor(train.indices)[::10]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, wrong.shape)) % 10
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(".", name="lightning_logs"),
        # judges the averaged weights and, under names that end in _raw, the others too
        callbacks=[EMAWeights(half_life="0.5 epochs", validate="both")],
    )
    trainer.fit(Digits(), DataLoader(train, 8, shuffle=True), DataLoader(val, 360))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def main():
    found = fit(seed=1)
    for name in ("val_loss", "val_accuracy"):
        print(f"{name}: {found[name]:.3f} averaged, {found[name + '_raw']:.3f} raw")


if __name__ == "__main__":
    main()
