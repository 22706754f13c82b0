"""Which learning rate, weight decay and momentum? One sweep each, on handwritten digits."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import lr_range_test


class Digits(LightningModule):
    def __init__(self, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), 64, shuffle=True)
    trainer = Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    model = Digits()

    result = lr_range_test(trainer, model, loader, apply=True)
    print({name: f"{rate:.1e}" for name, rate in result.suggestions.items()})
    print(f"the module's rate is now {model.hparams.lr:.2e}")

    grid = lr_range_test(
        trainer,
        model,
        loader,
        suggestion="valley",
        weight_decays=[0.0, 1e-3, 1e-1],
        momenta=[0.8, 0.9],
        repeats=2,
    )
    print(f"best weight decay {grid.weight_decay}, best momentum {grid.momentum}")
    grid.plot().savefig("lr_range_test.png")

    trainer.fit(model, loader)


if __name__ == "__main__":
    main()
