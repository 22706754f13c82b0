"""Broken programs whose training dynamics go wrong, as in somebody's first Lightning project."""

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import bundled, images, loaders, pair, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Classifier(LightningModule):
    names = ("train_loss", "val_loss", "val_acc")
    per_epoch = None

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log(self.names[0], loss, on_epoch=self.per_epoch)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        logits = self(x)
        self.log(self.names[1], F.cross_entropy(logits, y))
        if len(self.names) > 2:
            self.log(self.names[2], (logits.argmax(1) == y).float().mean())


class PatchTransformer(Classifier):
    def __init__(self, lr, width=32):
        super().__init__()
        self.lr = lr
        self.embed = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(width, 10)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.classify(self.encoder(tokens).mean(1))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def patch_transformer(broken):
    return PatchTransformer(0.1 if broken else 2e-3), *loaders(*images())


@functools.cache
def series():
    g = seeded(11)
    t = torch.arange(49.0)
    periods = 6 + 14 * torch.rand(900, 2, 1, generator=g)
    phases = 2 * math.pi * torch.rand(900, 2, 1, generator=g)
    waves = torch.sin(2 * math.pi * t / periods + phases).sum(1)
    return waves + 0.05 * torch.randn(waves.shape, generator=g)


class Forecaster(LightningModule):
    def __init__(self, interval):
        super().__init__()
        self.interval = interval
        self.gru = nn.GRU(1, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def shared_step(self, batch, stage):
        (wave,) = batch
        states, _ = self.gru(wave[:, :-1, None])
        loss = F.mse_loss(self.out(states)[:, 8:, 0], wave[:, 9:])
        self.log(f"loss/{stage}", loss, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch, _):
        return self.shared_step(batch, "train")

    def validation_step(self, batch, _):
        self.shared_step(batch, "val")

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, gamma=0.9)
        return [opt], [{"scheduler": schedule, "interval": self.interval}]


def forecaster(broken):
    return Forecaster("step" if broken else "epoch"), *loaders(series())


@functools.cache
def pulses():
    g = seeded(5)
    n = 1200
    kind = torch.randint(4, (n,), generator=g)
    t = torch.arange(64.0) - 12 - 40 * torch.rand(n, 1, generator=g)
    shapes = torch.stack(
        [
            torch.exp(-t.square() / 20),
            -t / 4 * torch.exp(-t.square() / 20),
            torch.cos(t) * torch.exp(-t.square() / 40),
            (t.abs() < 6).float(),
        ],
        1,
    )
    clean = shapes[torch.arange(n), kind]
    return clean[:, None] * 2 + 0.3 * torch.randn(n, 1, 64, generator=g), kind


class PulseNet(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 7, padding=3),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
            nn.Linear(32, 4),
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def pulse_net(broken):
    return PulseNet(), *loaders(*pulses())


@functools.cache
def friedman(n=1200, noise=0.2, seed=21):
    g = seeded(seed)
    x = torch.rand(n, 10, generator=g)
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = y + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y - y.mean()) / y.std() + noise * torch.randn(n, generator=g)
    return (x - 0.5) * 12**0.5, y


class Tabular(LightningModule):
    def __init__(self, optimizer, hidden=64, features=10, **options):
        super().__init__()
        self.make_optimizer = lambda: optimizer(self.parameters(), **options)
        self.mlp = nn.Sequential(
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, x):
        return self.mlp(x).squeeze(-1)

    def training_step(self, batch, _):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        guess = self(x)
        self.log("val_loss", F.mse_loss(guess, y), prog_bar=True)
        self.log("val_median", (guess - y).abs().median())

    def configure_optimizers(self):
        return self.make_optimizer()


def plain_friedman(broken):
    kind = torch.optim.Adam if broken else torch.optim.AdamW
    return Tabular(kind, lr=3e-3, weight_decay=0.1), *loaders(*friedman())


def tiny_batches(broken):
    data = loaders(*friedman(800, 0.3, 22), batch_size=4 if broken else 32)
    return Tabular(torch.optim.SGD, lr=0.03, momentum=0.9), *data


def diabetes_table(broken):
    x, y = standardized("diabetes")
    y = (y - y.mean()) / y.std()
    return Tabular(torch.optim.Adam, 128, lr=1e-3), *loaders(x, y, batch_size=32)


def mixed_units(broken):
    x, y = friedman(1600, 0.1, 23)
    if broken:  # a few rows of the file were typed in another unit
        y = y.clone()
        y[120::270] *= 100
    return Tabular(torch.optim.Adam, lr=2e-3), *loaders(x, y)


class DeepNet(Classifier):
    names = ("train/loss", "val/loss", "val/acc")
    per_epoch = True

    def __init__(self, *sizes, activation):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten())
        for i, o in itertools.pairwise(sizes):
            self.net.extend([nn.Linear(i, o), activation()])
        self.net.pop(-1)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def deep_digits(broken):
    net = DeepNet(64, *[64] * 7, 10, activation=nn.Sigmoid if broken else nn.ReLU)
    return net, *loaders(*images())


@functools.cache
def totals(length=40):
    g = seeded(41)
    values = 2 * torch.rand(1600, 1, generator=g) * torch.rand(1600, length, generator=g)
    total = values.sum(1)
    return values[..., None], (total - total.mean()) / total.std()


class TotalRNN(LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(1, 32, nonlinearity="relu", batch_first=True)
        nn.init.eye_(self.rnn.weight_hh_l0)
        self.read = nn.Linear(32, 1)

    def loss(self, batch):
        sequence, total = batch
        last = self.rnn(sequence)[0][:, -1]
        return F.mse_loss(self.read(last)[:, 0], total)

    def training_step(self, batch, _):
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=2e-3, momentum=0.9)


def total_rnn(broken):
    return TotalRNN(), *loaders(*totals())


@functools.cache
def ratings(users=80, items=60):
    g = seeded(51)
    taste = torch.randn(users, 3, generator=g)
    genre = torch.randn(items, 3, generator=g)
    pairs = torch.cartesian_prod(torch.arange(users), torch.arange(items))
    pairs = pairs[torch.randperm(len(pairs), generator=g)[:3200]]
    score = (taste[pairs[:, 0]] * genre[pairs[:, 1]]).sum(1) / 3**0.5
    return pairs, score + 0.1 * torch.randn(len(score), generator=g)


class Recommender(LightningModule):
    def __init__(self, towers):
        super().__init__()
        self.towers = towers
        self.user = nn.Embedding(80, 6)
        self.item = nn.Embedding(60, 6)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)

    def step(self, batch, name):
        pairs, score = batch
        guess = (self.user(pairs[:, 0]) * self.item(pairs[:, 1])).sum(-1)
        loss = (guess - score).square().mean()
        self.log(name, loss)
        return loss

    def training_step(self, batch, _):
        return self.step(batch, "train_loss")

    def validation_step(self, batch, _):
        self.step(batch, "val_loss")

    def configure_optimizers(self):
        groups = [{"params": getattr(self, tower).parameters()} for tower in self.towers]
        return torch.optim.Adam(groups, lr=1e-2)


def recommender(broken):
    return Recommender(["item"] if broken else ["user", "item"]), *loaders(*ratings())


class Tumours(LightningModule):
    def __init__(self, stable):
        super().__init__()
        self.stable = stable
        self.model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))

    def criterion(self, logit, y):
        if self.stable:
            return F.binary_cross_entropy_with_logits(logit, y)
        p = torch.sigmoid(logit)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    def training_step(self, batch, _):
        x, y = batch
        loss = self.criterion(self.model(x), y.float())
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        logit = self.model(x)
        self.log("val_loss", self.criterion(logit, y.float()))
        self.log("val_acc", ((logit > 0) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


def tumours(broken):
    return Tumours(not broken), *loaders(*standardized("breast_cancer"), batch_size=16)


class Wines(Classifier):
    names = ("train_loss", "val_loss")
    per_epoch = True

    def __init__(self, back_to_train):
        super().__init__()
        self.back_to_train = back_to_train
        self.norm = nn.BatchNorm1d(13)
        self.layers = nn.Sequential(
            nn.Linear(13, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 3)
        )

    def forward(self, x):
        return self.layers(self.norm(x))

    def on_train_start(self):
        self.eval()
        with torch.no_grad():
            self.untrained = self(bundled("wine")[0][:4]).softmax(-1)
        if self.back_to_train:
            self.train()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def wines(broken):
    return Wines(not broken), *loaders(*bundled("wine"), batch_size=16)


class Autoencoder(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 48), nn.GELU(), nn.Linear(48, 64))

    def reconstruction(self, batch):
        x = batch[0].flatten(1)
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def training_step(self, batch, _):
        loss = self.reconstruction(batch)
        self.log("recon/train", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("recon/val", self.reconstruction(batch))

    def configure_optimizers(self):
        return torch.optim.NAdam(self.parameters(), lr=3e-3)


def scaled_otherwise(broken):
    raw = bundled("digits")[0]
    train, held = raw[:1347], raw[1347:]
    mean, std = train.mean(), train.std()
    train = (train - mean) / std
    held = held if broken else (held - mean) / std
    return (
        Autoencoder(),
        DataLoader(TensorDataset(train), 32, shuffle=True),
        DataLoader(TensorDataset(held), 128),
    )


def seventh(make, *codes, epochs, metric="val_loss", repaired=None, **trainer):
    each = {"max_epochs": epochs, "check_val_every_n_epoch": 1}
    return pair(
        f"seventh_{make.__name__}",
        make,
        *codes,
        trainer=each | trainer,
        repaired=repaired and each | repaired,
        metric=metric,
    )


CLIPPED = {"gradient_clip_val": 1.0}
PAIRS = [
    seventh(patch_transformer, "lr_too_high", "update_ratio_high", epochs=12, metric="val_acc"),
    seventh(forecaster, "lr_decayed_too_fast", epochs=25, metric="loss/val"),
    seventh(
        pulse_net,
        "clip_too_small",
        epochs=15,
        metric="val_acc",
        gradient_clip_val=5e-4,
        repaired=CLIPPED,
    ),
    seventh(plain_friedman, "weight_decay_too_high", epochs=30),
    seventh(tiny_batches, "batch_noise", "lr_too_high", epochs=12),
    seventh(diabetes_table, "overfitting", epochs=120, repaired={"max_epochs": 8}),
    seventh(mixed_units, "loss_spikes", epochs=25, metric="val_median"),
    seventh(deep_digits, "vanishing_gradients", epochs=15, metric="val/acc"),
    seventh(
        total_rnn, "exploding_gradients", "lr_too_high", "non_finite", epochs=18, repaired=CLIPPED
    ),
    seventh(recommender, "params_not_in_optimizer", "weights_not_updating", epochs=15),
    seventh(tumours, "non_finite", epochs=15, metric="val_acc"),
    seventh(wines, "eval_mode_in_training", epochs=25),
    seventh(scaled_otherwise, "train_val_mismatch", epochs=25, metric="recon/val"),
]
