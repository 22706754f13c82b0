"""What do the curves say? A good fit of handwritten digits, and three bad ones."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import LossCurveDiagnosis


class Digits(LightningModule):
    def __init__(self, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def curves_of(model, train, val, epochs=6):
    curves = LossCurveDiagnosis()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[curves],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train, val)
    return curves


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    train = DataLoader(TensorDataset(images[:1300], labels[:1300]), 64, shuffle=True)
    val = DataLoader(TensorDataset(images[1300:], labels[1300:]), 256)
    wrong = DataLoader(TensorDataset(images[:200], labels[:200].roll(1)), 50, shuffle=True)

    fits = {
        "good": (Digits(), train, 6),
        "learning rate 1e-6": (Digits(lr=1e-6), train, 6),
        "learning rate 3": (Digits(lr=3.0), train, 6),
        "labels of other images": (Digits(lr=1e-2), wrong, 60),
    }
    for name, (model, data, epochs) in fits.items():
        curves = curves_of(model, data, val, epochs)
        print(f"\n{name}:")
        for finding in curves.findings:
            if finding.verdict in ("warn", "fail"):
                print(f"  [{finding.verdict}] {finding.code}: {finding.message} {finding.hint}")
    curves.result.plot().savefig("loss_curve_diagnosis.png")


if __name__ == "__main__":
    main()
