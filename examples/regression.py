"""Regression with raw targets: what a program makes of them, and what it should."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import OneCycle, lr_range_test, preflight


class Diabetes(LightningModule):
    def __init__(self, lr=1e-3, mean=0.0, std=1.0):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, inputs):
        """Return the progression in its own unit."""
        return self.net(inputs)[:, 0] * self.hparams.std + self.hparams.mean

    def loss(self, batch):
        inputs, targets = batch
        return nn.functional.mse_loss(self(inputs), targets) / self.hparams.std**2

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))
        self.log("val_rmse", nn.functional.mse_loss(self(batch[0]), batch[1]).sqrt())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def trainer(*callbacks):
    return Trainer(
        max_epochs=20,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def rmse(model, train, val, *callbacks):
    (run := trainer(*callbacks)).fit(model, train, val)
    return float(run.callback_metrics["val_rmse"])


def main():
    seed_everything(1)
    inputs, targets = (torch.tensor(part).float() for part in load_diabetes(return_X_y=True))
    parts = random_split(TensorDataset(inputs, targets), [300, 142])
    train, val = DataLoader(parts[0], 32, shuffle=True), DataLoader(parts[1], 142)
    known, asked = targets[parts[0].indices], targets[parts[1].indices]
    mean, std = known.mean().item(), known.std().item()
    found = {"the mean for everyone": (asked - mean).square().mean().sqrt().item()}

    for name, settings in {"raw": {}, "scaled": {"mean": mean, "std": std}}.items():
        checks = ["wiring_check", "initial_loss_check"]
        result = preflight(trainer(), Diabetes(**settings), train, val, checks=checks, folder=None)
        print(name, "targets:", result.findings[-1].message)
        lr = lr_range_test(trainer(), Diabetes(**settings), train, val).suggestion
        found[f"{name}, lr=1e-3"] = rmse(Diabetes(**settings), train, val)
        tuned = Diabetes(lr, **settings)
        found[f"{name}, lr={lr:.1e} and one cycle"] = rmse(tuned, train, val, OneCycle())
    for name, error in found.items():
        print(f"{error:6.1f}  {name}")
    return found


if __name__ == "__main__":
    main()
