"""A search from coarse to fine on handwritten digits; its winner's fits become an ensemble."""

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import EnsembleModule
from lightning_tuning.search import Stage, coarse_to_fine

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Digits(LightningModule):
    def __init__(self, lr, weight_decay, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.lr, self.weight_decay = lr, weight_decay

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        outputs = self.net(batch[0])
        self.log("test_loss", nn.functional.cross_entropy(outputs, batch[1]))
        self.log("test_accuracy", (outputs.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay)


def main():
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    train, val, test = random_split(data, [900, 300, 597], torch.Generator().manual_seed(1))

    def loaders(batch_size):
        return DataLoader(train, batch_size, shuffle=True), DataLoader(val, 300)

    result = coarse_to_fine(
        Digits,
        loaders,
        {
            "lr": (1e-6, 10.0),
            "weight_decay": (1e-6, 1.0),
            "width": (8, 256),
            "batch_size": [16, 64],
        },
        [
            Stage(trials=12, epochs=1, sampler="sobol"),
            Stage(trials=6, epochs=4),
            Stage(trials=6, epochs=8, sampler="tpe"),
        ],
        trainer=QUIET,
    )
    print(result.to_yaml())
    model = Digits(**{name: result.best_params[name] for name in ("lr", "weight_decay", "width")})
    ensemble = EnsembleModule(model, result.checkpoints)
    [found] = Trainer(**QUIET).test(ensemble, DataLoader(test, 597), verbose=False)
    print(f"the winner's {len(result.checkpoints)} seeds together: {found['test_accuracy']:.3f}")
    return result, found


if __name__ == "__main__":
    main()
