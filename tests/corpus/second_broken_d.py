"""Broken programs of a second hand: sequences, batches and the data."""

import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.corpus.program import bundled, images, loaders, pair, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Task(LightningModule):
    """A model and the function that compares its output with the targets."""

    def __init__(self, model, loss=F.cross_entropy, lr=5e-3):
        super().__init__()
        self.model, self.loss, self.lr = model, loss, lr

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = self.loss(self.model(inputs), targets)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("val_loss", self.loss(self.model(inputs), targets))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Recall(nn.Module):
    """Which value stood at the place that the last token marks?"""

    def __init__(self, batch_first):
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        self.place = nn.Parameter(0.5 * torch.randn(5, 32))
        self.attend = nn.MultiheadAttention(32, 4, batch_first=batch_first)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))

    def forward(self, ids):
        x = self.embed(ids) + self.place
        return self.mlp((x + self.attend(x, x, x, need_weights=False)[0])[:, -1])


def recall(broken):
    ids = torch.randint(8, (3000, 5), generator=seeded(31))
    at = torch.randint(4, (3000,), generator=seeded(32))
    ids[:, 4] = 8 + at
    module = Task(Recall(batch_first=not broken), lr=5e-3)
    return module, *loaders(ids, ids[torch.arange(3000), at], batch_size=64)


class AttentivePool(nn.Module):
    """A weighted mean of instances, of which one matters."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.score, self.out = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, bag):
        weight = self.score(bag).softmax(dim=self.dim)
        return self.out((weight * bag).sum(1)).squeeze(1)


def bags(broken):
    bag = torch.randn(1600, 6, 8, generator=seeded(33))
    key = torch.randint(6, (1600,), generator=seeded(34))
    bag[torch.arange(1600), key, 0] += 4
    label = (bag[torch.arange(1600), key, 1] > 0).float()
    loss = F.binary_cross_entropy_with_logits
    return Task(AttentivePool(0 if broken else 1), loss, 2e-2), *loaders(bag, label)


class TimeFirst(nn.Module):
    """An LSTM for batches of series of two channels; is the first value above the last?"""

    def __init__(self, **order):
        super().__init__()
        self.lstm = nn.LSTM(2, 24, **order)
        self.out = nn.Linear(24, 2)

    def forward(self, series):
        return self.out(self.lstm(series)[0][:, -1])


def series_order(broken):
    series = torch.randn(1600, 6, 2, generator=seeded(35))
    label = (series[:, 0, 0] > series[:, -1, 1]).long()
    module = TimeFirst() if broken else TimeFirst(batch_first=True)
    return Task(module, lr=1e-2), *loaders(series, label)


class ChannelsLast(nn.Module):
    """Convolutions along time over readings that come as time x channel."""

    def __init__(self, arrange):
        super().__init__()
        self.arrange = arrange
        self.conv = nn.Conv1d(6, 24, 5)
        self.out = nn.Linear(24, 6)

    def forward(self, x):
        return self.out(F.relu(self.conv(self.arrange(x))).amax(-1))


def loud_channel(broken):
    x = 0.8 * torch.randn(1200, 24, 6, generator=seeded(36))
    label = torch.randint(6, (1200,), generator=seeded(37))
    start = torch.randint(18, (1200,), generator=seeded(38))
    for row in range(1200):
        x[row, start[row] : start[row] + 6, label[row]] += 1.5
    arrange = (lambda t: t.reshape(-1, 6, 24)) if broken else (lambda t: t.transpose(1, 2))
    return Task(ChannelsLast(arrange)), *loaders(x, label)


class Forecaster(LightningModule):
    """Trains on every next value at once; is judged on the one after the end."""

    def __init__(self, net, loss):
        super().__init__()
        self.net, self.loss = net, loss

    def training_step(self, batch, batch_idx):
        (series,) = batch
        out = self.net(series[:, :-1])
        return self.loss(out.flatten(0, 1), series[:, 1:].flatten())

    def validation_step(self, batch, batch_idx):
        (series,) = batch
        self.log("val_loss", self.loss(self.net(series[:, :-1])[:, -1], series[:, -1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def squared(out, target):
    return F.mse_loss(out.squeeze(-1), target)


class TokenMixer(nn.Module):
    """One transformer layer over a chain of symbols."""

    def __init__(self, causal):
        super().__init__()
        self.causal = causal
        self.embed = nn.Embedding(10, 32)
        self.place = nn.Parameter(0.3 * torch.randn(12, 32))
        self.block = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.out = nn.Linear(32, 10)

    def forward(self, ids):
        steps = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(steps) if self.causal else None
        return self.out(self.block(self.embed(ids) + self.place[:steps], src_mask=mask))


def chain(rows, steps):
    jump = torch.rand(10, 10, generator=seeded(39)).pow(6)
    ids = torch.randint(10, (rows, 1), generator=seeded(40))
    for _ in range(steps - 1):
        ids = torch.cat([ids, torch.multinomial(jump[ids[:, -1]], 1, generator=seeded(41 + _))], 1)
    return ids


def mixer(broken):
    return Forecaster(TokenMixer(not broken), F.cross_entropy), *loaders(chain(1600, 12))


class Filters(nn.Module):
    """Two convolutions along time, padded on both sides or on the left."""

    def __init__(self, left, right):
        super().__init__()
        self.pad = (left, right)
        self.one, self.two = nn.Conv1d(1, 24, 5), nn.Conv1d(24, 1, 1)

    def forward(self, x):
        return self.two(F.relu(self.one(F.pad(x.unsqueeze(1), self.pad)))).transpose(1, 2)


class TwoWays(nn.Module):
    """A recurrent net over the past, and over what else it is given."""

    def __init__(self, both):
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True, bidirectional=both)
        self.out = nn.Linear(48 if both else 24, 1)

    def forward(self, x):
        return self.out(self.gru(x.unsqueeze(-1))[0])


def oscillation(rows=1200, steps=20):
    noise = torch.randn(rows, steps + 2, generator=seeded(60))
    values = [noise[:, 0], noise[:, 1]]
    for t in range(2, steps + 2):
        values.append(1.5 * values[-1] - 0.9 * values[-2] + 0.3 * noise[:, t])
    series = torch.stack(values[2:], 1)
    return series / series.std()


def filters(broken):
    pad = (2, 2) if broken else (4, 0)
    return Forecaster(Filters(*pad), squared), *loaders(oscillation())


def two_ways(broken):
    return Forecaster(TwoWays(broken), squared), *loaders(oscillation())


def mlp(*widths, activation=nn.ReLU):
    layers = [nn.Flatten()]
    for i, o in itertools.pairwise(widths):
        layers += [nn.Linear(i, o), activation()]
    return nn.Sequential(*layers[:-1])


def lost_readings(broken):
    x, y = standardized("breast_cancer")
    x = x.clone()
    x[torch.rand(x.shape, generator=seeded(61)) < 0.002] = math.nan
    return Task(mlp(30, 32, 2)), *loaders(x if broken else x.nan_to_num(0.0), y)


def lost_targets(broken):
    x, y = standardized("diabetes")
    y = ((y - y.mean()) / y.std()).unsqueeze(1)
    y[::37] = math.nan
    keep = torch.ones(len(y), dtype=torch.bool) if broken else y[:, 0].isfinite()
    return Task(mlp(10, 24, 1), F.mse_loss), *loaders(x[keep], y[keep])


def careless_nll(scores, label):
    odds = scores.clamp_min(0) + 0.0
    return -(odds / odds.sum(1, keepdim=True)).log()[range(len(label)), label].mean()


def careful_nll(scores, label):
    return -scores.log_softmax(1)[range(len(label)), label].mean()


class Twins(nn.Module):
    """The distance of two embeddings, of which some are of the same picture."""

    def __init__(self, eps):
        super().__init__()
        self.eps = eps
        self.tower = mlp(64, 64, 8)

    def forward(self, pairs):
        gap = self.tower(pairs[:, 0]) - self.tower(pairs[:, 1])
        return (gap.square().sum(1) + self.eps).sqrt()


def contrast(distance, same):
    return (same * distance**2 + (1 - same) * F.relu(2 - distance) ** 2).mean()


def twins(broken):
    image, label = images()
    partner = torch.randperm(len(image), generator=seeded(62))
    partner[::20] = torch.arange(len(image))[::20]
    alike = (label == label[partner]).float()
    module = Task(Twins(0.0 if broken else 1e-6), contrast, 2e-3)
    return module, *loaders(torch.stack([image, image[partner]], 1), alike)


class MaskedMean(nn.Module):
    """The mean over the tokens that are no padding."""

    def __init__(self, least):
        super().__init__()
        self.least = least
        self.embed, self.out = nn.Embedding(40, 16), nn.Linear(16, 2)

    def forward(self, ids):
        real = (ids > 0).float()
        total = (self.embed(ids) * real.unsqueeze(-1)).sum(1)
        return self.out(total / real.sum(1, keepdim=True).clamp_min(self.least))


def some_empty(broken):
    ids = torch.randint(1, 40, (1200, 9), generator=seeded(63))
    label = ((ids > 20).sum(1) > 4).long()
    length = torch.randint(4, 10, (1200,), generator=seeded(64))
    length[::50] = 0
    ids[torch.arange(9) >= length[:, None]] = 0
    return Task(MaskedMean(0.0 if broken else 1.0), lr=2e-2), *loaders(ids, label)


class Table(Dataset):
    """Rows of two tensors."""

    def __init__(self, x, y, row):
        self.x, self.y, self.row = x, y, row

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[self.row(i)], self.y[i]


def same_row(broken):
    x, y = standardized("wine")
    row = (lambda i: 0) if broken else (lambda i: i)
    train, val = Table(x[:130], y[:130], row), Table(x[130:], y[130:], row)
    return Task(mlp(13, 24, 3)), DataLoader(train, 16, shuffle=True), DataLoader(val, 48)


def clipped_away(broken):
    x, y = bundled("digits")
    x = x.clamp(max=0) if broken else x.clamp(min=0)
    return Task(mlp(64, 48, 10)), *loaders((x - 4.9) / 6.0, y)


def raw_cells(broken):
    x, y = bundled("breast_cancer") if broken else standardized("breast_cancer")
    return Task(mlp(30, 24, 2, activation=nn.Tanh), lr=3e-3), *loaders(x, y)


def unix_time(broken):
    day = torch.randint(365, (1200,), generator=seeded(65)).float()
    x = torch.randn(1200, 5, generator=seeded(66))
    x[:, 4] = 1.6e9 + 86400 * day if broken else (day - 182) / 105
    y = x[:, :4].sum(1, keepdim=True) / 2 + (day[:, None] / 58).sin()
    return Task(mlp(5, 32, 1), F.mse_loss), *loaders(x, y)


def in_order(name, make_net, lr):
    def make(broken):
        x, y = standardized(name)
        cut = len(x) * 3 // 4
        order = y[:cut].argsort(stable=True)
        train = Table(x[:cut][order], y[:cut][order], int)
        val = DataLoader(Table(x[cut:], y[cut:], int), 128)
        return Task(make_net(), lr=lr), DataLoader(train, 32, shuffle=not broken), val

    return make


def normed_cells():
    return nn.Sequential(nn.Linear(30, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2))


PAIRS = [
    pair("recall_by_marker", recall, "batch_leakage", "dims_scrambled", steps=200),
    pair("instances_of_a_bag", bags, "batch_leakage", steps=250),
    pair("lstm_time_first", series_order, "batch_leakage", "dims_scrambled"),
    pair("channels_by_reshape", loud_channel, "dims_scrambled"),
    pair("symbols_unmasked", mixer, "future_leakage"),
    pair("filters_both_sides", filters, "future_leakage"),
    pair("gru_both_ways", two_ways, "future_leakage"),
    pair("lost_readings", lost_readings, "nan_in_data", "non_finite"),
    pair("lost_targets", lost_targets, "nan_in_data", "non_finite"),
    pair(
        "odds_of_zero",
        lambda broken: (
            Task(mlp(64, 32, 10), careless_nll if broken else careful_nll),
            *loaders(*images()),
        ),
        "non_finite",
    ),
    pair("twin_distance", twins, "non_finite"),
    pair("empty_sentences", some_empty, "non_finite"),
    pair("row_zero", same_row, "constant_input"),
    pair("clipped_away", clipped_away, "constant_input"),
    pair("raw_cells", raw_cells, "unnormalized_input"),
    pair("unix_time", unix_time, "unnormalized_input"),
    pair("digits_in_order", in_order("digits", lambda: mlp(64, 48, 10), 3e-3), "unshuffled_data"),
    pair(
        "cells_in_order",
        in_order("breast_cancer", normed_cells, 5e-3),
        "unshuffled_data",
        steps=133,
    ),
]
