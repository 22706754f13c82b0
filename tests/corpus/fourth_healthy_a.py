"""Healthy programs that look odd, fourth set, first half."""

import copy
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.corpus.program import Program, bundled, images, loaders, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


class Base(LightningModule):
    """A subclass says what the loss of a batch is."""

    lr = 2e-3

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], self.lr)


class Accuracy(Base):
    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())


class SummedVAE(Base):
    """Negative evidence bound, summed over pixels, mean over images."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 96), nn.GELU(), nn.Linear(96, 64))

    def loss(self, batch):
        x = batch[0] / 16
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (log_var / 2).exp() if self.training else mean
        pixels = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        divergence = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum()
        self.log("reconstruction", pixels / len(x))
        return (pixels + 0.3 * divergence) / len(x)

    def validation_step(self, batch, _):
        x = batch[0] / 16
        out = torch.sigmoid(self.decoder(self.encoder(x)[:, :8]))
        self.log("val_mse", F.mse_loss(out, x))


class LoRALinear(nn.Module):
    def __init__(self, frozen, rank=4):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, frozen.in_features) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x):
        return self.frozen(x) + 2 * F.linear(F.linear(x, self.down), self.up)


class Adapted(Accuracy):
    """Low-rank adapters, with zero ``up`` at first, on a network trained on other labels."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        net = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        x, y = standardized("digits")
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for i in range(120):
            at = slice(i % 20 * 64, i % 20 * 64 + 64)
            optimizer.zero_grad()
            F.cross_entropy(net(x[at]), (y[at] * 3 + 1) % 10).backward()
            optimizer.step()
        for i in (0, 2, 4):
            net[i] = LoRALinear(net[i])
        self.net = net

    def forward(self, x):
        return self.net(x)


class Bootstrap(Base):
    """BYOL: no negatives, a target network that only follows; judged by a probe on the side."""

    lr = 2e-3

    def __init__(self):
        super().__init__()
        self.online = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.project = nn.Sequential(nn.Linear(128, 32))
        self.predict = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.target = copy.deepcopy(nn.Sequential(self.online, self.project))
        self.target.requires_grad_(False)
        self.probe = nn.Linear(128, 10)

    def augment(self, x):
        return x * (torch.rand_like(x) < 0.8) + 0.2 * torch.randn_like(x)

    def training_step(self, batch, _):
        x, y = batch
        a, b = self.augment(x), self.augment(x)
        loss = 0.0
        for one, other in ((a, b), (b, a)):
            with torch.no_grad():
                goal = self.target(other)
            guess = self.predict(self.project(self.online(one)))
            loss = loss - F.cosine_similarity(guess, goal).mean()
        self.log("similarity", -loss.detach() / 2)
        return loss + F.cross_entropy(self.probe(self.online(x).detach()), y)

    def on_train_batch_end(self, *_):
        live = [*self.online.parameters(), *self.project.parameters()]
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), live, strict=True):
                old.lerp_(new, 0.05)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_acc", (self.probe(self.online(x)).argmax(1) == y).float().mean())


class NTXent(Base):
    """Two noisy views against the rest of the batch; the metric is the loss of the clean pairs."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 24))
        self.log_scale = nn.Parameter(torch.tensor(1.6))

    def loss(self, batch):
        x = batch[0]
        views = torch.cat([x + 0.5 * torch.randn_like(x), x + 0.5 * torch.randn_like(x)])
        z = F.normalize(self.net(views), dim=1)
        scores = z @ z.T * self.log_scale.exp()
        scores.fill_diagonal_(-torch.inf)
        other = torch.arange(len(z)).roll(len(x))
        return F.cross_entropy(scores, other)


class MaskedSeries(Base):
    """Readings with gaps: gaps are NaN in the batch and masked before anything sees them."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def loss(self, batch):
        x, y = batch
        known = ~x.isnan()
        h, _ = self.rnn(torch.stack([x.nan_to_num(0.0), known.float()], -1))
        guess = self.out(h).squeeze(-1)
        there = ~y.isnan()
        return (guess[there] - y[there]).square().mean()


def gappy():
    g = rng(1)
    t = torch.arange(26) * 0.4 + torch.rand(1200, 1, generator=g) * 6
    series = torch.sin(t) + 0.05 * torch.randn(t.shape, generator=g)
    series[torch.rand(series.shape, generator=g) < 0.25] = torch.nan
    return MaskedSeries(), *loaders(series[:, :-1], series[:, 1:])


class MonteCarloDropout(Accuracy):
    """Dropout stays on in validation on purpose; sixteen passes are averaged."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        return self.head(F.dropout(self.body(x), 0.3, training=True))

    def validation_step(self, batch, _):
        x, y = batch
        chances = torch.stack([self(x).softmax(-1) for _ in range(16)]).mean(0)
        self.log("val_nll", F.nll_loss(chances.clamp_min(1e-8).log(), y))


class WarmUp(Accuracy):
    """A transformer over the rows of an image; zero rate at the first step, then a cosine."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.zeros(1, 8, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.body(self.embed(x.squeeze(1)) + self.place).mean(1))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=0.05)

        def rate(step):
            return step / 30 if step < 30 else 0.5 * (1 + math.cos(math.pi * (step - 30) / 130))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Accumulates(Accuracy):
    """Four batches for a step, by hand, each loss divided by four."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(self.loss(batch) / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class SecondOrder(Base):
    """LBFGS on the whole set at each step; several evaluations a step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss(self, batch):
        return F.mse_loss(self.net(batch[0])[:, 0], batch[1])

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=6)


def second_order():
    x = torch.randn(400, 2, generator=rng(4))
    y = torch.sin(2 * x[:, 0]) * x[:, 1]
    return SecondOrder(), *loaders(x, y, batch_size=300, shuffle=False)


class Focal(Accuracy):
    """Focal loss on an imbalanced pair of classes; the bias starts at the prior."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 1))
        nn.init.constant_(self.net[-1].bias, -2.2)

    def loss(self, batch):
        x, y = batch
        score = self.net(x).squeeze(1)
        plain = F.binary_cross_entropy_with_logits(score, y, reduction="none")
        return ((1 - torch.exp(-plain)) ** 2 * plain).mean() * 4

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch))


class Mixup(Accuracy):
    """Training sees mixed images with soft labels; its loss stays high."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y = batch
        share = torch.distributions.Beta(0.6, 0.6).sample((len(x), 1, 1, 1))
        order = torch.randperm(len(x))
        soft = F.one_hot(y, 10) * share[:, 0, 0] + F.one_hot(y[order], 10) * (1 - share[:, 0, 0])
        return F.cross_entropy(self(share * x + (1 - share) * x[order]), soft)


class Normed(Accuracy):
    """Weight norm below, spectral norm above, no biases."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.below = parametrizations.weight_norm(nn.Linear(64, 96, bias=False))
        self.middle = parametrizations.spectral_norm(nn.Linear(96, 96, bias=False))
        self.head = nn.Linear(96, 10)

    def forward(self, x):
        return self.head(F.relu(self.middle(F.relu(self.below(x)))))


class Checkpointed(Accuracy):
    """Residual blocks recomputed in the backward pass; each block is a no-op at first."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(64, 48)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
            for _ in range(3)
        )
        for block in self.blocks:
            nn.init.zeros_(block[-1].weight)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.head(x)


def focal():
    x, y = standardized("digits")
    return Focal(), *loaders(x, (y == 3).float())


PROGRAMS = [
    Program(
        "fourth_summed_vae", lambda: (SummedVAE(), *loaders(*bundled("digits"))), metric="val_mse"
    ),
    Program(
        "fourth_lora", lambda: (Adapted(), *loaders(*standardized("digits"))), metric="val_acc"
    ),
    Program(
        "fourth_byol", lambda: (Bootstrap(), *loaders(*standardized("digits"))), metric="val_acc"
    ),
    Program("fourth_contrastive", lambda: (NTXent(), *loaders(*standardized("digits")))),
    Program("fourth_masked_nan", gappy),
    Program(
        "fourth_mc_dropout",
        lambda: (MonteCarloDropout(), *loaders(*standardized("digits"))),
        metric="val_nll",
    ),
    Program("fourth_warm_up", lambda: (WarmUp(), *loaders(*images()))),
    Program(
        "fourth_accumulates",
        lambda: (Accumulates(), *loaders(*standardized("digits"))),
        metric="val_acc",
    ),
    Program("fourth_lbfgs", second_order, steps=40),
    Program("fourth_focal", focal),
    Program("fourth_mixup", lambda: (Mixup(), *loaders(*images())), metric="val_acc"),
    Program("fourth_normed", lambda: (Normed(), *loaders(*standardized("digits")))),
    Program("fourth_checkpointed", lambda: (Checkpointed(), *loaders(*standardized("digits")))),
]
