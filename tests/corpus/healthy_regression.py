"""Healthy programs: regression, ranking and dense or multilabel targets that look odd."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.healthy_shared import digits, loaders, rows, table
from tests.corpus.program import Program


class BloodSugar(LightningModule):
    """Targets around 150 in their own unit; the output bias starts at their mean."""

    def __init__(self, mean_target):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
        nn.init.constant_(self.net[-1].bias, mean_target)

    def forward(self, x):
        return self.net(x).squeeze(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.mse_loss(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.03)


def make_blood_sugar():
    x, y = table("diabetes")
    return BloodSugar(y[:300].mean().item()), *loaders(x, y.float(), batch_size=32)


class LearnedScale(LightningModule):
    """House prices near 200 thousand; a last layer of two numbers learns unit and offset."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
        self.unit = nn.Parameter(torch.tensor(10.0))
        self.offset = nn.Parameter(torch.tensor(100.0))

    def forward(self, x):
        return self.mlp(x)[:, 0] * self.unit + self.offset

    def training_step(self, batch, batch_idx):
        x, price = batch
        loss = F.l1_loss(self(x), price)
        self.log("mae", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, price = batch
        self.log("val_loss", F.l1_loss(self(x), price))

    def configure_optimizers(self):
        return torch.optim.Adam(
            [
                {"params": self.mlp.parameters(), "lr": 1e-2},
                {"params": [self.unit, self.offset], "lr": 2.0},
            ]
        )


def make_prices():
    x = rows(1024, 6)
    return LearnedScale(), *loaders(x, 200 + 30 * x[:, 0] + 15 * x[:, 1] * x[:, 2])


class Stars(LightningModule):
    """Ratings from 1 to 5: a scaled sigmoid as output, squared error."""

    def __init__(self):
        super().__init__()
        self.users = nn.Embedding(60, 8)
        self.items = nn.Embedding(40, 8)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, user, item):
        match = (self.users(user) * self.items(item)).sum(-1)
        return 1 + 4 * torch.sigmoid(match + self.bias)

    def training_step(self, batch, batch_idx):
        user, item, stars = batch
        return F.mse_loss(self(user, item), stars)

    def validation_step(self, batch, batch_idx):
        user, item, stars = batch
        self.log("val_mse", F.mse_loss(self(user, item), stars))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.03, weight_decay=1e-4)


def make_stars():
    taste, style = rows(60, 2, seed=1), rows(40, 2, seed=2)
    user, item = torch.cartesian_prod(torch.arange(60), torch.arange(40)).unbind(1)
    stars = (3 + 1.2 * (taste[user] * style[item]).sum(1)).clamp(1, 5).round()
    order = torch.randperm(2400, generator=torch.Generator().manual_seed(0))
    return Stars(), *loaders(user[order], item[order], stars[order], batch_size=128)


class MeanAndVariance(LightningModule):
    """Gaussian likelihood; the loss is soon below zero."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.mean = nn.Linear(32, 1)
        self.log_var = nn.Linear(32, 1)

    def forward(self, x):
        h = self.trunk(x)
        return self.mean(h), self.log_var(h).exp()

    def training_step(self, batch, batch_idx):
        x, y = batch
        mean, var = self(x)
        return F.gaussian_nll_loss(mean, y, var)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        mean, var = self(x)
        self.log("val_nll", F.gaussian_nll_loss(mean, y, var))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_mean_and_variance():
    x = rows(1024, 1).clamp(-2, 2)
    noise = rows(1024, 1, seed=1) * (0.02 + 0.1 * (x > 0))
    return MeanAndVariance(), *loaders(x, torch.sin(2 * x) + noise)


class Counts(LightningModule):
    """Poisson regression of counts by their log rate; the loss goes below zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 1)
        self.loss_fn = nn.PoissonNLLLoss(log_input=True)

    def training_step(self, batch, batch_idx):
        x, n = batch
        return self.loss_fn(self.linear(x).flatten(), n)

    def validation_step(self, batch, batch_idx):
        x, n = batch
        log_rate = self.linear(x).flatten()
        deviance = torch.xlogy(n, n) - n * log_rate - n + log_rate.exp()
        self.log("val_deviance", 2 * deviance.mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.03)


def make_counts():
    x = rows(1024, 5)
    rate = (1.5 + 0.5 * x[:, 0] - 0.4 * x[:, 1]).exp()
    return Counts(), *loaders(x, torch.poisson(rate, torch.Generator().manual_seed(0)))


class Quantiles(LightningModule):
    """Three quantiles at once: (N, 3) against (N, 1), which broadcasts on purpose."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        self.register_buffer("q", torch.tensor([0.1, 0.5, 0.9]))

    def pinball(self, batch):
        x, y = batch
        error = y - self.net(x)
        return torch.maximum(self.q * error, (self.q - 1) * error).mean()

    def training_step(self, batch, batch_idx):
        return self.pinball(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.pinball(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_quantiles():
    x = rows(1024, 4)
    return Quantiles(), *loaders(x, 2 * x[:, :1] - x[:, 1:2] + 0.3 * rows(1024, 1, seed=1))


class RankNet(LightningModule):
    """All pairs of a batch: a score column minus a score row, one score in the loss N times."""

    def __init__(self):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        s = self.score(x)
        higher = (y[:, None] > y[None, :]).float()
        return (F.softplus(-(s - s.T)) * higher).sum() / higher.sum().clamp(min=1)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        s = self.score(x).squeeze(1)
        higher = y[:, None] > y[None, :]
        self.log("val_wrong_order", (s[:, None] <= s[None, :])[higher].float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class PinnDecay(LightningModule):
    """u'' = -u with u(0) = 0, u'(0) = 1: no labels, derivatives by the inputs in the step."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh())
        self.out = nn.Linear(24, 1)

    def forward(self, t):
        return t + t**2 * self.out(self.u(t))

    def training_step(self, batch, batch_idx):
        (t,) = batch
        t = t.clone().requires_grad_()
        u = self(t)
        du = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        d2u = torch.autograd.grad(du.sum(), t, create_graph=True)[0]
        return ((d2u + u) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        (t,) = batch
        self.log("val_mse", F.mse_loss(self(t), torch.sin(t)))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_pinn():
    t = math.pi * torch.rand(512, 1, generator=torch.Generator().manual_seed(0))
    return PinnDecay(), *loaders(t)


class DiceNet(LightningModule):
    """Sigmoid inside, soft Dice by hand over the whole batch."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(2, 12, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.last = nn.Conv2d(10, 1, 3, padding=1)

    def forward(self, x):
        h = F.relu(self.up(F.relu(self.down(x))))
        return torch.sigmoid(self.last(torch.cat([h, x], 1))).squeeze(1)

    def training_step(self, batch, batch_idx):
        x, mask = batch
        p = self(x)
        return 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)

    def validation_step(self, batch, batch_idx):
        x, mask = batch
        p = self(x) > 0.5
        inter, union = (p & (mask > 0)).sum(), (p | (mask > 0)).sum()
        self.log("val_miss", 1 - inter / union.clamp(min=1))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_dice():
    images, _ = digits()
    other = images.roll(1, 0)
    mask = ((images > 0.6) & (other < 0.3)).squeeze(1).float()
    return DiceNet(), *loaders(torch.cat([images, other], 1), mask, batch_size=32)


class RareTags(LightningModule):
    """Eight tags, each on 2 to 5 in 100 examples, with a positive weight."""

    def __init__(self, pos_weight):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
        self.register_buffer("pos_weight", pos_weight)

    def loss(self, batch):
        x, tags = batch
        return F.binary_cross_entropy_with_logits(self.net(x), tags, pos_weight=self.pos_weight)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_rare_tags():
    x = rows(2048, 16)
    tags = (x[:, :8] + 0.6 * x[:, 8:] > torch.linspace(1.9, 2.3, 8)).float()
    weight = (1 - tags.mean(0)) / tags.mean(0)
    return RareTags(weight), *loaders(x, tags, batch_size=128)


# seeds 0 to 2                   metric            untrained             trained
# raw_targets_bias_initialised   val_mse           6.53e+03 to 6.56e+03  2.87e+03 to 2.92e+03
# raw_targets_learned_scale      val_loss          101 to 102            4.6 to 8.11
# ratings_by_scaled_sigmoid      val_mse           3.33 to 3.69          0.305 to 0.336
# gaussian_nll_negative          val_nll           0.154 to 0.308        -2.09 to -1.47
# poisson_counts                 val_deviance      10.1 to 14            1.19 to 1.21
# quantiles_broadcast            val_loss          0.829 to 0.865        0.0859 to 0.0871
# ranking_all_pairs              val_wrong_order   0.409 to 0.64         0.234 to 0.241
# physics_informed               val_mse           0.0241 to 4.91        2.13e-05 to 5.93e-05
# dice_by_hand                   val_miss          0.864 to 0.943        0.281 to 0.32
# multilabel_rare                val_loss          1.26 to 1.28          0.229 to 0.261
PROGRAMS = [
    Program("raw_targets_bias_initialised", make_blood_sugar, metric="val_mse"),
    Program("raw_targets_learned_scale", make_prices, steps=200),
    Program("ratings_by_scaled_sigmoid", make_stars, metric="val_mse", steps=200),
    Program("gaussian_nll_negative", make_mean_and_variance, metric="val_nll", steps=200),
    Program("poisson_counts", make_counts, metric="val_deviance"),
    Program("quantiles_broadcast", make_quantiles),
    Program(
        "ranking_all_pairs",
        lambda: (RankNet(), *loaders(*table("diabetes"), batch_size=32)),
        metric="val_wrong_order",
    ),
    Program("physics_informed", make_pinn, metric="val_mse", steps=200),
    Program("dice_by_hand", make_dice, metric="val_miss", steps=250),
    Program("multilabel_rare", make_rare_tags),
]
