"""Healthy programs of the final test that only look odd: sequences, inputs and data."""

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from tests.corpus.program import Program, bundled, images, loaders


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Base(LightningModule):
    """Training around ``compute``, which gives the loss and what else there is to log."""

    rate = 5e-3

    def training_step(self, batch):
        loss, extra = self.compute(batch)
        self.log_dict({f"train_{name}": value for name, value in extra.items()})
        return loss

    def validation_step(self, batch):
        loss, extra = self.compute(batch)
        self.log_dict({"val_loss": loss} | {f"val_{k}": v for k, v in extra.items()})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.rate)


class Labels(Base):
    """Any network that gives scores; classes along the last dimension."""

    def __init__(self, net, rate=5e-3):
        super().__init__()
        self.net, self.rate = net, rate

    def forward(self, x):
        return self.net(x)

    def compute(self, batch):
        scores, label = self(batch[0]), batch[1]
        loss = F.cross_entropy(scores.flatten(0, -2), label.flatten())
        return loss, {"acc": (scores.argmax(-1) == label).float().mean()}


class BothWays(nn.Module):
    """A bidirectional tagger: what it says of a token depends on the next one, as it should."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.rnn = nn.LSTM(16, 24, bidirectional=True, batch_first=True)
        self.out = nn.Linear(48, 4)

    def forward(self, x):
        return self.out(self.rnn(self.embed(x))[0])


def neighbours():
    x = torch.randint(0, 8, (1400, 10), generator=seeded(0))
    return Labels(BothWays(), 1e-2), *loaders(x, (x + x.roll(-1, 1)) % 4, batch_size=48)


class Masked(Base):
    """Fills in hidden tokens from both sides; all other positions are left out of the loss."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 32)
        self.net = nn.Sequential(nn.Conv1d(32, 64, 5, padding=2), nn.ReLU(), nn.Conv1d(64, 12, 1))

    def compute(self, batch):
        text = batch[0]
        hidden = torch.rand(text.shape) < 0.15
        scores = self.net(self.embed(text.masked_fill(hidden, 12)).transpose(1, 2))
        wanted = text.masked_fill(~hidden, -100)
        return F.cross_entropy(scores, wanted, ignore_index=-100), {}


def permuted_chain(n=1200, length=16):
    step = torch.randperm(12, generator=seeded(3))
    out = [torch.randint(0, 12, (n,), generator=seeded(4))]
    for _ in range(length - 1):
        out.append(step[out[-1]])
    return torch.stack(out, 1)


class Translate(Base):
    """Teacher forcing: reads the target's past and all of the source, from its end."""

    rate = 1e-2

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(9, 24), nn.Embedding(10, 24)
        self.decoder = nn.GRU(48, 48, batch_first=True)
        self.out = nn.Linear(48, 9)

    def compute(self, batch):
        source, target = batch
        past = F.pad(target, (1, 0), value=9)[:, :-1]
        both = torch.cat([self.source(source.flip(1)), self.target(past)], 2)
        scores = self.out(self.decoder(both)[0])
        right = (scores.argmax(2) == target).float().mean()
        return F.cross_entropy(scores.flatten(0, 1), target.flatten()), {"acc": right}


def translations():
    source = torch.randint(0, 9, (1400, 7), generator=seeded(5))
    return Translate(), *loaders(source, source.flip(1) * 2 % 9, batch_size=48)


class Smoother(Base):
    """Takes the noise off a series; the value at a time is estimated from before and after."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 1, 9, padding=4)
        )

    def compute(self, batch):
        noisy, clean = batch
        return F.mse_loss(self.net(noisy), clean), {}


def noisy_waves():
    g = seeded(6)
    pace, start = (torch.rand(1000, 1, 1, generator=g) for _ in range(2))
    clean = torch.sin((0.1 + 0.3 * pace) * torch.arange(40) + 6.28 * start)
    return Smoother(), *loaders(clean + 0.5 * torch.randn(1000, 1, 40, generator=g), clean)


class RoundedVocabulary(Base):
    """A causal language model with tied weights; 64 symbols of which the texts use twelve."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.rnn = nn.GRU(32, 32, batch_first=True)

    def compute(self, batch):
        text = batch[0]
        scores = self.rnn(self.embed(text[:, :-1]))[0] @ self.embed.weight.t()
        return F.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten()), {}


class Gaps(Base):
    """Missing inputs are filled in inside; targets that were not measured are left out."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 2))

    def forward(self, x):
        return self.net(torch.cat([x.nan_to_num(0.0), x.isnan().float()], 1))

    def compute(self, batch):
        x, y = batch
        seen = y.isfinite()
        return F.mse_loss(self(x)[seen], y[seen]), {}


def with_gaps():
    g = seeded(7)
    x = torch.randn(1600, 8, generator=g)
    y = torch.stack([x[:, 0] + x[:, 1].abs(), x[:, 2] - x[:, 3]], 1)
    holes = torch.rand(1600, 8, generator=g) < 0.05, torch.rand(1600, 2, generator=g) < 0.3
    return Gaps(), *loaders(x.masked_fill(holes[0], torch.nan), y.masked_fill(holes[1], torch.nan))


def sparse_table():
    """One-hot columns, most of them empty in a batch, a column of ones and one of sevens."""
    g = seeded(8)
    kind, size = torch.randint(0, 60, (1600,), generator=g), torch.randn(1600, 2, generator=g)
    fixed = torch.tensor([1.0, 7.0]).expand(1600, 2)
    x = torch.cat([F.one_hot(kind, 60).float(), size, fixed], 1)
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 3))
    return Labels(net, 1e-2), *loaders(x, (kind % 3 + (size[:, 0] > 0)) % 3, batch_size=48)


class Clock(nn.Module):
    """Sees seconds since 1970, and makes the hour of the day of them."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, seconds):
        turn = (seconds % 86400).float() / 86400 * 6.2832
        return self.net(torch.stack([turn.sin(), turn.cos()], 1))


def times_of_day():
    seconds = torch.randint(1_600_000_000, 1_700_000_000, (1500,), generator=seeded(9))
    return Labels(Clock(), 1e-2), *loaders(seconds, (seconds % 86400) // 21600)


def bytes_first():
    """Pixels from 0 to 255 into batch normalization; not shuffled, for they are in no order."""
    x, y = bundled("digits")
    net = nn.Sequential(
        *(nn.BatchNorm2d(1), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(144, 10)),
    )
    return Labels(net), *loaders((x * 255 / 16).round().view(-1, 1, 8, 8), y, shuffle=False)


class Augmented(Dataset):
    """Pictures moved about, made noisy, fainter, and partly erased, each time anew."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        x = self.x[i].roll(int(torch.randint(-1, 2, ())), 2) * (0.5 + 0.5 * torch.rand(()))
        x = x + 0.4 * torch.randn_like(x)
        row = int(torch.randint(0, 8, ()))
        x[:, row] = 0
        return x, self.y[i]


def augmented():
    """Validated on clean pictures sorted by their label."""
    x, y = images()
    order = 1347 + y[1347:].argsort()
    train = DataLoader(Augmented(x[:1347], y[:1347]), 32, shuffle=True, drop_last=True)
    net = nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, stride=2)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(216, 10)),
    )
    return Labels(net), train, DataLoader(TensorDataset(x[order], y[order]), 64)


def resampled():
    """Rare classes are drawn more often for training; validation has them as they come."""
    x, y = images()
    g = seeded(10)
    kept = torch.rand(len(y), generator=g) < torch.where(y < 7, 1.0, 0.25)
    x, y = x[kept], y[kept]
    cut = len(y) * 3 // 4
    weight = 1 / torch.bincount(y[:cut]).float()
    sampler = WeightedRandomSampler(weight[y[:cut]].tolist(), cut)
    train = DataLoader(TensorDataset(x[:cut], y[:cut]), 32, sampler=sampler, drop_last=True)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    return Labels(net), train, DataLoader(TensorDataset(x[cut:], y[cut:]), 128)


class Stream(IterableDataset):
    """An endless stream of spirals."""

    def __init__(self, n, seed=None):
        self.n, self.seed = n, seed

    def __iter__(self):
        g = None if self.seed is None else seeded(self.seed)
        for _ in range(self.n):
            arm, r = int(torch.randint(0, 2, (), generator=g)), torch.rand((), generator=g)
            turn = 5 * r + 3.1416 * arm
            yield 2 * r * torch.stack([turn.cos(), turn.sin()]), arm


def spirals():
    net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    train = DataLoader(Stream(100000), 64)
    return Labels(net, 1e-2), train, DataLoader(Stream(400, seed=1), 100)


ACC = {"metric": "val_acc"}
PROGRAMS = [
    Program("third_both_ways", neighbours, **ACC),
    Program("third_hidden_tokens", lambda: (Masked(), *loaders(permuted_chain()))),
    Program("third_teacher_forcing", translations, **ACC),
    Program("third_smoother", noisy_waves),
    Program("third_rounded_vocabulary", lambda: (RoundedVocabulary(), *loaders(permuted_chain()))),
    Program("third_gaps", with_gaps),
    Program("third_sparse_table", sparse_table, **ACC),
    Program("third_clock", times_of_day, **ACC),
    Program("third_bytes_first", bytes_first, **ACC),
    Program("third_augmented", augmented, **ACC),
    Program("third_resampled", resampled, **ACC),
    Program("third_stream", spirals, **ACC),
]
