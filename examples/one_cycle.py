"""One cycle of the learning rate on handwritten digits; see it with `tensorboard --logdir .`."""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import OneCycle


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


def main():
    seed_everything(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
    trainer = Trainer(
        max_epochs=10,
        accelerator="cpu",
        log_every_n_steps=5,
        enable_progress_bar=False,
        logger=TensorBoardLogger(".", name="lightning_logs"),
        # the peak is the optimizer's own rate, 0.5
        callbacks=[OneCycle(), LearningRateMonitor("step", log_momentum=True)],
    )
    trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(val, 360))
    print(f"validation accuracy: {float(trainer.callback_metrics['val_accuracy']):.3f}")


if __name__ == "__main__":
    main()
