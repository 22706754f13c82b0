"""Two versions of a hand-written activation on scikit-learn's digits: one backward is wrong.

The wrong one trains too, only worse; ``GradientCheck`` says before the first step what is wrong.
"""

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import GradientCheck


class Swish(torch.autograd.Function):
    """x * sigmoid(x), keeping only its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s + x * s * (1 - s))


class HalfSwish(Swish):
    """The same with one of the two terms of the product rule."""

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * x * s * (1 - s)


class Digits(LightningModule):
    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.into, self.out = nn.Linear(64, 32), nn.Linear(32, 10)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.out(self.activation.apply(self.into(x))), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main():
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(labels))
    for activation in (Swish, HalfSwish):
        seed_everything(0)
        check = GradientCheck()
        trainer = Trainer(max_epochs=1, callbacks=[check], logger=False, enable_checkpointing=False)
        trainer.fit(Digits(activation), DataLoader(data, 64, shuffle=True))
        for finding in check.findings:
            print(f"{activation.__name__}: [{finding.verdict}] {finding.message}")


if __name__ == "__main__":
    main()
