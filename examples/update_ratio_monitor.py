"""How far do steps move the weights? A good learning rate, and two that are far off."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import UpdateRatioMonitor


class Digits(LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main():
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), 64, shuffle=True)

    for lr in (1e-3, 1e-7, 10.0):
        seed_everything(1)
        monitor = UpdateRatioMonitor()
        trainer = Trainer(
            max_epochs=8,
            accelerator="cpu",
            callbacks=[monitor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Digits(lr), loader)
        print(f"\nlearning rate {lr:g}: {len(monitor.result.steps)} steps measured")
        for finding in monitor.findings:
            if finding.verdict in ("warn", "fail") or finding.code == "update_ratio_low":
                print(f"  [{finding.verdict}] {finding.code}: {finding.message} {finding.hint}")
        monitor.result.plot().savefig(f"update_ratio_monitor_{lr:g}.png")


if __name__ == "__main__":
    main()
