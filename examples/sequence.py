"""A GRU that predicts the next token, with the callbacks that `recipe()` recommends."""

import math

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import recipe

TOKENS, LENGTH = 12, 24


class NextToken(LightningModule):
    def __init__(self, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(TOKENS, 32)
        self.gru = nn.GRU(32, 64, batch_first=True)
        self.head = nn.Linear(64, TOKENS)

    def loss(self, tokens):
        logits = self.head(self.gru(self.embedding(tokens[:, :-1]))[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        return self.loss(batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch[0]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def sequences(count):
    """Each token is the sum of the two before it; one in ten is drawn at random."""
    tokens = torch.randint(TOKENS, (count, LENGTH))
    for place in range(2, LENGTH):
        follows = (tokens[:, place - 1] + tokens[:, place - 2]) % TOKENS
        tokens[:, place] = torch.where(torch.rand(count) < 0.9, follows, tokens[:, place])
    return TensorDataset(tokens)


def floor():
    """The loss of a predictor that knows the rule."""
    right, wrong = 0.9 + 0.1 / TOKENS, 0.1 / TOKENS
    known = -right * math.log(right) - (TOKENS - 1) * wrong * math.log(wrong)
    return (math.log(TOKENS) + known * (LENGTH - 2)) / (LENGTH - 1)


def fit(callbacks, seed=1):
    seed_everything(seed, verbose=False)
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=callbacks,
        log_every_n_steps=10,
        logger=TensorBoardLogger("."),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(sequences(2000), 32, shuffle=True), DataLoader(sequences(500), 500)
    trainer.fit(NextToken(), *data)
    return float(trainer.callback_metrics["val_loss"])


def main():
    plain, tuned = fit([]), fit(recipe(filter_monitor=False))  # it has no filters
    print(
        f"chance {math.log(TOKENS):.3f}, plain {plain:.3f}, recipe {tuned:.3f}, rule {floor():.3f}"
    )
    return plain, tuned


if __name__ == "__main__":
    main()
