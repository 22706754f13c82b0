"""An ensemble of fits with different seeds against its members, on a noisy regression."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import EnsembleModule, OneCycle


class Progression(LightningModule):
    def __init__(self, features=10):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, x):
        return self.net(x).squeeze(1)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_mse", loss)
        return loss

    def test_step(self, batch, batch_idx):
        self.log("test_mse", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def main():
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    train, test = TensorDataset(x[:300], y[:300]), DataLoader(TensorDataset(x[300:], y[300:]), 142)
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    members = []
    for seed in range(5):
        seed_everything(seed, verbose=False)
        members.append(Progression())
        trainer = Trainer(max_epochs=40, callbacks=[OneCycle()], **settings)
        trainer.fit(members[-1], DataLoader(train, 32, shuffle=True))
    judge = Trainer(**settings)
    alone = [judge.test(member, test, verbose=False)[0]["test_mse"] for member in members]
    ensemble = EnsembleModule(Progression(), members, combine="mean")
    together = judge.test(ensemble, test, verbose=False)[0]["test_mse"]
    ensemble.save("ensemble.pt")
    loaded = EnsembleModule.load("ensemble.pt", Progression())
    again = judge.test(loaded, test, verbose=False)[0]["test_mse"]
    print("members:", ", ".join(f"{mse:.3f}" for mse in sorted(alone)))
    print(f"together: {together:.3f}, loaded from one file: {again:.3f}")
    return alone, together


if __name__ == "__main__":
    main()
