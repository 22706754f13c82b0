"""Healthy whole fits that look odd, a later blind set, first half."""

import copy
import itertools
import math

import sklearn.datasets
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tests.corpus.program import Program, images, loaders, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


def mlp(*sizes, act=nn.ReLU):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


class Base(LightningModule):
    """A subclass says what the loss of a batch is; validation is the same."""

    lr = 2e-3

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.lr)


class Simple(Base):
    """A network, a loss of its output, an optimizer."""

    def __init__(self, net, criterion, optimizer):
        super().__init__()
        self.net, self.criterion, self.optimizer = net, criterion, optimizer

    def loss(self, batch):
        return self.criterion(self.net(*batch[:-1]), batch[-1])

    def configure_optimizers(self):
        return self.optimizer([p for p in self.parameters() if p.requires_grad])


class Codes(Base):
    """Vector quantization: the gradient passes straight through the nearest code."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 32), mlp(32, 64, 64)
        self.book = nn.Embedding(24, 4)
        nn.init.uniform_(self.book.weight, -0.5, 0.5)

    def loss(self, batch):
        x = batch[0].flatten(1)
        z = self.encoder(x).view(-1, 8, 4)
        code = self.book(torch.cdist(z, self.book.weight[None]).argmin(-1))
        back = self.decoder((z + (code - z).detach()).flatten(1))
        commit = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
        return F.mse_loss(back, x) + commit


class Score(Base):
    """Denoising score matching: the loss cannot fall far, and is mostly noise."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, 64, 64, 2, act=nn.SiLU)

    def loss(self, batch):
        x = batch[0]
        sigma = torch.exp(torch.rand(len(x), 1) * 3 - 3)
        noise = torch.randn_like(x)
        return (self.net(torch.cat([x + sigma * noise, sigma.log()], 1)) + noise).square().mean()


class Diffuser(Base):
    """Predicts the noise of digits at any time of a cosine schedule."""

    def __init__(self):
        super().__init__()
        self.time = nn.Linear(1, 32)
        self.a = nn.Conv2d(1, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 32, 3, padding=1)
        self.c = nn.Conv2d(32, 1, 3, padding=1)
        nn.init.zeros_(self.c.weight)
        nn.init.zeros_(self.c.bias)

    def loss(self, batch):
        t = torch.rand(len(batch[0]), 1)
        keep = torch.cos(t * math.pi / 2)[..., None, None]
        noise = torch.randn_like(batch[0])
        noisy = keep * batch[0] + (1 - keep**2).sqrt() * noise
        h = F.silu(self.a(noisy) + self.time(t)[..., None, None])
        return F.mse_loss(self.c(F.silu(self.b(h)) + h), noise)


class Triplets(Base):
    """Once most triplets are told apart, most losses are exactly zero."""

    lr = 1e-3

    def __init__(self):
        super().__init__()
        self.net = mlp(64, 64, 8)

    def loss(self, batch):
        x, y = batch
        z = F.normalize(self.net(x.flatten(1)), dim=1)
        distance = torch.cdist(z, z)
        same = y[:, None] == y
        positive = (distance * same).amax(1)
        negative = (distance + 9 * same).amin(1)
        return F.relu(positive - negative + 0.3).mean()


class Episodes(IterableDataset):
    """Five-way tasks: which digit a number stands for changes with every task."""

    def __init__(self, count, seed, low, high):
        self.count, self.seed, self.low, self.high = count, seed, low, high

    def __iter__(self):
        x, y = images()
        x, y, random = x[self.low : self.high], y[self.low : self.high], rng(self.seed)
        for _ in range(self.count):
            chosen = torch.randperm(10, generator=random)[:5]
            rows = [torch.where(y == c)[0] for c in chosen]
            rows = [r[torch.randperm(len(r), generator=random)[:8]] for r in rows]
            yield x[torch.stack(rows)].flatten(2)


class Prototypes(Base):
    def __init__(self):
        super().__init__()
        self.net = mlp(64, 64, 16)

    def loss(self, batch):
        z = self.net(batch)
        centers, queries = z[:, :3].mean(1), z[:, 3:].flatten(0, 1)
        return F.cross_entropy(-torch.cdist(queries, centers), torch.arange(5).repeat_interleave(5))


def episodes():
    train, val = Episodes(60, 1, 0, 1300), Episodes(30, 2, 1300, 1797)
    return Prototypes(), DataLoader(train, None), DataLoader(val, None)


class Gradient(LightningModule):
    """REINFORCE on a contextual bandit; the loss itself means nothing, regret does."""

    def __init__(self):
        super().__init__()
        self.policy = mlp(4, 32, 5)
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("truth", torch.randn(4, 5, generator=rng(60)))

    def training_step(self, batch, batch_idx):
        chosen = torch.distributions.Categorical(logits=self.policy(batch[0]))
        action = chosen.sample()
        reward = (batch[0] @ self.truth).gather(1, action[:, None]).squeeze(1)
        reward = reward + 0.3 * torch.randn_like(reward)
        self.baseline.lerp_(reward.mean(), 0.05)
        self.log("reward", reward.mean())
        loss = -((reward - self.baseline) * chosen.log_prob(action)).mean()
        return loss - 0.01 * chosen.entropy().mean()

    def validation_step(self, batch, batch_idx):
        value = batch[0] @ self.truth
        got = (self.policy(batch[0]).softmax(1) * value).sum(1)
        self.log("val_regret", (value.amax(1) - got).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Chain(LightningModule):
    """Fitted Q with a slow target on a corridor: the loss first grows as values do."""

    def __init__(self):
        super().__init__()
        self.q = mlp(12, 48, 2)
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        place, action = batch
        after = (place + 2 * action - 1).clamp(0, 11)
        done = after == 11
        with torch.no_grad():
            future = self.target(F.one_hot(after, 12).float()).amax(1)
        aim = 10.0 * done + 0.9 * future * ~done
        guess = self.q(F.one_hot(place, 12).float()).gather(1, action[:, None]).squeeze(1)
        return F.smooth_l1_loss(guess, aim)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        pairs = zip(self.target.parameters(), self.q.parameters(), strict=True)
        for slow, fast in pairs:
            slow.data.lerp_(fast.data, 0.1)

    def validation_step(self, batch, batch_idx):
        value = self.q(torch.eye(12))[:11].amax(1)
        self.log("val_error", (value - 10 * 0.9 ** torch.arange(10.0, -1, -1)).abs().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.q.parameters(), lr=3e-3)


def corridor():
    place = torch.randint(0, 11, (2400,), generator=rng(61))
    return Chain(), *loaders(place, torch.randint(0, 2, (2400,), generator=rng(62)))


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(15 * x)


def siren():
    """Sine activations with their own initialization, 900 pixels learned by heart."""
    axis = torch.linspace(-1, 1, 30)
    x = torch.cartesian_prod(axis, axis)
    y = torch.sin(5 * x[:, :1] * x[:, 1:]) + 0.5 * torch.cos(9 * x[:, 1:])
    net = nn.Sequential(nn.Linear(2, 48), Sine(), nn.Linear(48, 48), Sine(), nn.Linear(48, 1))
    nn.init.uniform_(net[0].weight, -0.25, 0.25)
    nn.init.uniform_(net[2].weight, -math.sqrt(6 / 48) / 15, math.sqrt(6 / 48) / 15)
    order = torch.randperm(900, generator=rng(63))
    return Simple(net, F.mse_loss, lambda p: torch.optim.Adam(p, 1e-3)), *loaders(
        x[order], y[order]
    )


class Physics(Base):
    """u'' = -u with u(0) = 0, u'(0) = 1: no targets, the equation is the loss."""

    def __init__(self):
        super().__init__()
        self.net = mlp(1, 32, 32, 1, act=nn.Tanh)

    def loss(self, batch):
        with torch.enable_grad():
            t = batch[0].clone().requires_grad_()
            u = t + t * t * self.net(t)  # holds the conditions at 0
            (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
            return (ddu + u).square().mean()

    def validation_step(self, batch, batch_idx):
        t = batch[0]
        self.log("val_loss", (t + t * t * self.net(t) - torch.sin(t)).square().mean())


def physics():
    return Physics(), *loaders(3 * torch.rand(800, 1, generator=rng(64)), batch_size=50)


class Tree(nn.Module):
    """A soft decision tree of depth four; leaves start at zero."""

    def __init__(self, features, classes):
        super().__init__()
        self.split = nn.Linear(features, 15)
        self.leaf = nn.Parameter(torch.zeros(16, classes))

    def forward(self, x):
        right = torch.sigmoid(self.split(x.flatten(1)))
        path = torch.ones(len(x), 1)
        for depth in range(4):
            p = right[:, 2**depth - 1 : 2 ** (depth + 1) - 1]
            path = torch.stack([path * (1 - p), path * p], 2).flatten(1)
        return path @ self.leaf


def tree():
    module = Simple(Tree(64, 10), F.cross_entropy, lambda p: torch.optim.Adam(p, 2e-2))
    return module, *loaders(*images(), batch_size=64)


class Kernel(nn.Module):
    """Random Fourier features, never trained, under a linear model."""

    def __init__(self):
        super().__init__()
        self.omega = nn.Linear(2, 200).requires_grad_(False)
        nn.init.normal_(self.omega.weight, std=3.0)
        nn.init.uniform_(self.omega.bias, 0, 2 * math.pi)
        self.head = nn.Linear(200, 1)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(torch.cos(self.omega(x)) * math.sqrt(2)).squeeze(1)


def kernel():
    points, side = sklearn.datasets.make_moons(1600, noise=0.2, random_state=8)
    data = torch.tensor(points).float(), torch.tensor(side).float()
    module = Simple(
        Kernel(), F.binary_cross_entropy_with_logits, lambda p: torch.optim.SGD(p, 0.05)
    )
    return module, *loaders(*data)


def coral(scores, grade):
    """Ordinal regression: is the grade above each of the thresholds?"""
    above = (grade[:, None] > torch.arange(scores.shape[1])).float()
    return F.binary_cross_entropy_with_logits(scores, above)


class Ordered(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(10, 16, 1)
        self.cuts = nn.Parameter(torch.linspace(1, -1, 4))

    def forward(self, x):
        return self.body(x) + self.cuts


def ordinal():
    x, y = standardized("diabetes")
    grade = torch.bucketize(y, torch.tensor([80.0, 120, 170, 220]))
    module = Simple(Ordered(), coral, lambda p: torch.optim.AdamW(p, 2e-3, weight_decay=0.3))
    return module, *loaders(x, grade, batch_size=16)


class Skip(Base):
    """Skip-grams with negative sampling; each word moves only when it is seen."""

    def __init__(self):
        super().__init__()
        self.word, self.context = nn.Embedding(200, 12), nn.Embedding(200, 12)
        nn.init.zeros_(self.context.weight)

    def loss(self, batch):
        word, near = batch
        other = torch.randint(0, 200, (len(word), 5))
        v = self.word(word)
        yes = F.logsigmoid((v * self.context(near)).sum(-1))
        no = F.logsigmoid(-torch.einsum("bd,bkd->bk", v, self.context(other)))
        return -(yes + no.sum(1)).mean()

    def configure_optimizers(self):
        return torch.optim.Adagrad(self.parameters(), lr=0.3)


def skipgram():
    word = torch.randint(0, 200, (9000,), generator=rng(66))
    near = (word // 20) * 20 + torch.randint(0, 20, (9000,), generator=rng(67))
    return Skip(), *loaders(word, near, batch_size=60)


def healthy(name, make, epochs, metric="val_loss", **trainer):
    settings = {"max_epochs": epochs} | trainer
    return Program(f"later_{name}", make, trainer=settings, metric=metric)


def rings():
    points, side = sklearn.datasets.make_circles(1600, noise=0.05, factor=0.5, random_state=4)
    return torch.tensor(points).float(), torch.tensor(side)


def contexts():
    return loaders(torch.randn(4000, 4, generator=rng(68)), batch_size=60)


PROGRAMS = [
    healthy("codes", lambda: (Codes(), *loaders(*images())), 25),
    healthy("score", lambda: (Score(), *loaders(*rings(), batch_size=60)), 30),
    healthy("diffuser", lambda: (Diffuser(), *loaders(*images())), 12),
    healthy("triplets", lambda: (Triplets(), *loaders(*images(), val_batch_size=32)), 15),
    healthy("episodes", episodes, 12),
    healthy("bandit", lambda: (Gradient(), *contexts()), 20, "val_regret"),
    healthy("corridor", corridor, 16, "val_error"),
    healthy("siren", siren, 40),
    healthy("physics", physics, 40),
    healthy("soft_tree", tree, 30),
    healthy("random_features", kernel, 20),
    healthy("ordinal", ordinal, 20),
    healthy("skipgram", skipgram, 9),
]
