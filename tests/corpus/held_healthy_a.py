"""Healthy whole fits that only look odd, written without sight of the monitors: part one."""

import copy
import functools
import itertools

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import Program, bundled, images, loaders, standardized


class Model(LightningModule):
    """Classification with any optimizer and any schedule."""

    def __init__(self, net, make_optimizer, make_schedule=None, interval="step"):
        super().__init__()
        self.net, self.interval = net, interval
        self.make_optimizer, self.make_schedule = make_optimizer, make_schedule

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.log("val_loss", F.cross_entropy(out, y), prog_bar=True)
        self.log("val_acc", (out.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_schedule is None:
            return optimizer
        schedule = self.make_schedule(optimizer)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


def by(kind, **kwargs):
    return functools.partial(kind, **kwargs)


def dense(*sizes, act=nn.ReLU, last=True):
    net = nn.Sequential()
    for n, m in itertools.pairwise(sizes):
        net.append(nn.Linear(n, m)).append(act())
    return net[:-1] if last else net


def digits(**kwargs):
    return loaders(*standardized("digits"), **kwargs)


class Gan(LightningModule):
    """A generator of a ring of points; judged by the distance of the radii."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.g = dense(4, 32, 32, 2, act=nn.LeakyReLU)
        self.d = dense(2, 32, 32, 1, act=nn.LeakyReLU)

    def training_step(self, batch, batch_idx):
        real = batch[0]
        og, od = self.optimizers()
        fake = self.g(torch.randn(len(real), 4))
        d_loss = F.softplus(-self.d(real)).mean() + F.softplus(self.d(fake.detach())).mean()
        od.zero_grad()
        self.manual_backward(d_loss)
        od.step()
        g_loss = F.softplus(-self.d(fake)).mean()
        og.zero_grad()
        self.manual_backward(g_loss)
        og.step()
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})

    def validation_step(self, batch, batch_idx):
        fake = self.g(torch.randn(len(batch[0]), 4)).norm(dim=1).sort()[0]
        self.log("val_distance", (fake - batch[0].norm(dim=1).sort()[0]).abs().mean())

    def configure_optimizers(self):
        settings = {"lr": 2e-3, "betas": (0.5, 0.99)}
        return [optim.Adam(net.parameters(), **settings) for net in (self.g, self.d)]


def gan():
    g = torch.Generator().manual_seed(1)
    angle = 6.2832 * torch.rand(1280, generator=g)
    ring = torch.stack([angle.cos(), angle.sin()], 1) * 2
    ring += 0.1 * torch.randn(1280, 2, generator=g)
    return Gan(), *loaders(ring, batch_size=64, val_batch_size=320)


class Vae(LightningModule):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = dense(64, 64, 16), dense(8, 64, 64)

    def elbo(self, x):
        mean, log_var = self.enc(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
        return F.binary_cross_entropy_with_logits(self.dec(z), x, reduction="sum") / len(x), kl

    def training_step(self, batch, batch_idx):
        rec, kl = self.elbo(batch[0])
        self.log("train_rec", rec)
        self.log("train_kl", kl)
        return rec + min(1.0, self.global_step / 100) * kl

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", sum(self.elbo(batch[0])))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=2e-3)


def vae():
    return Vae(), *loaders(bundled("digits")[0] / 16)


class Reinforce(LightningModule):
    """A contextual bandit by policy gradient; the loss itself tells nothing."""

    def __init__(self):
        super().__init__()
        self.policy = dense(4, 32, 5, act=nn.Tanh)
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("truth", torch.randn(4, 5, generator=torch.Generator().manual_seed(7)))

    def training_step(self, batch, batch_idx):
        dist = torch.distributions.Categorical(logits=self.policy(batch[0]))
        action = dist.sample()
        reward = (batch[0] @ self.truth).gather(1, action[:, None])[:, 0]
        advantage = reward - self.baseline
        self.baseline.lerp_(reward.mean(), 0.05)
        self.log("reward", reward.mean())
        return -(advantage * dist.log_prob(action)).mean() - 0.01 * dist.entropy().mean()

    def validation_step(self, batch, batch_idx):
        value = batch[0] @ self.truth
        chosen = value.gather(1, self.policy(batch[0]).argmax(1, keepdim=True))[:, 0]
        self.log("val_regret", (value.max(1)[0] - chosen).mean())

    def configure_optimizers(self):
        return optim.RMSprop(self.parameters(), lr=3e-3)


def reinforce():
    x = torch.randn(1600, 4, generator=torch.Generator().manual_seed(12))
    return Reinforce(), *loaders(x, batch_size=48)


class Contrastive(LightningModule):
    """InfoNCE between two noisy views; accuracy is that of finding one's twin."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    def pairs(self, x, noise=0.7):
        a, b = (F.normalize(self.encoder(x + noise * torch.randn_like(x)), dim=1) for _ in "ab")
        return a @ b.T / 0.2

    def training_step(self, batch, batch_idx):
        scores = self.pairs(batch[0])
        loss = F.cross_entropy(scores, torch.arange(len(scores)))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        scores = self.pairs(batch[0])
        target = torch.arange(len(scores))
        self.log("val_loss", F.cross_entropy(scores, target), batch_size=len(scores))
        self.log("val_acc", (scores.argmax(1) == target).float().mean())

    def configure_optimizers(self):
        return optim.AdamW(self.parameters(), lr=1e-3)


def contrastive():
    x, _ = standardized("digits")
    return Contrastive(), *loaders(x, batch_size=64, val_batch_size=64)


class RawRegression(LightningModule):
    """Disease progression from 25 to 346 as it is; the last bias starts at the mean."""

    def __init__(self):
        super().__init__()
        self.net = dense(10, 64, 1)

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self.net(batch[0])[:, 0], batch[1])
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        mse = F.mse_loss(self.net(batch[0])[:, 0], batch[1])
        self.log("val_mse", mse)
        self.log("val_r2", 1 - mse / batch[1].var())

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=2e-2)


def raw_regression():
    return RawRegression(), *loaders(*standardized("diabetes"), batch_size=16)


class Rows(nn.Module):
    def __init__(self, dim=24):
        super().__init__()
        self.embed = nn.Linear(8, dim)
        self.place = nn.Parameter(0.02 * torch.randn(8, dim))
        self.block = nn.TransformerEncoderLayer(dim, 2, 48, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        return self.head(self.block(self.embed(x.view(-1, 8, 8)) + self.place).mean(1))


def warmup_half_of_the_fit():
    schedule = by(optim.lr_scheduler.LinearLR, start_factor=0.01, total_iters=180)
    return Model(Rows(), by(optim.AdamW, lr=5e-3), schedule), *digits()


def cosine_to_zero():
    schedule = by(optim.lr_scheduler.CosineAnnealingLR, T_max=252)
    opt = by(optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
    return Model(dense(64, 48, 10), opt, schedule), *digits()


def one_cycle():
    schedule = by(optim.lr_scheduler.OneCycleLR, max_lr=0.08, total_steps=252)
    return Model(dense(64, 48, 10), by(optim.SGD, lr=0.01, momentum=0.9), schedule), *digits()


def warm_restarts():
    schedule = by(optim.lr_scheduler.CosineAnnealingWarmRestarts, T_0=2)
    return Model(dense(64, 48, 10), by(optim.Adam, lr=5e-3), schedule, "epoch"), *digits()


@functools.cache
def pretrained(tasks=10):
    """A digit network trained before, on the labels below ``tasks``."""
    x, y = standardized("digits")
    keep = (y < tasks).nonzero()[:, 0]
    keep = keep[keep < 1347]
    with torch.random.fork_rng():
        torch.manual_seed(99)
        net = dense(64, 48, 32, 10)
        opt = optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(300):
            rows = keep[torch.randint(len(keep), (64,))]
            opt.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            opt.step()
    return net


def frozen_trunk():
    net = copy.deepcopy(pretrained(7))
    net[:-1].requires_grad_(False)
    net[-1] = nn.Linear(32, 10)
    return Model(net, by(optim.Adam, lr=5e-3)), *digits()


class LoRA(nn.Module):
    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def lora():
    net = copy.deepcopy(pretrained(7))
    for i in (0, 2):
        net[i] = LoRA(net[i])
    return Model(net, by(optim.AdamW, lr=3e-3)), *digits()


class TiedAutoencoder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(16, 64)))
        self.hidden, self.visible = nn.Parameter(torch.zeros(16)), nn.Parameter(torch.zeros(64))

    def step(self, batch, name):
        code = F.relu(F.linear(batch[0], self.weight, self.hidden))
        loss = F.mse_loss(F.linear(code, self.weight.T, self.visible), batch[0])
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train/loss")

    def validation_step(self, batch, batch_idx):
        return self.step(batch, "val_loss")

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=5e-3)


def tied():
    x = bundled("digits")[0] / 16
    return TiedAutoencoder(), *loaders(x)


def batchnorm_cnn():
    def block(i, o):
        return nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()

    net = nn.Sequential(
        *block(1, 8), nn.MaxPool2d(2), *block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).append(nn.Linear(16, 10))
    return Model(net, by(optim.SGD, lr=0.1, momentum=0.9)), *loaders(*images())


def dropout_half():
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))
    return Model(net, by(optim.Adam, lr=2e-3)), *digits()


def batch_of_two():
    net = dense(13, 24, 3, act=nn.Tanh)
    return Model(net, by(optim.SGD, lr=0.01)), *loaders(*standardized("wine"), batch_size=2)


class SecondOrder(RawRegression):
    def configure_optimizers(self):
        return optim.LBFGS(self.parameters(), max_iter=4, line_search_fn="strong_wolfe")


def lbfgs():
    x, y = standardized("diabetes")
    module = SecondOrder()
    module.net = nn.Linear(10, 1)
    return module, *loaders(x, y, batch_size=331)


class Rare(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(300, 6, sparse=True)

    def forward(self, x):
        vectors = self.table(x)
        return torch.stack([vectors.sum((1, 2)), -vectors.sum((1, 2))], 1)


def sparse_embedding():
    g = torch.Generator().manual_seed(17)
    x = (300 * torch.rand(1600, 10, generator=g) ** 2).long()
    y = (torch.randn(300, generator=g)[x].sum(1) > 0).long()
    return Model(Rare(), by(optim.SparseAdam, lr=2e-2)), *loaders(x, y)


def fine_tuning():
    net = copy.deepcopy(pretrained(7))
    return Model(net, by(optim.AdamW, lr=1.5e-3)), *digits()


def continuation():
    return Model(copy.deepcopy(pretrained()), by(optim.Adam, lr=1e-4)), *digits()


def thirty_steps():
    x, y = standardized("iris")
    train = DataLoader(TensorDataset(x[:110], y[:110]), 11, shuffle=True)
    val = DataLoader(TensorDataset(x[110:], y[110:]), 40)
    return Model(dense(4, 24, 3), by(optim.Adam, lr=4e-2)), train, val


FITS = """
gan 35 val_distance, vae 5 val_loss, reinforce 8 val_regret, contrastive 10 val_acc,
raw_regression 20 val_r2, warmup_half_of_the_fit 9 val_acc, cosine_to_zero 6 val_acc,
one_cycle 6 val_acc, warm_restarts 6 val_acc, frozen_trunk 5 val_acc, lora 6 val_acc,
tied 6 val_loss, batchnorm_cnn 5 val_acc,
dropout_half 5 val_loss, batch_of_two 10 val_loss, lbfgs 30 val_r2, sparse_embedding 10 val_acc,
fine_tuning 6 val_acc, continuation 5 val_loss, thirty_steps 3 val_loss
"""
PROGRAMS = [
    Program(f"held_{n}", globals()[n], trainer={"max_epochs": int(epochs)}, metric=metric)
    for n, epochs, metric in (row.split() for row in FITS.split(","))
]
