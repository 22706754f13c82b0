"""Broken programs with their repaired twins, fourth set, first half."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.corpus.program import bundled, images, loaders, pair, standardized


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Classifier(LightningModule):
    """Cross entropy of a network's output."""

    def __init__(self, net, lr=1e-3, optimizer=torch.optim.Adam, **options):
        super().__init__()
        self.net = net
        self.make_optimizer = lambda parameters: optimizer(parameters, lr=lr, **options)

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
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def separable(channels, to):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, to, 1, bias=False),
        nn.BatchNorm2d(to),
        nn.ReLU(),
    )


def mobile(broken):
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), separable(16, 32), nn.MaxPool2d(2)]
    layers += [separable(32, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)]
    if broken:
        layers.append(nn.Softmax(dim=-1))
    net = nn.Sequential(*layers)
    return Classifier(net, 0.1, torch.optim.SGD, momentum=0.9), *loaders(*images())


class Tags(LightningModule):
    """Which of several overlapping motifs a sequence holds: a multilabel problem."""

    def __init__(self, squash, motifs=6):
        super().__init__()
        self.conv1 = nn.Conv1d(3, 32, 5, padding=2)
        self.conv2 = nn.Conv1d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, motifs)
        self.squash = squash
        self.criterion = nn.BCEWithLogitsLoss()

    def forward(self, signal):
        hidden = F.relu(self.conv2(F.relu(self.conv1(signal))))
        scores = self.head(hidden.amax(-1))
        return torch.sigmoid(scores) if self.squash else scores

    def training_step(self, batch, _):
        return self.criterion(self(batch["signal"]), batch["tags"])

    def validation_step(self, batch, _):
        loss = self.criterion(self(batch["signal"]), batch["tags"])
        self.log("val_loss", loss, batch_size=len(batch["tags"]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class Motifs(Dataset):
    def __init__(self, count, seed):
        rng = generator(seed)
        motif = torch.randn(6, 3, 5, generator=generator(11)) * 1.5
        self.tags = (torch.rand(count, 6, generator=rng) < 0.3).float()
        self.signals = torch.randn(count, 3, 40, generator=rng) * 0.4
        starts = torch.randint(0, 36, (count, 6), generator=rng)
        for i in range(count):
            for j in self.tags[i].nonzero().flatten().tolist():
                at = starts[i, j]
                self.signals[i, :, at : at + 5] += motif[j]

    def __len__(self):
        return len(self.tags)

    def __getitem__(self, i):
        return {"signal": self.signals[i], "tags": self.tags[i]}


def motif_tags(broken):
    train = DataLoader(Motifs(1500, 0), 32, shuffle=True, drop_last=True)
    return Tags(broken), train, DataLoader(Motifs(300, 1), 100)


class TwoTasks(LightningModule):
    """A class and a size from one trunk; the losses of the tasks are kept in a dict."""

    def __init__(self, as_numbers):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 96), nn.ELU(), nn.Linear(96, 64), nn.ELU())
        self.heads = nn.ModuleDict({"digit": nn.Linear(64, 10), "ink": nn.Linear(64, 1)})
        self.as_numbers = as_numbers

    def losses(self, batch):
        x, digit, ink = batch
        hidden = self.trunk(x)
        return {
            "digit": F.cross_entropy(self.heads["digit"](hidden), digit),
            "ink": F.mse_loss(self.heads["ink"](hidden).squeeze(1), ink),
        }

    def training_step(self, batch, _):
        losses = self.losses(batch)
        self.log_dict({f"train_{name}": value for name, value in losses.items()})
        if self.as_numbers:
            return torch.tensor(list(losses.values()), requires_grad=True).sum()
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, batch, _):
        self.log("val_loss", sum(self.losses(batch).values()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


def two_tasks(broken):
    x, y = standardized("digits")
    ink = bundled("digits")[0].mean(1)
    ink = (ink - ink.mean()) / ink.std()
    return TwoTasks(broken), *loaders(x, y, ink)


class Embedder(LightningModule):
    """Regresses unit vectors by their cosine."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.net = nn.Sequential(nn.Linear(12, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.project = nn.Linear(64, 8)

    def forward(self, x):
        return F.normalize(self.project(self.net(x)), dim=-1)

    def training_step(self, batch, _):
        x, y = batch
        similarity = F.cosine_similarity(self(x), y).mean()
        return similarity if self.broken else 1 - similarity

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_distance", (self(x) - y).square().sum(-1).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def unit_vectors(broken):
    rng = generator(5)
    x = torch.randn(2000, 12, generator=rng)
    a, b = (torch.randn(12, 8, generator=rng) for _ in range(2))
    y = F.normalize(x @ a + torch.tanh(x @ b), dim=-1)
    return Embedder(broken), *loaders(x, y)


class ConvAutoencoder(LightningModule):
    def __init__(self, reduction):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 24, 3, 2, 1), nn.GELU()
        )
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )
        self.reduction = reduction

    def forward(self, x):
        return self.decode(self.encode(x))

    def training_step(self, batch, _):
        return F.mse_loss(self(batch[0]), batch[0], reduction=self.reduction)

    def validation_step(self, batch, _):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def summed_autoencoder(broken):
    return ConvAutoencoder("sum" if broken else "mean"), *loaders(images()[0])


class Forecaster(LightningModule):
    """The next value of a noisy wave from the last twenty four."""

    def __init__(self, keep_column):
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)
        self.keep_column = keep_column

    def forward(self, window):
        _, last = self.rnn(window)
        out = self.out(last[-1])
        return out if self.keep_column else out[:, 0]

    def training_step(self, batch, _):
        window, future = batch
        return F.mse_loss(self(window), future)

    def validation_step(self, batch, _):
        window, future = batch
        error = self(window).flatten() - future
        self.log("val_mse", error.square().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def waves(count=1600, length=25, scale=1.0, seed=2):
    rng = generator(seed)
    phase = torch.rand(count, 1, generator=rng) * 2 * math.pi
    pace = 0.2 + torch.rand(count, 1, generator=rng) * 0.5
    series = torch.sin(phase + pace * torch.arange(length)) * 1.4
    return scale * (series + 0.05 * torch.randn(series.shape, generator=rng))


def column_forecast(broken):
    series = waves()
    return Forecaster(broken), *loaders(series[:, :-1, None], series[:, -1])


class Tagger(LightningModule):
    """One tag for each token of a sequence: how often it has been seen so far, at most two."""

    def __init__(self, tags):
        super().__init__()
        self.embed = nn.Embedding(8, 24)
        self.rnn = nn.LSTM(24, 48, batch_first=True)
        self.out = nn.Linear(48, tags)

    def forward(self, tokens):
        return self.out(self.rnn(self.embed(tokens))[0])

    def training_step(self, batch, _):
        tokens, tags = batch
        return F.cross_entropy(self(tokens).flatten(0, 1), tags.flatten())

    def validation_step(self, batch, _):
        tokens, tags = batch
        scores = self(tokens)
        self.log("val_acc", (scores.argmax(-1) == tags).float().mean())
        self.log("val_loss", F.cross_entropy(scores.transpose(1, 2), tags))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def tagger(broken):
    tokens = torch.randint(0, 8, (1500, 16), generator=generator(4))
    seen = F.one_hot(tokens, 8).cumsum(1).gather(2, tokens[..., None]).squeeze(2) - 1
    return Tagger(2 if broken else 3), *loaders(tokens, seen.clamp(max=2))


class Levels(LightningModule):
    """Levels of a tank, in metres from 4 to 16, from eight readings."""

    def __init__(self, squash):
        super().__init__()
        out = [nn.Linear(48, 1), nn.Tanh()] if squash else [nn.Linear(48, 1)]
        self.net = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), *out)

    def forward(self, x):
        return self.net(x).squeeze(-1)

    def training_step(self, batch, _):
        return F.smooth_l1_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_mae", F.l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def tank(broken):
    rng = generator(8)
    x = torch.randn(1600, 8, generator=rng)
    w = torch.randn(8, generator=rng)
    level = 10 + 6 * torch.tanh(0.5 * x @ w) * torch.sigmoid(3 * x[:, 0])
    return Levels(broken), *loaders(x, level)


class ByHand(LightningModule):
    """Manual optimization with a clipped step and a scheduler."""

    automatic_optimization = False

    def __init__(self, forget):
        super().__init__()
        self.forget = forget
        self.net = nn.Sequential(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.mean = nn.Linear(32, 1)

    def forward(self, x):
        return self.mean(self.net(x)).squeeze(-1)

    def training_step(self, batch, _):
        x, y = batch
        optimizer = self.optimizers()
        loss = F.mse_loss(self(x), y)
        if not self.forget:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()
        self.log("train_loss", loss)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.998)]


def by_hand(broken):
    rng = generator(9)
    x = torch.randn(1500, 13, generator=rng)
    y = torch.sin(x[:, 0] * 1.5) + x[:, 1] * 0.7 - x[:, 2] * 0.5
    return ByHand(broken), *loaders(x, y)


class RawTable(Classifier):
    """Lets a first batch norm standardize the raw columns."""

    def __init__(self, freeze_statistics):
        net = nn.Sequential(
            nn.BatchNorm1d(13), nn.Linear(13, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)
        )
        super().__init__(net, lr=1e-2)
        self.freeze_statistics = freeze_statistics

    def on_train_batch_start(self, batch, batch_idx):
        if self.freeze_statistics:
            self.eval()


def raw_table(broken):
    return RawTable(broken), *loaders(*bundled("wine"), batch_size=16)


PAIRS = [
    pair("fourth_mobile_softmax", mobile, "softmax_before_ce", metric="val_acc"),
    pair("fourth_motif_sigmoid", motif_tags, "sigmoid_before_bce_logits"),
    pair("fourth_loss_numbers", two_tasks, "loss_detached", "no_grad_flow", "weights_not_updating"),
    pair("fourth_cosine_sign", unit_vectors, "loss_sign_flipped", metric="val_distance"),
    pair("fourth_sum_conv", summed_autoencoder, "loss_reduction_sum", metric="val_mse"),
    pair("fourth_column_gru", column_forecast, "broadcast_mismatch", metric="val_mse"),
    pair("fourth_two_tags", tagger, "wrong_num_classes", error="out of bounds"),
    pair("fourth_tanh_tank", tank, "output_range_mismatch", metric="val_mae"),
    pair("fourth_manual_sum", by_hand, "missing_zero_grad", metric="val_mse"),
    pair("fourth_frozen_statistics", raw_table, "eval_mode_in_training", "unnormalized_input"),
]
