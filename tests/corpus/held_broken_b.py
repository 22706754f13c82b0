"""Whole fits whose data, wiring or capacity is wrong, written without sight of the monitors."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch.optim import SGD, Adam, AdamW
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.corpus.program import bundled, images, loaders, pair, standardized

STUCK = ("no_grad_flow", "weights_not_updating", "frozen_params", "update_ratio_low")
LEAVES = (*STUCK, "params_not_in_optimizer", "underfitting", "no_learning")
SHORT = ("underfitting", "lr_too_low")


def split(x, y, train_batch=32):
    cut = int(0.75 * len(x))
    train = DataLoader(TensorDataset(x[:cut], y[:cut]), train_batch, shuffle=True)
    return train, DataLoader(TensorDataset(x[cut:], y[cut:]), 256)


class Base(LightningModule):
    """Cross entropy and accuracy, in training and in validation."""

    rate = 2e-3

    def __init__(self, model=None, **hparams):
        super().__init__()
        self.save_hyperparameters(hparams)
        self.model = model

    def forward(self, x):
        return self.model(x)

    def common(self, batch, stage):
        x, y = batch
        out = self(x)
        loss = F.cross_entropy(out, y)
        acc = (out.argmax(-1) == y).float().mean()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_acc": acc}, on_epoch=True, on_step=False)
        return loss

    def training_step(self, batch, _):
        return {"loss": self.common(batch, "train")}

    def validation_step(self, batch, _):
        self.common(batch, "val")

    def configure_optimizers(self):
        return Adam(self.parameters(), lr=self.hparams.get("lr", self.rate))


def overfit_few(broken):
    """Few noisy examples against a wide network; the twin is small and has many."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(1600, 30, generator=g)
    y = ((x[:, :3].sum(1) + 1.5 * torch.randn(1600, generator=g)) > 0).long()
    model = nn.Sequential(nn.Linear(30, 256), nn.ReLU(), nn.Linear(256, 2))
    val = DataLoader(TensorDataset(x[1200:], y[1200:]), 400)
    if broken:
        train = TensorDataset(x[:64], y[:64])
        return Base(model, lr=5e-3), DataLoader(train, 16, shuffle=True), val
    train = DataLoader(TensorDataset(x[:1200], y[:1200]), 64, True)
    return Base(nn.Linear(30, 2), lr=5e-3), train, val


def spirals(n=1200):
    g = torch.Generator().manual_seed(4)
    y = torch.arange(n) % 2
    r = torch.rand(n, generator=g).sqrt()
    angle = 7 * r + 3.1416 * y + 0.1 * torch.randn(n, generator=g)
    return torch.stack([r * angle.cos(), r * angle.sin()], 1) * 2, y


def narrow_for_spirals(broken):
    width = 2 if broken else 48
    model = nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
    )
    return Base(model, lr=1e-2), *split(*spirals())


def labels_shuffled(broken):
    x, y = standardized("digits")
    if broken:
        y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(9))]
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    return Base(model), *split(x, y)


class Series(Dataset):
    """The next value of a series after a window, as a dictionary."""

    def __init__(self, series, window=12):
        self.windows = series.unfold(0, window + 1, 1)

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, i):
        return {"past": self.windows[i, :-1], "next": self.windows[i, -1]}


class Forecaster(LightningModule):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 16, batch_first=True)
        self.out = nn.Linear(16, 1)

    def step(self, batch, name):
        h = self.gru(batch["past"].unsqueeze(-1))[0][:, -1]
        loss = F.mse_loss(self.out(h)[:, 0], batch["next"])
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val_loss")

    def configure_optimizers(self):
        return AdamW(self.parameters(), lr=5e-3)


def white_noise_series(broken):
    """A forecaster of pure noise; the twin forecasts a noisy wave."""
    noise = torch.randn(1300, generator=torch.Generator().manual_seed(8))
    series = noise if broken else torch.sin(torch.arange(1300) * 0.35) * 1.3 + 0.3 * noise
    train, val = Series(series[:1000]), Series(series[1000:])
    return Forecaster(), DataLoader(train, 32, shuffle=True), DataLoader(val, 300)


class Trunk(Base):
    """A convolutional trunk that the loss should reach."""

    rate = 6e-3

    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 12, 3), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        h = self.trunk(x)
        return self.head(h.detach() if self.broken else h)


def detached_trunk(broken):
    return Trunk(broken), *split(*images())


class ForgottenEncoder(Base):
    """Only the last layer is handed to the optimizer."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.encoder = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh())
        self.classifier = nn.Linear(12, 2)

    def forward(self, x):
        return self.classifier(self.encoder(x))

    def configure_optimizers(self):
        optimizer = Adam((self.classifier if self.broken else self).parameters(), lr=3e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.5)
        return [optimizer], [scheduler]


def forgotten_encoder(broken):
    return ForgottenEncoder(broken), *split(*spirals())


def words(n=1200, vocabulary=120):
    """Sentences whose class is decided by which of two halves the words come from more often."""
    g = torch.Generator().manual_seed(21)
    weight = torch.randn(vocabulary, generator=g)
    x = torch.randint(0, vocabulary, (n, 9), generator=g)
    return x, (weight[x].sum(1) > 0).long()


class Bag(Base):
    def __init__(self, broken):
        super().__init__()
        self.emb = nn.EmbeddingBag(120, 4, mode="sum")
        self.emb.weight.requires_grad_(not broken)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.emb(x))

    def configure_optimizers(self):
        return Adam([p for p in self.parameters() if p.requires_grad], lr=2e-2)


def frozen_embedding(broken):
    return Bag(broken), *split(*words())


class Plain(LightningModule):
    """Weights by hand and functional calls; squared error."""

    def __init__(self, inputs, hidden=24, lr=0.05, optimizer=SGD):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(hidden, inputs) * inputs**-0.5)
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.w2 = nn.Parameter(torch.randn(1, hidden) * hidden**-0.5)
        self.b2 = nn.Parameter(torch.zeros(1))
        self.lr, self.kind = lr, optimizer

    def forward(self, x):
        return F.linear(F.relu(F.linear(x, self.w1, self.b1)), self.w2, self.b2)[:, 0]

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.kind(self.parameters(), lr=self.lr)


def surface(n=800, noise=0.3):
    g = torch.Generator().manual_seed(6)
    x = torch.randn(n, 6, generator=g)
    y = x[:, 0] - 0.5 * x[:, 1] + (x[:, 2] * x[:, 3]).tanh()
    return x, y + noise * torch.randn(n, generator=g)


def batch_of_one(broken):
    x, y = surface(noise=1.0)
    return Plain(6, lr=0.025), *split(x, y, train_batch=1 if broken else 32)


def glitches(broken):
    """One row in a hundred comes from a sensor that counts in other units."""
    x, y = surface(1200)
    x = x.clone()
    if broken:
        x[5:900:100] *= 100
        x[17:900:100] *= -60
    return Plain(6, lr=5e-3, optimizer=Adam), *split(x, y, train_batch=16)


def validation_unscaled(broken):
    """The training images are standardized, those of validation were forgotten."""
    x, y = images()
    train, val = loaders(x, y)
    if broken:
        raw, labels = bundled("digits")
        val = DataLoader(TensorDataset(raw[1347:].view(-1, 1, 8, 8), labels[1347:]), 450)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )
    return Base(model), train, val


def validation_elsewhere(broken):
    """Validation houses lie where no training house does."""
    g = torch.Generator().manual_seed(31)
    x = torch.rand(1000, 3, generator=g) * 4 - 2
    if broken:
        x = x[x[:, 0].argsort()]
    y = x[:, 0] ** 2 + x[:, 1] + 0.1 * torch.randn(1000, generator=g)
    return Plain(3, 48, lr=5e-3, optimizer=Adam), *split(x, y, train_batch=16)


def drowned_in_dropout(broken):
    p = 0.92 if broken else 0.1
    x, y = standardized("digits")
    model = nn.Sequential(
        nn.Dropout(p / 2),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p)),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p)),
        nn.Linear(64, 10),
    )
    return Base(model), *split(x, y)


def stopped_early(broken):
    """The same program; the broken one is stopped while it falls steeply."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    return Base(model, lr=2e-4), *split(*images(), train_batch=24)


class ByHand(LightningModule):
    """Manual optimization; the broken one clears the gradients just before the step."""

    def __init__(self, broken):
        super().__init__()
        self.automatic_optimization = False
        self.broken = broken
        self.body = nn.Sequential(nn.Linear(13, 24), nn.GELU(), nn.Linear(24, 3))

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        loss = F.cross_entropy(self.body(batch[0]), batch[1])
        if not self.broken:
            opt.zero_grad()
        self.manual_backward(loss)
        if self.broken:
            opt.zero_grad()
        opt.step()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self.body(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return AdamW(self.parameters(), lr=3e-3)


def cleared_before_step(broken):
    return ByHand(broken), *split(*standardized("wine"), train_batch=8)


def epochs(n):
    return {"max_epochs": n}


PAIRS = [
    pair("held_overfit_few", overfit_few, "overfitting", trainer={"max_epochs": 40}),
    pair(
        "held_narrow_for_spirals",
        narrow_for_spirals,
        *("underfitting", "no_learning", "missing_nonlinearity"),
        trainer=epochs(14),
    ),
    pair(
        "held_labels_shuffled",
        labels_shuffled,
        *("label_mismatch", "no_learning", "overfitting", "underfitting"),
        trainer=epochs(6),
    ),
    pair(
        "held_white_noise_series",
        white_noise_series,
        *("no_learning", "label_mismatch", "overfitting", "underfitting", "input_ignored"),
        trainer=epochs(6),
    ),
    pair("held_detached_trunk", detached_trunk, *LEAVES, "loss_detached", trainer=epochs(6)),
    pair("held_forgotten_encoder", forgotten_encoder, *LEAVES, trainer=epochs(12)),
    pair("held_frozen_embedding", frozen_embedding, *LEAVES, trainer=epochs(7)),
    pair(
        "held_batch_of_one",
        batch_of_one,
        *("batch_noise", "lr_too_high", "loss_oscillation", "update_ratio_high"),
        *("loss_diverging", "dead_relu", "no_learning"),
        trainer={"max_epochs": 2, "val_check_interval": 100},
        repaired={"max_epochs": 12},
    ),
    pair(
        "held_glitches",
        glitches,
        *("unnormalized_input", "loss_oscillation", "exploding_gradients", "lr_too_high"),
        *("loss_diverging", "train_val_mismatch", "batch_noise", "update_ratio_high"),
        trainer=epochs(6),
    ),
    pair(
        "held_validation_unscaled",
        validation_unscaled,
        *("train_val_mismatch", "unnormalized_input"),
        trainer=epochs(5),
    ),
    pair(
        "held_validation_elsewhere",
        validation_elsewhere,
        *("train_val_mismatch", "overfitting", "unshuffled_data"),
        trainer=epochs(8),
    ),
    pair(
        "held_drowned_in_dropout",
        drowned_in_dropout,
        *("dropout_too_high", "underfitting", "no_learning"),
        trainer=epochs(6),
    ),
    pair("held_stopped_early", stopped_early, *SHORT, trainer=epochs(3), repaired=epochs(15)),
    pair(
        "held_cleared_before_step",
        cleared_before_step,
        *STUCK,
        *("no_learning", "underfitting", "vanishing_gradients"),
        trainer=epochs(16),
    ),
]
