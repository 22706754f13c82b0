"""What does a first layer look for? Handwritten digits, with their own labels and with others'."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import FilterMonitor


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32 * 32, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images.flatten(1)), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train(images, labels):
    seed_everything(1)
    monitor = FilterMonitor()
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), DataLoader(TensorDataset(images, labels), 32, shuffle=True))
    return monitor


def main():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, size=32, mode="bilinear")
    labels = torch.tensor(digits.target)

    right = train(images, labels)
    shuffled = train(images, labels[torch.randperm(len(labels))])
    for name, monitor in (("right", right), ("shuffled labels", shuffled)):
        smoothness = ", ".join(f"{value:.2f}" for value in monitor.result.smoothness)
        print(f"\n{name}: smoothness of the filters {smoothness}")
        for finding in monitor.findings:
            print(f"  [{finding.verdict}] {finding.code}: {finding.message} {finding.hint}")
    right.result.plot().savefig("filter_monitor.png")


if __name__ == "__main__":
    main()
