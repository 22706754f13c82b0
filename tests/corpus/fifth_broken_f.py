"""Whole programs with one fault in code or data and their repaired twins, a fifth set, last."""

import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from tests.corpus.program import loaders, pair


def rng(seed):
    return torch.Generator().manual_seed(seed)


def heartbeat_net(classes):
    """A small 1d network for raw readings; the first norm takes care of their scale."""
    return nn.Sequential(
        *(nn.BatchNorm1d(2), nn.Conv1d(2, 16, 5, stride=2), nn.BatchNorm1d(16), nn.ReLU()),
        *(nn.Conv1d(16, 24, 5, stride=2), nn.BatchNorm1d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(48, classes)),
    )


class Heartbeat(LightningModule):
    def __init__(self, evaluating):
        super().__init__()
        self.net = heartbeat_net(3)
        if evaluating:
            self.net.eval()
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        signal, kind = batch
        loss = self.criterion(self.net(signal), kind)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        signal, kind = batch
        self.log("val_loss", self.criterion(self.net(signal), kind))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def heartbeat(broken):
    kind = torch.randint(0, 3, (1200,), generator=rng(71))
    time = torch.arange(48) / 48 + torch.rand(1200, 1, generator=rng(72))
    wave = torch.stack([torch.sin(6.283 * (2 + kind)[:, None] * time), time.cos()], 1)
    wave = wave + 0.8 * torch.randn(wave.shape, generator=rng(73))
    readings = 60 * wave + torch.tensor([512.0, 300.0])[:, None]
    return Heartbeat(broken), *loaders(readings, kind)


class Plant(LightningModule):
    """Output of a plant from its sensors, with dropout against overfitting."""

    def __init__(self, follow_mode):
        super().__init__()
        self.follow_mode = follow_mode
        self.l1, self.l2, self.l3 = nn.Linear(12, 64), nn.Linear(64, 64), nn.Linear(64, 1)

    def drop(self, h):
        return F.dropout(h, 0.3, training=self.training) if self.follow_mode else F.dropout(h, 0.3)

    def forward(self, x):
        h = self.drop(F.relu(self.l1(x)))
        h = self.drop(F.relu(self.l2(h)) + h)
        return self.l3(h).squeeze(1)

    def training_step(self, batch, batch_idx):
        loss = F.smooth_l1_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.smooth_l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def plant(broken):
    x = torch.randn(1600, 12, generator=rng(81))
    y = x[:, 0] * x[:, 1] + x[:, 2] - torch.relu(x[:, 3]) + 0.1 * x[:, 4]
    return Plant(not broken), *loaders(x, (y - y.mean()) / y.std())


class GraphConv(nn.Module):
    def __init__(self, width_in, width_out):
        super().__init__()
        self.own, self.others = nn.Linear(width_in, width_out), nn.Linear(width_in, width_out)

    def forward(self, nodes, adjacency):
        degree = adjacency.sum(-1, keepdim=True).clamp_min(1)
        return self.own(nodes) + self.others(adjacency @ nodes / degree)


class Molecules(LightningModule):
    """A property of a graph from its atoms and bonds."""

    def __init__(self, kinds, width, registered):
        super().__init__()
        self.embed = nn.Linear(kinds, width)
        layers = [GraphConv(width, width) for _ in range(3)]
        self.layers = nn.ModuleList(layers) if registered else layers
        self.readout = nn.Linear(width, 1)

    def forward(self, atoms, bonds):
        h = self.embed(atoms)
        for layer in self.layers:
            h = torch.relu(layer(h, bonds))
        return self.readout(h.sum(1) / 3).squeeze(-1)

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch["atoms"], batch["bonds"]), batch["value"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch["atoms"], batch["bonds"]), batch["value"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def molecules(broken):
    kind = torch.randint(0, 4, (1600, 9), generator=rng(1))
    upper = (torch.rand(1600, 9, 9, generator=rng(2)) < 0.3).float().triu(1)
    bonds = upper + upper.mT
    electric = torch.tensor([-1.0, 0.5, 1.0, -0.5])[kind]
    pull = (bonds @ electric[..., None]).squeeze(-1) / bonds.sum(-1).clamp_min(1)
    value = (electric * pull).sum(1)
    value = (value - value.mean()) / value.std()
    columns = zip(F.one_hot(kind, 4).float(), bonds, value, strict=True)
    rows = [{"atoms": a, "bonds": b, "value": v} for a, b, v in columns]
    train = DataLoader(rows[:1200], 32, shuffle=True)
    return Molecules(4, 32, not broken), train, DataLoader(rows[1200:], 100)


def block(*sizes):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


class RingGAN(LightningModule):
    """Points on a ring, by a generator and a critic with an optimizer each."""

    def __init__(self, cut):
        super().__init__()
        self.automatic_optimization = False
        self.gen, self.disc = block(4, 48, 48, 2), block(2, 48, 48, 1)
        self.cut = cut

    def training_step(self, batch, batch_idx):
        (real,) = batch
        opt_g, opt_d = self.optimizers()
        fake = self.gen(torch.randn(len(real), 4))

        opt_d.zero_grad()
        d_loss = F.softplus(-self.disc(real)).mean() + F.softplus(self.disc(fake.detach())).mean()
        self.manual_backward(d_loss)
        opt_d.step()

        opt_g.zero_grad()
        judged = self.disc(fake.detach() if self.cut else fake)
        g_loss = F.softplus(-judged).mean()
        self.manual_backward(g_loss)
        opt_g.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def validation_step(self, batch, batch_idx):
        (real,) = batch
        fake = self.gen(torch.randn(len(real), 4, generator=rng(3)))
        between = torch.cdist(fake, real).mean()
        within = torch.cdist(fake, fake).mean() + torch.cdist(real, real).mean()
        self.log("val_energy", 2 * between - within)

    def configure_optimizers(self):
        opt_g = torch.optim.Adam(self.gen.parameters(), lr=2e-3, betas=(0.5, 0.99))
        opt_d = torch.optim.Adam(self.disc.parameters(), lr=2e-3, betas=(0.5, 0.99))
        return opt_g, opt_d


def ring(broken):
    angle = 2 * math.pi * torch.rand(2000, generator=rng(4))
    points = 1.5 * torch.stack([angle.cos(), angle.sin()], 1) + torch.tensor([1.0, -0.5])
    points = points + 0.05 * torch.randn(points.shape, generator=rng(5))
    return RingGAN(broken), *loaders(points, batch_size=64, val_batch_size=500)


class Swish(torch.autograd.Function):
    """x sigmoid(x), which keeps no more than x for the way back."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return grad * (gate + x * gate * (1 - gate))


class LeanSwish(Swish):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return grad * (gate - x) * gate


class Ripples(LightningModule):
    def __init__(self, act):
        super().__init__()
        self.act = act
        self.enter = nn.Linear(2, 48)
        self.hidden = nn.ModuleList(nn.Linear(48, 48) for _ in range(2))
        self.leave = nn.Linear(48, 1)

    def forward(self, place):
        h = self.act(self.enter(place))
        for layer in self.hidden:
            h = self.act(layer(h))
        return self.leave(h)

    def training_step(self, batch, batch_idx):
        place, height = batch
        loss = nn.functional.mse_loss(self(place), height)
        self.log("fit", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        place, height = batch
        self.log("val_loss", nn.functional.mse_loss(self(place), height))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def ripples(broken):
    place = 2 * torch.rand(1600, 2, generator=rng(6)) - 1
    height = torch.sin(3 * place[:, :1]) * torch.cos(2 * place[:, 1:]) * 1.5
    return Ripples(LeanSwish.apply if broken else Swish.apply), *loaders(2 * place, height)


class Recurrence(nn.Module):
    """A recurrent layer of rectified units, written out."""

    def __init__(self, inputs, hidden, recurrent):
        super().__init__()
        self.inward = nn.Linear(inputs, hidden)
        self.recurrent = nn.Parameter(recurrent)

    def forward(self, sequence):
        h = sequence.new_zeros(len(sequence), len(self.recurrent))
        for x in self.inward(sequence).unbind(1):
            h = F.relu(x + h @ self.recurrent)
        return h


class Leak(LightningModule):
    """How full a leaking tank is after a sequence of inflows."""

    def __init__(self, recurrent):
        super().__init__()
        self.rnn = Recurrence(2, len(recurrent), recurrent)
        self.total = nn.Linear(len(recurrent), 1)
        nn.init.normal_(self.rnn.inward.weight, std=0.2)

    def error(self, batch):
        return (self.total(self.rnn(batch[0])).squeeze(1) - batch[1]).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.error(batch)
        self.log("mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.error(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def tank(broken):
    inflow = torch.randn(1600, 16, 2, generator=rng(7))
    kept = 0.8 ** torch.arange(15, -1, -1)
    level = (inflow[..., 0] * kept).sum(1) + 0.5 * torch.relu(inflow[:, -1, 1])
    recurrent = 0.4 * torch.randn(32, 32) if broken else torch.eye(32)
    return Leak(recurrent), *loaders(inflow, level / level.std())


class Taste(LightningModule):
    """Ratings as the product of a user's and a film's factors."""

    def __init__(self, users, films, factors, std):
        super().__init__()
        self.user, self.film = nn.Embedding(users, factors), nn.Embedding(films, factors)
        self.user_bias, self.film_bias = nn.Embedding(users, 1), nn.Embedding(films, 1)
        for table in (self.user_bias, self.film_bias):
            nn.init.zeros_(table.weight)
        if std:
            nn.init.normal_(self.user.weight, std=std)
            nn.init.normal_(self.film.weight, std=std)
        self.mean = nn.Parameter(torch.tensor(3.0))

    def forward(self, user, film):
        match = (self.user(user) * self.film(film)).sum(-1)
        return self.mean + match + (self.user_bias(user) + self.film_bias(film)).squeeze(-1)

    def training_step(self, batch, batch_idx):
        user, film, rating = batch
        return F.mse_loss(self(user, film), rating)

    def validation_step(self, batch, batch_idx):
        user, film, rating = batch
        self.log("val_loss", F.mse_loss(self(user, film), rating))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=0.1)


def films(broken):
    draw = rng(9)
    likes, tells = torch.randn(80, 2, generator=draw), torch.randn(60, 2, generator=draw)
    user = torch.randint(0, 80, (3200,), generator=draw)
    film = torch.randint(0, 60, (3200,), generator=draw)
    rating = 3 + 0.7 * (likes[user] * tells[film]).sum(1) + 0.3 * torch.randn(3200, generator=draw)
    return Taste(80, 60, 32, None if broken else 0.1), *loaders(user, film, rating, batch_size=64)


def fitted(name, make, epochs, *codes, **settings):
    return pair(name, make, *codes, trainer={"max_epochs": epochs}, **settings)


PAIRS = [
    fitted("heartbeat_raw_readings", heartbeat, 8, "eval_mode_in_training", "unnormalized_input"),
    fitted("plant_functional_dropout", plant, 15, "train_mode_in_validation"),
    fitted(
        *("molecules_layers", molecules, 15, "params_not_in_optimizer", "frozen_params"),
        *("weights_not_updating", "no_grad_flow"),
    ),
    fitted(
        *("ring_generator", ring, 15, "no_grad_flow", "loss_detached", "weights_not_updating"),
        metric="val_energy",
    ),
    fitted("ripples_lean_activation", ripples, 12, "wrong_gradient"),
    fitted(
        *("leaking_tank_recurrence", tank, 12, "exploding_gradients", "bad_init_scale"),
        *("non_finite", "loss_not_at_chance"),
    ),
    fitted("film_ratings_factors", films, 12, "bad_init_scale", "loss_not_at_chance"),
]
