"""Cycles between the bounds of a range test; the model at the end of each cycle is judged."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import CyclicalLR, LRRangeTest


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
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Losses(Callback):
    """Notes the validation loss after each epoch."""

    def __init__(self):
        self.values = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.values.append(float(trainer.callback_metrics["val_loss"]))


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
    cycles, losses = CyclicalLR(cycle_epochs=4), Losses()
    trainer = Trainer(
        max_epochs=16,
        accelerator="cpu",
        log_every_n_steps=5,
        enable_progress_bar=False,
        callbacks=[LRRangeTest(), cycles, losses],
    )
    trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(val, 360))
    low, high = cycles.result.base_lr[0], cycles.result.max_lr[0]
    print(f"cycles between {low:.2g} and {high:.2g}, ended at steps {cycles.result.cycle_ends}")
    peaks, ends = losses.values[1::4], losses.values[3::4]
    for number, (peak, end) in enumerate(zip(peaks, ends, strict=True), 1):
        print(f"cycle {number}: validation loss {peak:.3f} after its peak, {end:.3f} at its end")
    return peaks, ends


if __name__ == "__main__":
    main()
