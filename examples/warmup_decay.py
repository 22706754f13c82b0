"""Warmup-stable-decay: one long plateau, from which fits of several lengths are finished."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import WarmupDecay


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
        self.log("val_loss", nn.functional.cross_entropy(self.net(images), labels))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)


def fit(loaders, epochs, *callbacks, decay="sqrt", ckpt_path=None):
    """Train up to so many epochs, a third of them on the way down; return the last loss."""
    # three steps of warm-up whatever the length
    schedule = WarmupDecay(decay=decay, decay_fraction=1 / 3, warmup_steps=3)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        log_every_n_steps=5,
        enable_progress_bar=False,
        callbacks=[schedule, *callbacks],
    )
    trainer.fit(Digits(), *loaders, ckpt_path=ckpt_path)
    return float(trainer.callback_metrics["val_loss"])


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
    loaders = [DataLoader(train, 32, shuffle=True), DataLoader(val, 360)]
    # the fit of 6 epochs leaves a checkpoint of its plateau, from which the longer one goes on
    plateau = ModelCheckpoint(every_n_epochs=4, save_top_k=-1)
    short = fit(loaders, 6, plateau)
    longer = fit(loaders, 12, plateau, ckpt_path=plateau.best_model_path)
    print(f"6 epochs: {short:.4f}; from epoch 4 of them on to 12: {longer:.4f}")
    return short, longer


if __name__ == "__main__":
    main()
