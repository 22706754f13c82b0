"""Find a learning rate and run one cycle with it, on handwritten digits.

Look at the result with ``tensorboard --logdir lightning_logs``.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import LRRangeTest, OneCycle


class Digits(LightningModule):
    def __init__(self, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


def data():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
    return DataLoader(train, 32, shuffle=True), DataLoader(val, 360)


def fit(*callbacks):
    seed_everything(1)
    trainer = Trainer(
        max_epochs=5,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=TensorBoardLogger("."),
        callbacks=[*callbacks, LearningRateMonitor("step", log_momentum=True)],
    )
    trainer.fit(Digits(), *data())
    return trainer


def main():
    before = fit()
    tuned = fit(LRRangeTest(), OneCycle())
    for name, trainer in (("lr=1e-3", before), ("LRRangeTest + OneCycle", tuned)):
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        print(f"{name:24} validation accuracy {accuracy:.3f}, logged in {trainer.log_dir}")


if __name__ == "__main__":
    main()
