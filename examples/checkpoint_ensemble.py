"""Snapshots from the ends of cosine cycles, and what they gain together, on handwritten digits."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import CheckpointEnsemble, EnsembleModule, WarmupDecay


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self(images), labels))

    def test_step(self, batch, batch_idx):
        images, labels = batch
        outputs = self(images)
        self.log("test_loss", nn.functional.cross_entropy(outputs, labels))
        self.log("test_accuracy", (outputs.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    # few training examples, so that there is something to gain
    train, val, test = random_split(data, [300, 300, 1197])
    ensemble = CheckpointEnsemble(collect="cycles", k=6)
    trainer = Trainer(
        max_epochs=60,
        accelerator="cpu",
        log_every_n_steps=5,
        enable_progress_bar=False,
        callbacks=[WarmupDecay(cycles=6, warmup_fraction=0.02), ensemble],
    )
    model = Digits()
    trainer.fit(model, DataLoader(train, 32, shuffle=True), DataLoader(val, 300))
    loader = DataLoader(test, 400)
    members = [EnsembleModule(model, [path]) for path in ensemble.paths]
    alone = [trainer.test(member, loader, verbose=False)[0] for member in members]
    [together] = trainer.test(EnsembleModule(model, ensemble.paths), loader, verbose=False)
    for name in ("test_loss", "test_accuracy"):
        best = (min if name == "test_loss" else max)(member[name] for member in alone)
        print(f"{name}: best of {len(alone)} snapshots {best:.4f}, together {together[name]:.4f}")
    return alone, together


if __name__ == "__main__":
    main()
