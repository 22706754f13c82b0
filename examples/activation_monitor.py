"""What every layer puts out while a network learns digits: a right start, and two wrong ones."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import ActivationMonitor


class Digits(LightningModule):
    def __init__(self, lr=1e-3, bias=0.0):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        nn.init.constant_(self.net[2].bias, bias)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), 64, shuffle=True)

    programs = {
        "right": Digits(),
        "biases start at -20": Digits(bias=-20.0),
        "learning rate 1": Digits(lr=1.0),
    }
    for name, model in programs.items():
        monitor = ActivationMonitor()
        trainer = Trainer(
            max_epochs=5,
            accelerator="cpu",
            callbacks=[monitor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, loader)
        print(f"\n{name}:")
        for layer in monitor.result.layers:
            print(f"  {layer.name}: deviation {layer.std[0]:.2f} -> {layer.std[-1]:.2f}")
        for finding in monitor.findings:
            if finding.verdict in ("warn", "fail"):
                print(f"  [{finding.verdict}] {finding.code}: {finding.message} {finding.hint}")
        if name == "right":
            monitor.result.plot().savefig("activation_monitor.png")


if __name__ == "__main__":
    main()
