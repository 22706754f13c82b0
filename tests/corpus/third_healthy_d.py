"""Healthy programs of the final test that only look odd: networks, and ordinary ones."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from tests.corpus.program import Program, images, loaders, standardized
from tests.corpus.third_healthy_c import Base, Labels, seeded


class Rebuilds(Base):
    """An autoencoder of any kind."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def compute(self, batch):
        x = batch[0].flatten(1)
        return F.mse_loss(self.decoder(self.encoder(x)), x), {}


class KeepLargest(nn.Module):
    """All but the twelve largest of the units are zero."""

    def forward(self, h):
        top, where = h.relu().topk(12, dim=1)
        return torch.zeros_like(h).scatter(1, where, top)


def principal():
    """Only linear layers: principal components by gradient descent."""
    return Rebuilds(nn.Linear(64, 20), nn.Linear(20, 64)), *loaders(*images())


def sparse_code():
    encoder = nn.Sequential(nn.Linear(64, 256), KeepLargest())
    return Rebuilds(encoder, nn.Linear(256, 64)), *loaders(*images())


def wide_dropout():
    """Four in five of two thousand units are dropped."""
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 2000), nn.ReLU(), nn.Dropout(0.8), nn.Linear(2000, 10))
    )
    return Labels(net, 1e-3), *loaders(*images())


class Graph(Base):
    """A graph as one batch: what is said of a node depends on its neighbours."""

    rate = 1e-2

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 32), nn.Linear(32, 3)

    def compute(self, batch):
        x, links, label, asked = batch
        scores = links @ self.b(torch.relu(links @ self.a(x)))
        right = (scores.argmax(1) == label)[asked].float().mean()
        return F.cross_entropy(scores[asked], label[asked]), {"acc": right}


def communities():
    g = seeded(12)
    label = torch.randint(0, 3, (240,), generator=g)
    near = torch.where(label[:, None] == label, 0.08, 0.01)
    links = (torch.rand(240, 240, generator=g) < near).float().triu(1)
    links = links + links.t() + torch.eye(240)
    x = F.one_hot(label, 6).float() + torch.randn(240, 6, generator=g)
    links = links / links.sum(1, keepdim=True)
    asked = torch.arange(240) < 160
    train, val = ([(x, links, label, m)] for m in (asked, ~asked))
    return Graph(), DataLoader(train, batch_size=None), DataLoader(val, batch_size=None)


class Mixture(Base):
    """A mixture of Gaussians: parameters alone, no output depends on an input."""

    rate = 5e-2

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(3 * torch.randn(5, 2))
        self.log_scales, self.weights = nn.Parameter(torch.ones(5)), nn.Parameter(torch.zeros(5))

    def compute(self, batch):
        gap = ((batch[0].unsqueeze(1) - self.means) / self.log_scales.exp().unsqueeze(1)).square()
        log_p = -0.5 * gap.sum(2) - 2 * self.log_scales + self.weights.log_softmax(0)
        return 1.8379 - log_p.logsumexp(1).mean(), {}


def clouds():
    g = seeded(13)
    centre = torch.tensor([[4.0, 0], [-4, 1], [0, 5]])[torch.randint(0, 3, (1500,), generator=g)]
    return Mixture(), *loaders(centre + 0.3 * torch.randn(1500, 2, generator=g))


class FromLast(Base):
    """Prices in the thousands; each window is brought to its own level inside."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, window):
        level, spread = window[:, -1:], window.std(1, keepdim=True)
        state = self.rnn(((window - level) / spread).unsqueeze(2))[1][0]
        return (level + spread * self.out(state)).squeeze(1)

    def compute(self, batch):
        return F.l1_loss(self(batch[0]), batch[1]), {}


def price_trends():
    g = seeded(14)
    base, slope = 3000 + 2000 * torch.rand(1400, 1, generator=g), torch.randn(1400, 1, generator=g)
    path = base + 20 * slope * torch.arange(15) + 5 * torch.randn(1400, 15, generator=g)
    return FromLast(), *loaders(path[:, :12], path[:, -1])


def ordinary_gru():
    x = torch.randint(0, 2, (1400, 9, 1), generator=seeded(15)).float()
    return Labels(CountOnes(), 1e-2), *loaders(x, x.sum((1, 2)).long().sub(3).clamp(0, 3))


class CountOnes(nn.Module):
    """A GRU and a linear layer on its last state."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x):
        return self.out(self.rnn(x)[1][0])


def ordinary_wine():
    net = nn.Sequential(nn.Linear(13, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    return Labels(net), *loaders(*standardized("wine"), batch_size=16)


def ordinary_convnet():
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    return Labels(net, 1e-2), *loaders(*images())


class Angle(Base):
    """Steering in (-1, 1) from an image, bounded by a tanh."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten())
        self.out = nn.Sequential(nn.Linear(200, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())

    def compute(self, batch):
        return F.mse_loss(self.out(self.net(batch[0])).squeeze(1), batch[1]), {}


def steering():
    g = seeded(6)
    place = torch.rand(1400, 1, 1, generator=g) * 9 + 1
    line = torch.exp(-((torch.arange(12.0) - place) ** 2) / 2).expand(-1, 12, -1)
    picture = line + 0.2 * torch.randn(1400, 12, 12, generator=g)
    return Angle(), *loaders(picture.unsqueeze(1), (place.flatten() - 5.5) / 4.7)


ACC = {"metric": "val_acc"}
PROGRAMS = [
    Program("third_principal", principal),
    Program("third_sparse_code", sparse_code),
    Program("third_wide_dropout", wide_dropout, **ACC),
    Program("third_one_graph", communities, steps=100, **ACC),
    Program("third_mixture", clouds),
    Program("third_from_last", price_trends),
    Program("third_ordinary_gru", ordinary_gru, **ACC),
    Program("third_ordinary_wine", ordinary_wine, **ACC),
    Program("third_ordinary_convnet", ordinary_convnet, **ACC),
    Program("third_steering", steering),
]
