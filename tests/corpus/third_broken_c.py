"""Broken programs of the final test, and their repaired twins: modes, batches and positions."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from lightning import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import bundled, images, loaders, pair, standardized


class Net(LightningModule):
    """Trains any classifier with Adam."""

    def __init__(self, net, lr=1e-3):
        super().__init__()
        self.net = net
        self.lr = lr

    def forward(self, *args):
        return self.net(*args)

    def training_step(self, batch, batch_idx):
        *inputs, labels = batch
        return F.cross_entropy(self(*inputs), labels)

    def validation_step(self, batch, batch_idx):
        *inputs, labels = batch
        scores = self(*inputs)
        self.log("val_loss", F.cross_entropy(scores, labels))
        self.log("val_acc", scores.argmax(-1).eq(labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Modes(Net):
    """Switches the mode of the network itself, in ``where`` into ``to``."""

    def __init__(self, net, where=None, **kwargs):
        super().__init__(net, **kwargs)
        self.where = where

    def training_step(self, batch, batch_idx):
        if self.where == "train":
            self.net.eval()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if self.where == "val":
            self.net.train()
        super().validation_step(batch, batch_idx)


def evaluated(broken):
    """Ten layers of batch normalization that never see a batch's statistics."""
    layers = [nn.Flatten()]
    for _ in range(10):
        layers += [nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.Sigmoid()]
    net = nn.Sequential(*layers, nn.Linear(64, 10))
    return Modes(net, "train" if broken else None, lr=2e-3), *loaders(*images(), batch_size=64)


def sorted_validation(broken):
    """Batch normalization by each validation batch, which holds one class."""
    x, y = bundled("digits")
    x = x.view(-1, 1, 8, 8) / 16
    train, _ = loaders(x, y, batch_size=64)
    order = 1347 + y[1347:].argsort()
    val = DataLoader(TensorDataset(x[order], y[order]), 10)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)),
    )
    return Modes(net, "val" if broken else None), train, val


def noisy_validation(broken):
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )
    return Modes(net, "val" if broken else None, lr=3e-3), *loaders(*images())


class PooledByAttention(nn.Module):
    """A bag of instances summed with attention weights."""

    def __init__(self, dim):
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.score = nn.Linear(32, 1)
        self.classify = nn.Linear(32, 3)
        self.dim = dim

    def forward(self, bag):
        h = self.lift(bag)
        weight = torch.softmax(self.score(h), dim=self.dim)
        return self.classify((weight * h).sum(1))


def bags(broken):
    """The one long vector of a bag says by its direction which class it is."""
    g = torch.Generator().manual_seed(6)
    bag = torch.randn(1600, 8, 6, generator=g)
    label = torch.randint(0, 3, (1600,), generator=g)
    place = torch.randint(0, 8, (1600,), generator=g)
    bag[torch.arange(1600), place, label] += 4
    batches = loaders(bag, label, batch_size=32, val_batch_size=400)
    return Net(PooledByAttention(0 if broken else 1), 5e-3), *batches


class SelfScaled(nn.Module):
    """Scales the activations to deviation one, over ``dim``, before the last layer."""

    def __init__(self, dim):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(13, 32), nn.Tanh())
        self.out = nn.Linear(32, 3)
        self.dim = dim

    def forward(self, x):
        h = self.hidden(x)
        h = (h - h.mean(self.dim, keepdim=True)) / (h.std(self.dim, keepdim=True) + 1e-5)
        return self.out(h)


def one_by_one(broken):
    """Validated on the few wines at a time that a day brings, sorted by cultivar."""
    x, y = standardized("wine")
    train, _ = loaders(x, y, batch_size=32)
    order = 133 + y[133:].argsort()
    val = DataLoader(TensorDataset(x[order], y[order]), batch_size=5)
    return Net(SelfScaled(0 if broken else 1), 1e-2), train, val


class GruTagger(nn.Module):
    """Tags every position; works time-first inside, as older code does."""

    def __init__(self, reshape):
        super().__init__()
        self.embed = nn.Embedding(12, 24)
        self.gru = nn.GRU(24, 32)
        self.tag = nn.Linear(32, 4)
        self.reshape = reshape

    def forward(self, tokens):
        out, _ = self.gru(self.embed(tokens.t()))
        scores = self.tag(out)
        if self.reshape:
            return scores.reshape(len(tokens), -1, 4).transpose(1, 2)
        return scores.permute(1, 2, 0)


class Tags(Net):
    """The class is the second dimension, as the loss wants it."""

    def validation_step(self, batch, batch_idx):
        tokens, tags = batch
        self.log("val_acc", (self(tokens).argmax(1) == tags).float().mean())


def tags(broken):
    tokens = torch.randint(0, 12, (1200, 9), generator=torch.Generator().manual_seed(1))
    before = F.pad(tokens, (1, 0))[:, :-1]
    return Tags(GruTagger(broken), 1e-2), *loaders(tokens, (tokens + before) % 4, batch_size=32)


class Channels(nn.Module):
    """A one-dimensional convolution of (time, sensor) records."""

    def __init__(self, view):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv1d(3, 24, 5), nn.ReLU(), nn.Conv1d(24, 24, 5), nn.ReLU()),
            *(nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(24, 4)),
        )
        self.view = view

    def forward(self, x):
        time, batch, sensor = x.shape
        if self.view:
            return self.net(x.reshape(batch, sensor, time))
        return self.net(x.permute(1, 2, 0))


class TimeFirst(Net):
    """Gets batches with time in front."""

    def forward(self, x):
        return self.net(x.transpose(0, 1).contiguous())


def sensors(broken):
    """Which of four rhythms the three sensors show."""
    g = torch.Generator().manual_seed(9)
    label = torch.randint(0, 4, (1200,), generator=g)
    phase = 6.28 * torch.rand(1200, 1, 3, generator=g)
    time = torch.arange(24.0).view(1, -1, 1)
    wave = torch.sin((0.5 + 0.4 * label).view(-1, 1, 1) * time + phase)
    wave = wave + 0.4 * torch.randn(1200, 24, 3, generator=g)
    return TimeFirst(Channels(broken), 5e-3), *loaders(wave, label, batch_size=48)


def chain(n, length, symbols=16, seed=0):
    """Sequences in which the next symbol is one of two that the present one allows."""
    g = torch.Generator().manual_seed(seed)
    follow = torch.randint(0, symbols, (symbols, 2), generator=g)
    out = [torch.randint(0, symbols, (n,), generator=g)]
    for _ in range(length - 1):
        pick = (torch.rand(n, generator=g) < 0.3).long()
        out.append(follow[out[-1], pick])
    return torch.stack(out, 1)


class NextToken(LightningModule):
    """A language model, validated on the symbol after a prefix that ends there."""

    def __init__(self, body, width=32, lr=5e-3, tie=False):
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.body = body
        self.to_vocab = nn.Linear(width, 16, bias=False)
        if tie:
            nn.init.normal_(self.embed.weight, std=0.1)
            self.to_vocab.weight = self.embed.weight
        self.lr = lr

    def forward(self, tokens):
        return self.to_vocab(self.body(self.embed(tokens)))

    def training_step(self, batch, batch_idx):
        text = batch[0]
        scores = self(text[:, :-1])
        return F.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())

    def validation_step(self, batch, batch_idx):
        text = batch[0]
        self.log("val_loss", F.cross_entropy(self(text[:, :-1])[:, -1], text[:, -1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.lr)


class Decoder(nn.Module):
    """One transformer block; the mask begins ``diagonal`` above the main diagonal."""

    def __init__(self, diagonal):
        super().__init__()
        self.place = nn.Parameter(0.1 * torch.randn(32, 32))
        self.attend = nn.MultiheadAttention(32, 2, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.diagonal = diagonal

    def forward(self, x):
        t = x.shape[1]
        x = x + self.place[:t]
        mask = torch.ones(t, t, dtype=torch.bool).triu(self.diagonal)
        q = self.norm(x)
        x = x + self.attend(q, q, q, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(x)


class Wave(nn.Module):
    """Dilated convolutions, padded on both sides or only before."""

    def __init__(self, both):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(32, 32, 3, dilation=d) for d in (1, 2))
        self.both = both

    def forward(self, x):
        x = x.transpose(1, 2)
        for conv in self.convs:
            d = conv.dilation[0]
            x = x + F.relu(conv(F.pad(x, (d, d) if self.both else (2 * d, 0))))
        return x.transpose(1, 2)


class Context(nn.Module):
    """A GRU with a summary of the text: of all of it, or of what was read so far."""

    def __init__(self, whole):
        super().__init__()
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.mix = nn.Linear(64, 32)
        self.whole = whole

    def forward(self, x):
        h, _ = self.gru(x)
        if self.whole:
            back, _ = self.gru(x.flip(1))
            summary = back.flip(1)
        else:
            summary = h.cumsum(1) / torch.arange(1, x.shape[1] + 1).view(1, -1, 1)
        return self.mix(torch.cat([h, summary], 2).relu())


def text(body, **kwargs):
    return NextToken(body, **kwargs), *loaders(chain(1200, 30), batch_size=32)


LEAK = {"metric": "val_loss", "steps": 150}
PAIRS = [
    pair("third_bag_attention", bags, "batch_leakage", "dims_scrambled"),
    pair("third_scaled_over_batch", one_by_one, "batch_leakage"),
    pair("third_tags_reshaped", tags, "dims_scrambled", "batch_leakage", metric="val_acc"),
    pair("third_sensors_reshaped", sensors, "dims_scrambled", "batch_leakage", metric="val_acc"),
    pair("third_mask_diagonal", lambda b: text(Decoder(2 if b else 1)), "future_leakage", **LEAK),
    pair("third_wave_padding", lambda b: text(Wave(b), tie=True), "future_leakage", **LEAK),
    pair("third_reads_ahead", lambda b: text(Context(b), lr=1e-2), "future_leakage", **LEAK),
    pair("third_eval_in_step", evaluated, "eval_mode_in_training", metric="val_acc"),
    pair("third_train_in_val", sorted_validation, "train_mode_in_validation", metric="val_acc"),
    pair("third_dropout_in_val", noisy_validation, "train_mode_in_validation"),
]
