"""Can twenty handwritten digits be learnt by heart? A right program, and two wrong ones."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import OverfitBatchCheck


class Digits(LightningModule):
    def __init__(self, lr=1e-3, sees=1.0):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images * self.hparams.sees), labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def check(model, loader):
    overfit = OverfitBatchCheck()
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        callbacks=[overfit],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    return overfit


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    loader = DataLoader(TensorDataset(images, torch.tensor(digits.target)), 64, shuffle=True)

    programs = {
        "right": Digits(),
        "learning rate 1": Digits(lr=1.0),
        "input times zero": Digits(sees=0.0),
    }
    for name, model in programs.items():
        overfit = check(model, loader)
        result = overfit.result
        print(f"\n{name}: {result.start:.2f} -> {result.best.reached:.4f} at {result.best.rate:g}")
        for finding in overfit.findings:
            if finding.verdict in ("warn", "fail") or finding.code == "batch_overfitted":
                print(f"  [{finding.verdict}] {finding.code}: {finding.message} {finding.hint}")
    result.plot().savefig("overfit_batch_check.png")


if __name__ == "__main__":
    main()
