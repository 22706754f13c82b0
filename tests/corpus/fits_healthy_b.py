"""Whole fits that go well: generators, sequences, games and unusual losses."""

import copy
import functools
import math

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import Program, bundled, images, loaders, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pixels():
    """Images as rows from 0 to 1."""
    return bundled("digits")[0] / 16


class Module(LightningModule):
    """A module with one loss for training and validation; ``lr`` as a class attribute."""

    lr = 3e-3

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class TiedAutoencoder(Module):
    """The decoder is the encoder's transpose."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 64) * 0.1)
        self.b, self.c = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.zeros(64))

    def loss(self, batch):
        code = torch.sigmoid(F.linear(batch[0], self.weight, self.b))
        return F.mse_loss(F.linear(code, self.weight.T, self.c), batch[0])


class ConvAutoencoder(Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.SiLU(), nn.Conv2d(12, 16, 3, 2, 1))
        self.up = nn.Sequential(
            nn.SiLU(), nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.SiLU(),
            nn.ConvTranspose2d(12, 1, 4, 2, 1),
        )  # fmt: skip

    def loss(self, batch):
        return F.mse_loss(self.up(self.down(batch[0])), batch[0])


class VAE(Module):
    """The weight of its second term grows over the fit, and with it the loss."""

    def __init__(self, grow=True, latent=4):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * latent))
        self.decode = nn.Sequential(nn.Linear(latent, 64), nn.ReLU(), nn.Linear(64, 64))
        self.grow = grow

    def terms(self, batch):
        mean, log_var = self.encode(batch[0]).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_var / 2).exp()
        match = F.binary_cross_entropy_with_logits(self.decode(z), batch[0], reduction="sum")
        kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
        return match / len(mean), kl / len(mean)

    def training_step(self, batch, batch_idx):
        match, kl = self.terms(batch)
        beta = min(1.0, self.global_step / 250) if self.grow else 1.0
        self.log_dict({"match": match, "kl": kl, "beta": beta})
        return match + beta * kl

    def validation_step(self, batch, batch_idx):
        match, kl = self.terms(batch)
        self.log_dict({"val_match": match, "val_kl": kl, "val_elbo": match + kl})


class Denoiser(Module):
    """Predicts the noise of a random strength: a loss that wanders more than it falls."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def loss(self, batch):
        (x,) = batch
        t = torch.rand(len(x), 1)
        noise = torch.randn_like(x)
        mixed = torch.cos(t * math.pi / 2) * x + torch.sin(t * math.pi / 2) * noise
        return F.mse_loss(self.net(torch.cat([mixed, t], 1)), noise)


def ring(count=2000):
    angle = 2 * math.pi * torch.rand(count, generator=seeded(0))
    points = torch.stack([angle.cos(), angle.sin()], 1)
    return loaders(points + 0.05 * torch.randn(count, 2, generator=seeded(1)))


def apart(a, b):
    """The energy distance of two clouds."""
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


class GAN(LightningModule):
    """Two networks against one another; neither loss falls."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 2))
        self.critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def training_step(self, batch, batch_idx):
        real = batch[0]
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        d_loss = F.softplus(-self.critic(real)).mean()
        d_loss = d_loss + F.softplus(self.critic(fake.detach())).mean()
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        g_loss = F.softplus(-self.critic(fake)).mean()
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def validation_step(self, batch, batch_idx):
        self.log("val_apart", apart(batch[0], self.generator(torch.randn(len(batch[0]), 4))))

    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), lr, betas=(0.5, 0.99))
                for net, lr in ((self.generator, 2e-3), (self.critic, 4e-3))], []  # fmt: skip


class WGAN(GAN):
    """Its losses are differences of scores, of either sign; the generator steps each other time."""

    def training_step(self, batch, batch_idx):
        real = batch[0]
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        between = torch.lerp(real, fake.detach(), torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        d_loss = self.critic(fake.detach()).mean() - self.critic(real).mean()
        d_loss = d_loss + (slope.norm(dim=1) - 1).square().mean()
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        if batch_idx % 2 == 0:
            g_loss = -self.critic(fake).mean()
            opt_g.zero_grad()
            self.manual_backward(g_loss)
            opt_g.step()
            self.log("g_loss", g_loss)
        self.log("d_loss", d_loss)
        return d_loss.detach()


class Contrastive(LightningModule):
    """Two noisy views of an image find one another among those of the batch."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(32, 16))

    def embed(self, x):
        view = x * (torch.rand_like(x) > 0.3) + 0.1 * torch.randn_like(x)
        return F.normalize(self.head(self.body(view)), dim=1)

    def _step(self, batch):
        similar = self.embed(batch[0]) @ self.embed(batch[0]).T / 0.2
        own = torch.arange(len(similar))
        return F.cross_entropy(similar, own), (similar.argmax(1) == own).float().mean()

    def training_step(self, batch, batch_idx):
        loss, hits = self._step(batch)
        self.log("train/loss", loss)
        self.log("train/hits", hits)
        return {"loss": loss, "hits": hits.detach()}

    def validation_step(self, batch, batch_idx):
        loss, hits = self._step(batch)
        self.log_dict({"val/loss": loss, "val/acc": hits})

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 3e-3)


class Triplets(Module):
    """Most triplets lie apart soon, and then add nothing."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))

    def loss(self, batch):
        x, y = batch
        z = self.net(x)
        far = torch.cdist(z, z)
        same = y[:, None] == y[None]
        gap = far[:, :, None] - far[:, None] + 0.5
        mine = same[:, :, None] & ~same[:, None]
        return (F.relu(gap) * mine).sum() / mine.sum()


class Policy(LightningModule):
    """REINFORCE: which of four levers to pull in which state; the loss says nothing."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 4))
        self.baseline = 0.0

    def training_step(self, batch, batch_idx):
        state, pay = batch
        choice = torch.distributions.Categorical(logits=self.net(state))
        pulled = choice.sample()
        won = pay.gather(1, pulled[:, None])[:, 0]
        loss = -((won - self.baseline) * choice.log_prob(pulled)).mean()
        self.baseline = 0.95 * self.baseline + 0.05 * float(won.mean())
        self.log("reward", won.mean(), prog_bar=True)
        return loss - 0.01 * choice.entropy().mean()

    def validation_step(self, batch, batch_idx):
        state, pay = batch
        best = self.net(state).argmax(1, keepdim=True)
        self.log("val_regret", (pay.amax(1) - pay.gather(1, best)[:, 0]).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 5e-3)


def levers():
    state = torch.randn(3000, 6, generator=seeded(2))
    pay = torch.tanh(state @ torch.randn(6, 4, generator=seeded(3)))
    return Policy(), *loaders(state, pay)


class QLearning(LightningModule):
    """A walk on a line with a prize at one end; values grow from zero, and so does the loss."""

    def __init__(self):
        super().__init__()
        self.q = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 2))
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        at, action = batch
        after = (at + 2 * action - 1).clamp(0, 9)
        won = (after == 9).float()
        with torch.no_grad():
            later = self.target(F.one_hot(after, 10).float()).amax(1)
        value = self.q(F.one_hot(at, 10).float()).gather(1, action[:, None])[:, 0]
        loss = F.smooth_l1_loss(value, won + 0.9 * (1 - won) * later)
        self.log("td_loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx % 20 == 0:
            self.target.load_state_dict(self.q.state_dict())

    def validation_step(self, batch, batch_idx):
        states = torch.eye(10)[:9]
        truth = 0.9 ** torch.arange(8.0, -1, -1)
        self.log("val_mse", F.mse_loss(self.q(states).amax(1), truth))

    def configure_optimizers(self):
        return torch.optim.Adam(self.q.parameters(), 3e-3)


def walks():
    at = torch.randint(0, 9, (2400,), generator=seeded(4))
    return QLearning(), *loaders(at, torch.randint(0, 2, (2400,), generator=seeded(5)))


class UNet(Module):
    """Discs in noise; a skip connection and an upsampled path."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.c = nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x):
        a = self.a(x)
        return self.out(torch.cat([a, F.relu(self.c(self.b(a)))], 1))

    def loss(self, batch):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        found = self(batch[0]) > 0
        real = batch[1] > 0.5
        self.log("val_iou", (found & real).sum() / (found | real).sum())


def discs():
    g = seeded(6)
    at, size = torch.rand(320, 2, generator=g) * 16, 2 + 3 * torch.rand(320, generator=g)
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))
    far = (grid[None] - at[:, :, None, None]).square().sum(1).sqrt()
    mask = (far < size[:, None, None]).float()[:, None]
    return UNet(), *loaders(mask + 0.7 * torch.randn(mask.shape, generator=g), mask, batch_size=16)


class Rows(Module):
    """Anything from rows to outputs: a network and a function of output and target."""

    def __init__(self, net, criterion, lr=3e-3):
        super().__init__()
        self.net, self.criterion, self.lr = net, criterion, lr

    def loss(self, batch):
        return self.criterion(self.net(batch[0]), batch[1])


def mlp(a, hidden, b, act=nn.ReLU):
    return nn.Sequential(
        nn.Linear(a, hidden), act(), nn.Linear(hidden, hidden), act(), nn.Linear(hidden, b)
    )


def rows(count, columns, seed):
    return torch.randn(count, columns, generator=seeded(seed))


def tags():
    """Six labels at a time, some of them rare."""
    x = rows(2000, 8, 7)
    y = (x @ rows(8, 6, 8) > torch.tensor([0.0, 1, 2, 3, 4, 5])).float()
    return Rows(mlp(8, 48, 6), F.binary_cross_entropy_with_logits), *loaders(x, y)


def pinball(out, y):
    levels = torch.tensor([0.1, 0.5, 0.9])
    error = y[:, None] - out
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def quantiles():
    x = rows(2000, 4, 9)
    y = 3 * x[:, 0] + torch.exp(0.5 * x[:, 1]) * torch.randn(2000, generator=seeded(1))
    return Rows(mlp(4, 32, 3), pinball, 5e-3), *loaders(x, y)


def counts():
    x = rows(2000, 5, 10)
    y = torch.poisson(torch.exp(1 + 0.6 * x[:, 0] - 0.4 * x[:, 1]), generator=seeded(2))
    criterion = nn.PoissonNLLLoss()
    return Rows(mlp(5, 24, 1), lambda out, y: criterion(out[:, 0], y)), *loaders(x, y)


def likelihood(out, y):
    """Below zero as soon as the spread is small."""
    mean, log_std = out.unbind(1)
    return (log_std + 0.5 * ((y - mean) / log_std.exp()).square()).mean()


def densities():
    x = rows(2000, 3, 11)
    y = torch.sin(x[:, 0]) + 0.1 * torch.randn(2000, generator=seeded(3))
    return Rows(mlp(3, 48, 2, nn.Tanh), likelihood, 4e-3), *loaders(x, y)


def directions():
    """The negative cosine, from 0 to -1."""
    x = rows(1600, 10, 12)
    y = torch.tanh(x @ rows(10, 6, 13) * 0.5)
    return Rows(mlp(10, 64, 6), lambda out, y: -F.cosine_similarity(out, y).mean()), *loaders(x, y)


def deep_linear():
    """Six linear layers and nothing between, to watch how they learn."""
    x = rows(1600, 12, 14)
    y = x @ rows(12, 4, 15) / 3 + 0.05 * rows(1600, 4, 16)
    net = nn.Sequential(*[nn.Linear(12, 12, bias=False) for _ in range(5)], nn.Linear(12, 4))
    for layer in net:
        nn.init.orthogonal_(layer.weight)
    return Rows(net, F.mse_loss, 2e-3), *loaders(x, y)


class Rare(Module):
    """One of twenty is positive and weighs as much as the other nineteen."""

    def __init__(self):
        super().__init__()
        self.net = mlp(6, 32, 1)

    def loss(self, batch):
        weight = torch.tensor(12.0)
        out = self.net(batch[0])[:, 0]
        return F.binary_cross_entropy_with_logits(out, batch[1], pos_weight=weight)

    def validation_step(self, batch, batch_idx):
        hit, y = self.net(batch[0])[:, 0] > 0, batch[1] > 0
        self.log("val_balanced_acc", (hit[y].float().mean() + (~hit[~y]).float().mean()) / 2)
        super().validation_step(batch, batch_idx)


def rare():
    x = rows(3000, 6, 17)
    y = ((x[:, 0] + x[:, 1] * x[:, 2]) > 2.3).float()
    return Rare(), *loaders(x, y, val_batch_size=1000)


class Silent(Module):
    """A penalty keeps most units of a wide layer silent for any one image."""

    def __init__(self):
        super().__init__()
        self.wide, self.out = nn.Linear(64, 256), nn.Linear(256, 10)

    def training_step(self, batch, batch_idx):
        h = F.relu(self.wide(batch[0]) - 0.3)
        loss = F.cross_entropy(self.out(h), batch[1])
        self.log("train_ce", loss)
        return loss + 5e-3 * h.mean()

    def validation_step(self, batch, batch_idx):
        out = self.out(F.relu(self.wide(batch[0]) - 0.3))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())


class Listener(LightningModule):
    """The marked numbers of a series, added up by a GRU; longer series from epoch to epoch."""

    def __init__(self, grow):
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 32, batch_first=True), nn.Linear(32, 1)
        self.grow = grow

    def error(self, series, length):
        series = series[:, :length]
        out = self.head(self.rnn(series)[0][:, -1])[:, 0]
        return F.mse_loss(out, (series[..., 0] * series[..., 1]).sum(1))

    def training_step(self, batch, batch_idx):
        length = min(16, 4 + self.current_epoch) if self.grow else 16
        loss = self.error(batch[0], length)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", self.error(batch[0], 16))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def listener(grow):
    g = seeded(18)
    series = torch.stack(
        [torch.rand(1200, 16, generator=g), (torch.rand(1200, 16, generator=g) < 0.3).float()], 2
    )
    return Listener(grow), *loaders(series)


class Waves(LightningModule):
    """Goes on with a wave; more and more often from its own last value instead of the true one."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(1, 32), nn.Linear(32, 1)

    def roll(self, series, own):
        h = series.new_zeros(len(series), 32)
        x, loss = series[:, :1], 0.0
        for t in range(1, series.shape[1]):
            h = self.cell(x, h)
            guess = self.out(h)
            loss = loss + F.mse_loss(guess, series[:, t : t + 1])
            keep = (torch.rand(len(x), 1) < own) & (t > 6)
            x = torch.where(keep, guess, series[:, t : t + 1])
        return loss / (series.shape[1] - 1)

    def training_step(self, batch, batch_idx):
        own = min(0.8, self.trainer.current_epoch / 12)
        self.log("own", own)
        return self.roll(batch[0], own)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.roll(batch[0], 1.0))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)]


def waves(count=800, length=16):
    g = seeded(19)
    start = 6.3 * torch.rand(count, 1, generator=g)
    pace = 0.3 + 0.5 * torch.rand(count, 1, generator=g)
    return torch.sin(start + pace * torch.arange(length))


class Copier(LightningModule):
    """Finds the value that stood beside a key; its heads become as sharp as a look-up."""

    def __init__(self, kinds=8):
        super().__init__()
        self.key, self.value = nn.Embedding(kinds, 24), nn.Embedding(kinds, 24)
        self.attend = nn.MultiheadAttention(24, 2, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, kinds))

    def forward(self, keys, values, asked):
        seen, _ = self.attend(self.key(asked)[:, None], self.key(keys), self.value(values))
        return self.head(seen[:, 0])

    def training_step(self, batch, batch_idx):
        *inputs, answer = batch
        loss = F.cross_entropy(self(*inputs), answer)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        *inputs, answer = batch
        out = self(*inputs)
        self.log("val_loss", F.cross_entropy(out, answer))
        self.log("val_acc", (out.argmax(1) == answer).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, 50)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm, "interval": "step"}}


def copier():
    g = seeded(20)
    keys = torch.stack([torch.randperm(8, generator=g)[:6] for _ in range(2000)])
    values = torch.randint(0, 8, (2000, 6), generator=g)
    place = torch.randint(0, 6, (2000, 1), generator=g)
    asked, answer = keys.gather(1, place)[:, 0], values.gather(1, place)[:, 0]
    return Copier(), *loaders(keys, values, asked, answer)


class Language(LightningModule):
    """A causal transformer whose output weights are its embeddings."""

    def __init__(self, words=20, width=32):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.place = nn.Parameter(torch.zeros(16, width))
        self.block = nn.TransformerEncoderLayer(
            width, 2, 64, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embed.weight

    def loss(self, tokens):
        n = tokens.shape[1] - 1
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        h = self.block(self.embed(tokens[:, :-1]) + self.place[:n], mask)
        return F.cross_entropy(self.out(self.norm(h)).flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch[0])
        self.log("train_ppl", loss.exp())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch[0]), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 5e-3, weight_decay=0.1)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total, pct_start=0.1)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def language():
    """Counts up by a step that each line has as its own, with slips."""
    g = seeded(21)
    first, pace = (torch.randint(a, b, (1000, 1), generator=g) for a, b in ((0, 20), (1, 4)))
    tokens = (first + pace * torch.arange(13)) % 20
    slip = torch.rand(tokens.shape, generator=g) < 0.05
    tokens = torch.where(slip, torch.randint(0, 20, tokens.shape, generator=g), tokens)
    return Language(), *loaders(tokens)


class Tagger(Module):
    """Which characters a short signal holds, by a convolution and the greatest over time."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 24, 7, padding=3), nn.ReLU(), nn.MaxPool1d(2),
                                 nn.Conv1d(24, 24, 5, padding=2), nn.ReLU())  # fmt: skip
        self.head = nn.Linear(24, 3)

    def loss(self, batch):
        return F.cross_entropy(self.head(self.net(batch[0]).amax(-1)), batch[1])


def shapes():
    g = seeded(22)
    y = torch.randint(0, 3, (1200,), generator=g)
    t = torch.linspace(-1, 1, 9)
    bumps = torch.stack([1 - t.abs(), (t > 0) * 1.0, torch.sin(6 * t)])[y]
    signal = 0.25 * torch.randn(1200, 40, generator=g)
    at = torch.randint(0, 31, (1200, 1), generator=g) + torch.arange(9)
    return Tagger(), *loaders(signal.scatter_add(1, at, 1.5 * bumps)[:, None], y)


class Weighted(LightningModule):
    """Two tasks whose weights are learned; the sum of the losses goes below zero."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ELU())
        self.digit, self.ink = nn.Linear(64, 10), nn.Linear(64, 1)
        self.log_vars = nn.Parameter(torch.zeros(2))

    def losses(self, batch):
        x, y, ink = batch
        h = self.body(x)
        return torch.stack([F.cross_entropy(self.digit(h), y), F.mse_loss(self.ink(h)[:, 0], ink)])

    def training_step(self, batch, batch_idx):
        return (self.losses(batch) * torch.exp(-self.log_vars) + self.log_vars).sum()

    def validation_step(self, batch, batch_idx):
        digit, ink = self.losses(batch)
        self.log_dict({"val_digit": digit, "val_ink": ink})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


def weighted():
    x, y = standardized("digits")
    ink = bundled("digits")[0].mean(1)
    return Weighted(), *loaders(x, y, (ink - ink.mean()) / ink.std())


class TwoSets(Module):
    """Validated on clean and on blurred images."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", self.loss(batch))


def two_sets():
    x, y = images()
    train, val = loaders(x, y)
    blurred = F.avg_pool2d(x, 3, 1, 1)
    return TwoSets(), train, [val, loaders(blurred, y)[1]]


class BYOL(LightningModule):
    """Predicts the embedding that a slow copy gives to another view."""

    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16)
        )
        self.slow = copy.deepcopy(self.online).requires_grad_(False)
        self.predict = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    @staticmethod
    def view(x):
        return x * (torch.rand_like(x) > 0.3)

    def training_step(self, batch, batch_idx):
        guess = self.predict(self.online(self.view(batch[0])))
        with torch.no_grad():
            truth = self.slow(self.view(batch[0]))
        loss = -F.cosine_similarity(guess, truth).mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_before_zero_grad(self, optimizer):
        for slow, fast in zip(self.slow.parameters(), self.online.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.05)

    def validation_step(self, batch, batch_idx):
        one, two = (F.normalize(self.online(self.view(batch[0])), dim=1) for _ in range(2))
        rank = ((one @ two.T) > (one * two).sum(1, keepdim=True)).float().mean()
        self.log("val_rank", rank)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


class Numpy(Module):
    """Ridge regression by gradient descent on polynomials, as a course has it."""

    lr = 0.03

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(8, 1))

    def loss(self, batch):
        x, y = batch
        return ((x @ self.w - y) ** 2).mean() + 1e-3 * (self.w**2).sum()


def polynomial():
    r = np.random.RandomState(0)
    x = r.uniform(-1, 1, 1200)
    y = np.cos(3 * x) + 0.1 * r.randn(1200)
    powers = np.polynomial.chebyshev.chebvander(x, 7)
    return Numpy(), *loaders(torch.tensor(powers).float(), torch.tensor(y[:, None]).float())


def stack_of(make, *data, **settings):
    return lambda: (make(), *loaders(*data, **settings))


def little_corpus():
    """Texts enough for a while: at the end validation is a little behind its best."""
    model, train, val = language()
    few = TensorDataset(train.dataset.tensors[0][:150])
    return model, DataLoader(few, 32, shuffle=True), val


def till(count, **settings):
    return {"max_epochs": count} | settings


def digits_rows():
    return (standardized("digits")[0],)


SCALED = functools.partial(standardized, "digits")
PROGRAMS = [
    Program("fine_tied_autoencoder", stack_of(TiedAutoencoder, pixels()), till(15)),
    Program("fine_conv_autoencoder", stack_of(ConvAutoencoder, images()[0]), till(8)),
    Program("fine_vae_annealed", stack_of(VAE, pixels()), till(12), metric="val_match"),
    Program("fine_vae", lambda: (VAE(grow=False), *loaders(pixels())),
            till(12, log_every_n_steps=20), metric="val_elbo"),
    Program("fine_denoiser", lambda: (Denoiser(), *ring()), till(15)),
    Program("fine_gan", lambda: (GAN(), *ring()), till(15), metric="val_apart"),
    Program("fine_wgan_penalty", lambda: (WGAN(), *ring()), till(18, log_every_n_steps=10),
            metric="val_apart"),
    Program("fine_contrastive", lambda: (Contrastive(), *loaders(*digits_rows(), batch_size=64)),
            till(15), metric="val/acc"),
    Program("fine_triplets", stack_of(Triplets, *SCALED()), till(8)),
    Program("fine_policy", levers, till(10), metric="val_regret"),
    Program("fine_q_learning", walks, till(15), metric="val_mse"),
    Program("fine_unet", discs, till(15), metric="val_iou"),
    Program("fine_tags", tags, till(15)),
    Program("fine_quantiles", quantiles, till(10)),
    Program("fine_counts", counts, till(6), note="noise sets the floor"),
    Program("fine_negative_loss", densities, till(10)),
    Program("fine_cosine_loss", directions, till(10)),
    Program("fine_deep_linear", deep_linear, till(12)),
    Program("fine_rare_weighted", rare, till(10), metric="val_balanced_acc"),
    Program("fine_silent_units", stack_of(Silent, *SCALED()), till(8), metric="val_acc"),
    Program("fine_gru", lambda: listener(grow=False), till(15), metric="val_mse"),
    Program("fine_curriculum", lambda: listener(grow=True), till(18), metric="val_mse",
            note="the task grows, and the training loss with it"),
    Program("fine_scheduled_sampling", lambda: (Waves(), *loaders(waves(), batch_size=20)),
            till(15)),
    Program("fine_look_up", copier, till(10), metric="val_acc"),
    Program("fine_language", language, till(15)),
    Program("fine_little_corpus", little_corpus, till(60), note="overfits a little late"),
    Program("fine_max_over_time", shapes, till(10)),
    Program("fine_learned_weights", weighted, till(12), metric="val_digit"),
    Program("fine_two_val_sets", two_sets, till(6), metric="val_loss/dataloader_idx_0"),
    Program("fine_byol", lambda: (BYOL(), *loaders(*digits_rows(), batch_size=64)), till(15),
            metric="val_rank"),
    Program("fine_polynomial", polynomial, till(15)),
]  # fmt: skip
