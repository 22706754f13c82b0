"""Healthy programs that look odd, fourth set, last part."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.corpus.fourth_broken_a import generator
from tests.corpus.fourth_healthy_a import Accuracy, Base
from tests.corpus.program import Program, bundled, loaders, standardized


class SparseTables(Base):
    """Sparse tables of users and films, most rows without a gradient in a step."""

    automatic_optimization = False

    def __init__(self, users=60, films=40, size=4):
        super().__init__()
        self.users = nn.Embedding(users, size, sparse=True)
        self.films = nn.Embedding(films, size, sparse=True)
        self.offset = nn.Parameter(torch.zeros(1))
        for table in (self.users, self.films):
            nn.init.normal_(table.weight, std=0.3)

    def loss(self, batch):
        user, film, rating = batch
        guess = (self.users(user) * self.films(film)).sum(1) + self.offset
        return F.mse_loss(guess, rating)

    def training_step(self, batch, _):
        loss = self.loss(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        tables = [self.users.weight, self.films.weight]
        return torch.optim.SparseAdam(tables, lr=0.03), torch.optim.Adam([self.offset], lr=0.03)


def ratings():
    g = generator(40)
    user = torch.randint(0, 60, (6000,), generator=g)
    film = torch.randint(0, 40, (6000,), generator=g)
    taste, style = torch.randn(60, 2, generator=g), torch.randn(40, 2, generator=g)
    rating = 1.5 + (taste[user] * style[film]).sum(1) + 0.1 * torch.randn(6000, generator=g)
    return SparseTables(), *loaders(user, film, rating, batch_size=64)


class Ordinal(Base):
    """Five grades from one score and four ordered thresholds."""

    lr = 2e-2

    def __init__(self):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1, bias=False))
        self.first = nn.Parameter(torch.tensor(-1.5))
        self.steps = nn.Parameter(torch.zeros(3))

    def loss(self, batch):
        x, grade = batch
        cuts = torch.cat([self.first[None], self.first + F.softplus(self.steps).cumsum(0)])
        above = (grade[:, None] > torch.arange(4)).float()
        return F.binary_cross_entropy_with_logits(self.score(x) - cuts, above)


def grades():
    g = generator(41)
    x = torch.randn(1800, 10, generator=g)
    score = x[:, 0] + torch.relu(x[:, 1]) - 0.8 * x[:, 2]
    grade = torch.bucketize(score, score.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8])))
    return Ordinal(), *loaders(x, grade)


class Margin(Accuracy):
    """A linear machine with a squared hinge; zero at first, and many zero gradients later."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.machine = nn.Linear(64, 10)
        nn.init.zeros_(self.machine.weight)

    def forward(self, x):
        return self.machine(x)

    def loss(self, batch):
        return F.multi_margin_loss(self(batch[0]), batch[1], p=2)


class MaskedPixels(Base):
    """Fills in hidden pixels; only they count, the others' outputs get no gradient."""

    lr = 3e-3

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(128, 192), nn.GELU(), nn.Linear(192, 64))

    def loss(self, batch):
        x = batch[0] / 8 - 1
        hidden = torch.rand_like(x) < 0.4
        guess = self.net(torch.cat([x * ~hidden, hidden.float()], 1))
        return (guess - x)[hidden].square().mean()


class Routed(Base):
    """A gate sends each row to one of four experts; an expert may have no row in a batch."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1)) for _ in range(4)
        )

    def forward(self, x):
        share, chosen = self.gate(x).softmax(-1).max(-1)
        out = x.new_zeros(len(x))
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]).squeeze(1))
        return out * share * 4

    def loss(self, batch):
        return F.mse_loss(self(batch[0]), batch[1])


def routed():
    x = torch.randn(1800, 6, generator=generator(42))
    y = torch.where(x[:, 0] > 0, 2 * x[:, 1] + 1, x[:, 2] - 2 * x[:, 3]) + x[:, 4].abs()
    return Routed(), *loaders(x, y)


PROGRAMS = [
    Program("fourth_sparse_tables", ratings),
    Program("fourth_ordinal", grades),
    Program(
        "fourth_margin", lambda: (Margin(), *loaders(*standardized("digits"))), metric="val_acc"
    ),
    Program("fourth_masked_pixels", lambda: (MaskedPixels(), *loaders(bundled("digits")[0]))),
    Program("fourth_routed", routed),
]
