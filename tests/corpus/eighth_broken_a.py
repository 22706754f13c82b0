"""Textbook faults, each plain and strong, and their repaired twins."""

import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .program import bundled, images, loaders, pair, standardized


def generator(seed):
    return torch.Generator().manual_seed(seed)


def split(train, val, batch_size, val_batch_size=256):
    """Loaders of two sets that are already apart."""
    return (
        DataLoader(TensorDataset(*train), batch_size, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(*val), val_batch_size),
    )


class Classifier(LightningModule):
    """Cross-entropy and accuracy, logged as train_loss, val_loss and val_acc."""

    def __init__(self, net, optimizer, scheduler=None):
        super().__init__()
        self.net = net
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}


class Regressor(LightningModule):
    """Mean squared error, logged as loss/train and loss/val."""

    def __init__(self, net, optimizer):
        super().__init__()
        self.model = net
        self.optimizer_of = optimizer

    def forward(self, x):
        return self.model(x).squeeze(-1)

    def step(self, batch, stage):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log(f"loss/{stage}", loss, on_step=stage == "train", on_epoch=stage == "val")
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return [self.optimizer_of(self.parameters())]


class Recurrent(nn.Module):
    """A recurrent layer whose last state is read out."""

    def __init__(self, kind, inputs, hidden, outputs, **settings):
        super().__init__()
        self.rnn = kind(inputs, hidden, batch_first=True, **settings)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    """A small transformer encoder over rows, averaged."""

    def __init__(self, inputs, length, outputs, width=32, layers=2):
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x) + self.position).mean(1))


def mlp(*sizes, activation=nn.ReLU, dropout=0.0):
    layers = []
    for i, o in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(i, o), activation()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def cnn(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def waves(count=1200, length=20, classes=4):
    """Noisy sines of four frequencies, to be told apart."""
    g = generator(5)
    labels = torch.randint(classes, (count,), generator=g)
    phase = 2 * math.pi * torch.rand(count, 1, generator=g)
    time = torch.arange(length) / length
    x = torch.sin(2 * math.pi * (labels[:, None] + 1) * time + phase)
    x = x + 0.3 * torch.randn(count, length, generator=g)
    return x.unsqueeze(-1), labels


# 1


def slow_digits(broken):
    """A learning rate of 0.0003 for plain SGD."""
    rate = 0.0003 if broken else 0.1
    model = Classifier(mlp(64, 64, 64, 10), lambda p: torch.optim.SGD(p, lr=rate))
    return model, *loaders(*standardized("digits"), batch_size=32)


# 2


def slow_gru(broken):
    rate = 1e-5 if broken else 3e-3
    net = Recurrent(nn.GRU, 1, 32, 4)
    model = Classifier(net, lambda p: torch.optim.Adam(p, lr=rate))
    return model, *loaders(*waves(), batch_size=25)


# 3


def plateau(broken):
    """RMSprop at 0.1 saturates the tanh units after a first drop."""
    rate = 0.1 if broken else 0.001
    net = mlp(64, 64, 64, 10, activation=nn.Tanh)
    model = Classifier(net, lambda p: torch.optim.RMSprop(p, lr=rate))
    return model, *loaders(*standardized("digits"), batch_size=32)


# 4


def diverging(broken):
    x, y = standardized("diabetes")
    y = (y - y.mean()) / y.std()
    rate = 1.0 if broken else 0.01
    model = Regressor(nn.Linear(10, 1), lambda p: torch.optim.SGD(p, lr=rate))
    return model, *loaders(x, y, batch_size=16)


# 5


def growing(broken):
    """A rate that is warmed up through all of the training, to 0.04, without clipping."""
    start, factor = 0.001, 40 if broken else 2

    def scheduler(optimizer):
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: factor ** (s / 1440))
        return {"scheduler": rates, "interval": "step"}

    net = Recurrent(nn.RNN, 1, 32, 4)
    model = Classifier(net, lambda p: torch.optim.Adam(p, lr=start), scheduler=scheduler)
    return model, *loaders(*waves(), batch_size=25)


# 6


def hockey_stick(broken):
    """Weights drawn with a deviation of 1, so that the first loss is in the hundreds."""
    net = mlp(64, 128, 128, 10)
    if broken:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1.0)
    model = Classifier(net, lambda p: torch.optim.Adam(p, lr=1e-3))
    return model, *loaders(*standardized("digits"), batch_size=32)


# 7


def single_examples(broken):
    g = generator(4)
    x = 2 * torch.rand(800, 4, generator=g) - 1
    y = torch.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * torch.randn(800, generator=g)
    model = Regressor(mlp(4, 64, 1), lambda p: torch.optim.SGD(p, lr=0.09))
    return model, *loaders(x, y, batch_size=1 if broken else 32)


# 8


def stopped_early(broken):
    x, y = images()
    model = Classifier(Attention(8, 8, 10), lambda p: torch.optim.AdamW(p, lr=1e-4))
    return model, *loaders(x[:, 0], y, batch_size=32)


# 9


def few_examples(broken):
    """A net of some 140 000 weights for 80 examples with noisy labels."""
    g = generator(6)
    x = torch.randn(4500, 20, generator=g)
    y = (x[:, :5].sum(1) + torch.randn(4500, generator=g) > 0).long()
    count = 80 if broken else 4000
    model = Classifier(mlp(20, 256, 256, 256, 2), lambda p: torch.optim.Adam(p, lr=3e-4))
    return model, *split((x[:count], y[:count]), (x[4000:], y[4000:]), 16)


# 10


class Language(LightningModule):
    """Next-token prediction by an LSTM."""

    def __init__(self, tokens, hidden):
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(tokens, 32)
        self.lstm = nn.LSTM(32, hidden, batch_first=True)
        self.decoder = nn.Linear(hidden, tokens)

    def forward(self, x):
        return self.decoder(self.lstm(self.embedding(x))[0])

    def training_step(self, batch, batch_idx):
        (text,) = batch
        loss = F.cross_entropy(self(text[:, :-1]).transpose(1, 2), text[:, 1:])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        (text,) = batch
        loss = F.cross_entropy(self(text[:, :-1]).transpose(1, 2), text[:, 1:])
        self.log("val/loss", loss)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def short_text(broken):
    g = generator(9)
    tokens, count = 16, 1700
    table = torch.softmax(2 * torch.randn(tokens, tokens, generator=g), 1)
    text = [torch.randint(tokens, (count,), generator=g)]
    for _ in range(16):
        text.append(torch.multinomial(table[text[-1]], 1, generator=g)[:, 0])
    text = torch.stack(text, 1)
    return Language(tokens, 96), *split((text[: 40 if broken else 1600],), (text[1600:],), 20)


# 11


def tiny(broken):
    """One hidden unit for ten classes."""
    model = Classifier(mlp(64, 1 if broken else 64, 10), lambda p: torch.optim.RMSprop(p, lr=5e-3))
    return model, *loaders(*standardized("digits"), batch_size=32)


# 12


def shuffled_labels(broken):
    x, y = images()
    x, y = x[:, 0], y.clone()
    if broken:
        cut = len(y) * 3 // 4
        y[:cut] = y[:cut][torch.randperm(cut, generator=generator(1))]
    net = Attention(8, 8, 10, width=16, layers=1)
    model = Classifier(net, lambda p: torch.optim.Adam(p, lr=2e-3))
    return model, *loaders(x, y, batch_size=32)


# 13


def raw_validation(broken):
    """The validation set has not been standardized as the training set has."""
    raw, y = bundled("breast_cancer")
    cut = len(y) * 3 // 4
    mean, std = raw[:cut].mean(0), raw[:cut].std(0)
    x = (raw - mean) / std
    val = raw[cut:] if broken else x[cut:]
    net = mlp(30, 16, 2)
    model = Classifier(net, lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9, weight_decay=1e-3))
    return model, *split((x[:cut], y[:cut]), (val, y[cut:]), 16)


# 14


def dropped_out(broken):
    net = mlp(64, 64, 64, 10, dropout=0.93 if broken else 0.1)
    model = Classifier(net, lambda p: torch.optim.AdamW(p, lr=1e-3))
    return model, *loaders(*standardized("digits"), batch_size=32)


# 15


def early_decay(broken):
    """StepLR meant to be stepped once an epoch, but stepped at every batch."""

    def scheduler(optimizer):
        interval = "step" if broken else "epoch"
        steps = torch.optim.lr_scheduler.StepLR(optimizer, step_size=25, gamma=0.3)
        return {"scheduler": steps, "interval": interval}

    model = Classifier(
        cnn(), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), scheduler=scheduler
    )
    return model, *loaders(*images(), batch_size=32)


# 16


class Autoencoder(LightningModule):
    def __init__(self, decay):
        super().__init__()
        self.decay = decay
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[0])
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3, weight_decay=self.decay)


def decayed_weights(broken):
    x, _ = images()
    return Autoencoder(0.5 if broken else 1e-6), *loaders(x.flatten(1), batch_size=32)


PAIRS = [
    pair(
        "eighth_slow_digits", slow_digits, "lr_too_low", "underfitting", trainer={"max_epochs": 40}
    ),
    pair("eighth_slow_gru", slow_gru, "lr_too_low", "underfitting", trainer={"max_epochs": 40}),
    pair("eighth_plateau", plateau, "lr_too_high", "loss_oscillation", trainer={"max_epochs": 40}),
    pair(
        "eighth_diverging",
        diverging,
        "lr_too_high",
        "loss_diverging",
        "non_finite",
        trainer={"max_epochs": 80},
        metric="loss/val",
    ),
    pair(
        "eighth_growing",
        growing,
        "loss_diverging",
        "lr_too_high",
        "exploding_gradients",
        trainer={"max_epochs": 40},
    ),
    pair("eighth_hockey_stick", hockey_stick, "bad_init_scale", trainer={"max_epochs": 40}),
    pair(
        "eighth_single_examples",
        single_examples,
        "batch_noise",
        "lr_too_high",
        "loss_oscillation",
        trainer={"max_epochs": 10},
        repaired={"max_epochs": 60},
        metric="loss/val",
    ),
    pair(
        "eighth_stopped_early",
        stopped_early,
        "lr_too_low",
        "underfitting",
        "train_longer",
        trainer={"max_epochs": 6},
        repaired={"max_epochs": 20},
    ),
    pair(
        "eighth_few_examples",
        few_examples,
        "overfitting",
        trainer={"max_epochs": 120},
        repaired={"max_epochs": 5},
    ),
    pair(
        "eighth_short_text",
        short_text,
        "overfitting",
        trainer={"max_epochs": 150},
        repaired={"max_epochs": 8},
        metric="val/loss",
    ),
    pair("eighth_tiny", tiny, "underfitting", trainer={"max_epochs": 40}),
    pair(
        "eighth_shuffled_labels",
        shuffled_labels,
        "no_learning",
        "label_mismatch",
        trainer={"max_epochs": 20},
        metric="val_acc",
    ),
    pair(
        "eighth_raw_validation",
        raw_validation,
        "train_val_mismatch",
        "unnormalized_input",
        trainer={"max_epochs": 50},
    ),
    pair(
        "eighth_dropped_out",
        dropped_out,
        "dropout_too_high",
        "underfitting",
        trainer={"max_epochs": 40},
    ),
    pair("eighth_early_decay", early_decay, "lr_decayed_too_fast", trainer={"max_epochs": 40}),
    pair(
        "eighth_decayed_weights",
        decayed_weights,
        "weight_decay_too_high",
        "underfitting",
        trainer={"max_epochs": 40},
        metric="val_mse",
    ),
]
