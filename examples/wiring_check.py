"""Four mistakes in one training program on handwritten digits, found before the first step."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import WiringCheck


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(64, 64)]  # a plain list: nobody knows its parameters
        self.head = nn.Linear(64, 10)

    def forward(self, images):
        hidden = torch.relu(self.layers[0](images))
        return self.head(nn.functional.dropout(hidden, 0.5)).softmax(1)  # dropout without training=

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)  # it takes logits

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        scores = self(images)
        self.log("val_loss", nn.functional.cross_entropy(scores, labels))
        predicted = scores.argmax(0)  # over the batch, not over the classes
        self.log("val_accuracy", (predicted == labels[:10]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
    check = WiringCheck()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[check],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(val, 72))
    for finding in check.findings:
        if finding.verdict in ("warn", "fail"):
            print(f"[{finding.verdict}] {finding.code}: {finding.message}")
            print(f"    {finding.hint}")


if __name__ == "__main__":
    main()
