"""Healthy programs of the final test that only look odd: losses, outputs and targets."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.program import Program, bundled, images, loaders, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Module(LightningModule):
    """What all share; ``loss`` of the program, ``judge`` where validation measures another."""

    lr = 3e-3

    def training_step(self, batch, batch_idx):
        loss = self.loss(*batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        judged = self.judge(*batch)
        self.log_dict(judged if isinstance(judged, dict) else {"val_loss": judged})

    def judge(self, *batch):
        return self.loss(*batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def accuracy(scores, labels):
    return {"val_acc": (scores.argmax(1) == labels).float().mean()}


class Committee(Module):
    """The logarithm of three networks' mean probability, as a negative log likelihood."""

    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.Softmax(dim=1))
            for _ in range(3)
        )

    def forward(self, x):
        return torch.stack([m(x.flatten(1)) for m in self.members]).mean(0)

    def loss(self, x, y):
        return F.nll_loss(self(x).clamp_min(1e-8).log(), y)


class NoisyOr(Module):
    """A bag is positive if any instance is: one minus the product of the sigmoids' rests."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 1), nn.Sigmoid())

    def forward(self, bag):
        return 1 - (1 - self.net(bag).squeeze(-1)).prod(1)

    def loss(self, bag, y):
        return F.binary_cross_entropy(self(bag).clamp(1e-6, 1 - 1e-6), y)


def noisy_bags():
    g = seeded(1)
    bag = torch.randn(1600, 4, 5, generator=g)
    y = ((bag[..., 0] + bag[..., 1]) > 2).any(1).float()
    return NoisyOr(), *loaders(bag, y, batch_size=64)


class Maximized(Module):
    """Returns the evidence lower bound itself; the optimizer is told to maximize."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def loss(self, x, _):
        mean, raw = self.enc(x.flatten(1)).chunk(2, 1)
        z = torch.distributions.Normal(mean, F.softplus(raw) + 1e-3)
        prior = torch.distributions.Normal(0.0, 1.0)
        kl = torch.distributions.kl_divergence(z, prior).sum(1)
        return (-2 * (self.dec(z.rsample()) - x.flatten(1)).square().sum(1) - kl).mean()

    def judge(self, x, _):
        return F.mse_loss(self.dec(self.enc(x.flatten(1))[:, :8]), x.flatten(1))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3, maximize=True)


class Coupling(Module):
    """A flow of affine couplings; its loss, a negative log density, falls far below zero."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2)) for _ in range(4)
        )

    def loss(self, x):
        volume = 0.0
        for net in self.nets:
            a, b = x.unbind(1)
            log_scale, shift = net(a.unsqueeze(1)).unbind(1)
            log_scale = 3 * torch.tanh(log_scale)
            x = torch.stack([b * log_scale.exp() + shift, a], 1)
            volume = volume + log_scale
        return (0.5 * x.square().sum(1) + math.log(2 * math.pi) - volume).mean()


def narrow_arc():
    t = torch.rand(2000, generator=seeded(2))
    noise = 0.01 * torch.randn(2000, generator=seeded(3))
    return Coupling(), *loaders(torch.stack([0.2 * t, 0.3 * t**2 + noise], 1), batch_size=64)


class Quantiles(Module):
    """Three quantiles at once: the target of (N, 1) is compared with (N, 3) on purpose."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 3))
        self.register_buffer("levels", torch.tensor([0.1, 0.5, 0.9]))

    def loss(self, x, y):
        gap = y.unsqueeze(1) - self.net(x)
        return torch.maximum(self.levels * gap, (self.levels - 1) * gap).mean()


def quantiles():
    g = seeded(4)
    x = torch.randn(1600, 3, generator=g)
    return Quantiles(), *loaders(x, 2 * x[:, 0] + x[:, 1] * x[:, 2] + 1)


class Ranker(Module):
    """Learns an order from all pairs in the batch: a column of scores minus a row of them."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))

    def loss(self, x, y):
        score = self.net(x)
        wanted = (y.unsqueeze(1) > y.unsqueeze(0)).float()
        return F.binary_cross_entropy_with_logits(score - score.squeeze(1), wanted)

    def judge(self, x, y):
        score = self.net(x).squeeze(1)
        better = y.unsqueeze(1) > y
        return {"val_acc": (score.unsqueeze(1) > score)[better].float().mean()}


def ranking():
    x = torch.randn(1500, 8, generator=seeded(5))
    return Ranker(), *loaders(x, x[:, 0] - 2 * x[:, 1] + (x[:, 2] * 2).sin())


class Padded(Module):
    """A convnet whose head was rounded up to sixteen outputs for ten digits."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(256, 16)),
        )

    def loss(self, x, y):
        return F.cross_entropy(self.net(x), y)

    def judge(self, x, y):
        return {"val_loss": self.loss(x, y), **accuracy(self.net(x), y)}


class Views(Module):
    """Two noisy views must find each other among the batch: the loss is made of the batch."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24))

    def scores(self, x):
        a, b = (x.flatten(1) + 0.4 * torch.randn(len(x), 64) for _ in range(2))
        return F.normalize(self.net(a), dim=1) @ F.normalize(self.net(b), dim=1).t() * 10

    def loss(self, x, _):
        scores = self.scores(x)
        own = torch.arange(len(x))
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.t(), own)) / 2


class Dice(Module):
    """Segments small squares with the soft Dice loss of a sigmoid; most pixels are empty."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1)),
            *(nn.ReLU(), nn.Conv2d(12, 1, 1), nn.Sigmoid()),
        )

    def loss(self, x, mask):
        p = self.net(x)
        return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)


def squares():
    g = seeded(7)
    mask = torch.zeros(700, 1, 14, 14)
    for one, (i, j) in zip(mask, torch.randint(0, 11, (700, 2), generator=g).tolist(), strict=True):
        one[0, i : i + 3, j : j + 3] = 1
    return Dice(), *loaders(2 * mask + 0.5 * torch.randn(mask.shape, generator=g), mask)


class Focal(Module):
    """A focal loss on rare positives; the bias starts at their frequency."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
        nn.init.constant_(self.net[2].bias, -math.log(19))

    def loss(self, x, y):
        ce = F.binary_cross_entropy_with_logits(self.net(x), y, reduction="none")
        alpha = torch.where(y > 0.5, 0.9, 0.1)
        return (alpha * (1 - torch.exp(-ce)) ** 2 * ce).mean()

    def judge(self, x, y):
        found, there = self.net(x) > 0, y > 0.5
        recall = found[there].float().mean(), (~found[~there]).float().mean()
        return {"val_balanced_acc": sum(recall) / 2}


def rare():
    g = seeded(8)
    y = (torch.rand(4000, generator=g) < 0.05).float()
    x = torch.randn(4000, 6, generator=g)
    x[:, :3] += 2 * y[:, None]
    return Focal(), *loaders(x, y, batch_size=100, val_batch_size=1000)


class Houses(Module):
    """Prices of hundreds of thousands: the network's output is scaled back inside."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))

    def forward(self, x):
        return 400_000 + 150_000 * self.net(x)

    def loss(self, x, y):
        return F.mse_loss(self(x), y)

    def judge(self, x, y):
        return F.l1_loss(self(x), y)


def houses():
    x = torch.randn(1500, 10, generator=seeded(9))
    return Houses(), *loaders(x, 400_000 + 90_000 * (x[:, 0] + x[:, 1] + x[:, 2].abs()))


class Mixup(Module):
    """Mixes each example with another of its batch and hides every fourth label's certainty."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))

    def loss(self, x, y):
        other, share = torch.randperm(len(x)), 0.5 + 0.5 * torch.rand(len(x), 1)
        soft = F.one_hot(y, 10).float()
        mixed = share.view(-1, 1, 1, 1) * x + (1 - share).view(-1, 1, 1, 1) * x[other]
        target = share * soft + (1 - share) * soft[other]
        return F.cross_entropy(self.net(mixed), target, label_smoothing=0.1)

    def judge(self, x, y):
        return accuracy(self.net(x), y)


class SumOfPixels(Module):
    """An autoencoder of raw pixels; the error is added over pixels, averaged over pictures."""

    def __init__(self):
        super().__init__()
        self.down = nn.Linear(64, 16)
        self.bias = nn.Parameter(torch.zeros(64))

    def loss(self, x, _):
        code = F.softplus(self.down(x))
        return F.mse_loss(
            F.linear(code, self.down.weight.t(), self.bias), x, reduction="sum"
        ) / len(x)


class Rates(Module):
    """Counts, most of them zero, by their Poisson likelihood."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))

    def loss(self, x, y):
        return F.poisson_nll_loss(F.softplus(self.net(x)), y, log_input=False, eps=1e-6)


def counted():
    g = seeded(10)
    x = torch.randn(1600, 4, generator=g)
    return Rates(), *loaders(x, torch.poisson(torch.exp(1.5 * x[:, 0] - 1.5), generator=g))


class Both(Module):
    """Classifies wines and rebuilds them, in a dict of losses of which one is negative."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(13, 24), nn.ReLU())
        self.label, self.rebuild = nn.Linear(24, 3), nn.Linear(24, 13)

    def training_step(self, batch, batch_idx):
        x, y = batch
        h = self.trunk(x)
        parts = {
            "ce": F.cross_entropy(self.label(h), y),
            "cosine": -F.cosine_similarity(self.rebuild(h), x).mean(),
        }
        self.log_dict(parts)
        return {"loss": parts["ce"] + parts["cosine"], "parts": parts["ce"].detach()}

    def judge(self, x, y):
        return F.cross_entropy(self.label(self.trunk(x)), y)


def raw_digits():
    x, y = bundled("digits")
    return x / 16, y


PROGRAMS = [
    Program("third_committee", lambda: (Committee(), *loaders(*images()))),
    Program("third_noisy_or", noisy_bags),
    Program("third_maximized", lambda: (Maximized(), *loaders(*images()))),
    Program("third_coupling", narrow_arc),
    Program("third_quantiles", quantiles),
    Program("third_all_pairs", ranking, metric="val_acc"),
    Program("third_rounded_head", lambda: (Padded(), *loaders(*images())), metric="val_acc"),
    Program("third_two_views", lambda: (Views(), *loaders(*images(), batch_size=64))),
    Program("third_soft_dice", squares),
    Program("third_focal_prior", rare, metric="val_balanced_acc"),
    Program("third_houses", houses),
    Program("third_mixup", lambda: (Mixup(), *loaders(*images())), metric="val_acc"),
    Program("third_sum_of_pixels", lambda: (SumOfPixels(), *loaders(*raw_digits()))),
    Program("third_rates", counted),
    Program("third_two_losses", lambda: (Both(), *loaders(*standardized("wine")))),
]
