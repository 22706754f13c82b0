"""CS231n's seven steps on one program: from a broken network to a tuned one, on real digits."""

# %% A program with five mistakes; `mended=1` is without three of them, `mended=2` without the next
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, dropout, max_pool2d
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import EMAWeights, LossCurveDiagnosis, OneCycle, lr_range_test, preflight


class Digits(LightningModule):
    def __init__(self, mended=0, lr=1e-6, weight_decay=0.0, width=8):
        super().__init__()
        self.save_hyperparameters()
        convs = [nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)]
        self.convs = nn.ModuleList(convs) if mended else convs
        self.head = nn.Linear(8 * width, 10)
        if mended < 2:
            nn.init.normal_(self.head.weight)

    def forward(self, images):
        images = images / 16 if self.hparams.mended >= 2 else images
        for conv in self.convs:
            images = max_pool2d(conv(images).relu(), 2)
        images = dropout(images.flatten(1), 0.3, self.training or not self.hparams.mended)
        return self.head(images) if self.hparams.mended else self.head(images).softmax(1)

    def training_step(self, batch, batch_idx):
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val_loss", cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        own = self.hparams
        return torch.optim.AdamW(self.parameters(), lr=own.lr, weight_decay=own.weight_decay)


seed_everything(1)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)
parts = random_split(TensorDataset(images, torch.tensor(labels)), [1000, 797])
data = DataLoader(parts[0], 32, shuffle=True), DataLoader(parts[1], 797)
names = "logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"
quiet = {"accelerator": "cpu", **dict.fromkeys(names, False)}
trainer = Trainer(max_epochs=3, **quiet)


def fit(epochs, *callbacks, **settings):
    seed_everything(1, verbose=False)
    run = Trainer(max_epochs=epochs, callbacks=[*callbacks], **quiet)
    run.fit(Digits(**settings), *data)
    told = {name: round(float(value), 3) for name, value in run.callback_metrics.items()}
    print(*(f"{name}={value:.3g}" for name, value in settings.items()), told)
    return told


# %% Steps 1 and 2: is the program right? First as it is, then after each mend
before = fit(3)
checked = preflight(trainer, Digits(), *data, checks=["wiring_check"], folder=None)
start = preflight(trainer, Digits(1), *data, checks=["initial_loss_check"], folder=None)
tiny = preflight(trainer, Digits(2), *data, checks=["overfit_batch_check"], folder=None)
# %% Steps 3 and 4: a learning rate that makes the loss go down, and a coarse grid around it
found = lr_range_test(trainer, Digits(2), *data)
best = lr_range_test(trainer, Digits(2), *data, weight_decays=[0, 0.01, 1])
rates = [found.suggestion * factor for factor in (0.03, 0.3, 1, 3, 10)]
grid = [fit(3, mended=2, lr=lr, weight_decay=decay) for decay in (0.01, 1) for lr in rates]
# %% Steps 5 and 6: train longer, on one cycle, and look at the curves
fit(5, curves := LossCurveDiagnosis(), mended=2, lr=rates[0])
best = {"mended": 2, "lr": best.suggestion, "weight_decay": best.weight_decay}
fit(15, LossCurveDiagnosis(), OneCycle(), **best)
# %% Step 7: go on, here with a wider network, whose rate is another
lr = lr_range_test(trainer, Digits(2, width=32), *data).suggestion
tuned = fit(15, OneCycle(), EMAWeights(validate="both"), **{**best, "lr": lr, "width": 32})
