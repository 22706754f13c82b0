"""Does the loss start at ln C? A network with a last layer that is far too large, and mended."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import InitialLossCheck


class Digits(LightningModule):
    def __init__(self, scale):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.scale = scale

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.scale * self.net(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main():
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    for scale in (300.0, 1.0):
        seed_everything(1, verbose=False)
        check = InitialLossCheck()
        trainer = Trainer(
            max_steps=1,
            accelerator="cpu",
            logger=False,
            callbacks=[check],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Digits(scale), DataLoader(data, 64, shuffle=True))
        [finding] = check.findings
        print(f"logits times {scale:g}: [{finding.verdict}] {finding.message}")


if __name__ == "__main__":
    main()
