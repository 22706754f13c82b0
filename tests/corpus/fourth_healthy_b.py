"""Healthy programs that look odd, fourth set, second half."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

from tests.corpus.fourth_broken_a import generator
from tests.corpus.fourth_broken_c import TiedModel, discs, sentences
from tests.corpus.fourth_healthy_a import Accuracy, Base
from tests.corpus.program import Program, bundled, images, loaders, standardized


class PointGAN(LightningModule):
    """Two optimizers in turn; neither loss goes down for long."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))

    def training_step(self, batch, _):
        real = batch[0]
        g, d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        loss = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(fake.detach())).mean()
        d.zero_grad()
        self.manual_backward(loss)
        d.step()
        self.toggle_optimizer(g)
        fool = F.softplus(-self.critic(fake)).mean()
        g.zero_grad()
        self.manual_backward(fool)
        g.step()
        self.untoggle_optimizer(g)
        self.log_dict({"critic": loss, "fool": fool})

    def validation_step(self, batch, _):
        fake = self.generator(torch.randn(len(batch[0]), 4))
        self.log("val_gap", (fake.mean(0) - batch[0].mean(0)).norm())

    def configure_optimizers(self):
        g = torch.optim.Adam(self.generator.parameters(), lr=5e-3, betas=(0.5, 0.9))
        return g, torch.optim.Adam(self.critic.parameters(), lr=5e-3, betas=(0.5, 0.9))


def point_gan():
    points = torch.randn(4000, 2, generator=generator(30)) * 0.5 + torch.tensor([1.6, -1.2])
    return PointGAN(), *loaders(points, batch_size=64, val_batch_size=1000)


class FrozenKernels(Accuracy):
    """Random convolutions that stay as they are, in eval mode, without gradients."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.trunk.requires_grad_(False)
        self.head = nn.Linear(48 * 16, 10)

    def train(self, mode=True):
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            features = self.trunk(x).flatten(1)
        return self.head(features)


class Marked(Base):
    """Discs and their rims; pixels nobody marked are 255 and ignored, most of them."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 2, 1),
        )

    def loss(self, batch):
        return F.cross_entropy(self.net(batch["image"]), batch["marks"], ignore_index=255)

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch), batch_size=len(batch["marks"]))


def marked(count, seed):
    hidden = torch.rand(count, 16, 16, generator=generator(seed)) < 0.7
    return [
        {"image": item["image"], "marks": item["mask"].long().masked_fill(hide, 255)}
        for item, hide in zip(discs(count, seed), hidden, strict=True)
    ]


def segmentation():
    train = DataLoader(marked(480, 31), 16, shuffle=True)
    return Marked(), train, DataLoader(marked(120, 32), 60)


class Counts(Base):
    """A Poisson likelihood of raw counts, up to some hundreds, from an exponential link."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))

    def loss(self, batch):
        x, y = batch
        return F.poisson_nll_loss(self.net(x).squeeze(1), y, log_input=True)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_mae", (self.net(x).squeeze(1).exp() - y).abs().mean())


def counts():
    g = generator(33)
    x = torch.randn(1800, 6, generator=g)
    rate = torch.exp(2.5 + 0.8 * torch.tanh(x[:, 0] * x[:, 1]) + 0.5 * torch.tanh(x[:, 2]))
    return Counts(), *loaders(x, torch.poisson(rate, generator=g))


class NextReading(Base):
    """Windows of one long stationary series in their order, no shuffling."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 16, batch_first=True)
        self.out = nn.Linear(16, 1)

    def loss(self, batch):
        h, _ = self.rnn(batch[0].unsqueeze(-1))
        return F.mse_loss(self.out(h[:, -1]).squeeze(-1), batch[1])


def series():
    g = generator(34)
    t = torch.arange(3020.0)
    wave = torch.sin(t / 3.1) + 0.7 * torch.sin(t / 7.7 + 1) + 0.05 * torch.randn(3020, generator=g)
    windows = wave.unfold(0, 17, 1)
    return NextReading(), *loaders(windows[:, :16], windows[:, 16], shuffle=False)


class DeepLinear(Base):
    """Four matrices and nothing between: their dynamics is what is studied."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        sizes = [(12, 24), (24, 24), (24, 24), (24, 5)]
        self.factors = nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in sizes))
        for factor in self.factors:
            nn.init.orthogonal_(factor.weight, gain=0.7)

    def loss(self, batch):
        return F.mse_loss(self.factors(batch[0]), batch[1])


def deep_linear():
    g = generator(35)
    x = torch.randn(1500, 12, generator=g)
    low = torch.randn(12, 2, generator=g) @ torch.randn(2, 5, generator=g) / 4
    return DeepLinear(), *loaders(x, x @ low + 0.05 * torch.randn(1500, 5, generator=g))


class LowRank(Accuracy):
    """Each large matrix is a product of thin ones."""

    def __init__(self, rank=6):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, rank, bias=False),
            nn.Linear(rank, 128),
            nn.ReLU(),
            nn.Linear(128, rank, bias=False),
            nn.Linear(rank, 10),
        )

    lr = 1e-2

    def forward(self, x):
        return self.net(x)


class Student(Base):
    """Follows a fixed teacher's soft answers at temperature four; labels are not looked at."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        x, y = standardized("digits")
        self.student = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
        # ridge regression's answers serve as the teacher's logits
        gram = x.T @ x + 10 * torch.eye(64)
        self.register_buffer("teacher", torch.linalg.solve(gram, x.T @ F.one_hot(y, 10).float()))

    def training_step(self, batch, _):
        goal = (10 * batch[0] @ self.teacher / 4).softmax(-1)
        guess = (self.student(batch[0]) / 4).log_softmax(-1)
        return 16 * F.kl_div(guess, goal, reduction="batchmean")

    def validation_step(self, batch, _):
        hits = self.student(batch[0]).argmax(1) == (batch[0] @ self.teacher).argmax(1)
        self.log("val_acc", hits.float().mean())


class Triplets(Base):
    """Hardest positive and negative of each batch, margin a half."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 16))

    def loss(self, batch):
        z = F.normalize(self.net(batch[0]), dim=1)
        apart = 1 - z @ z.T
        same = batch[1][:, None] == batch[1]
        near = apart.masked_fill(same, torch.inf).amin(1)
        far = apart.masked_fill(~same, -torch.inf).amax(1)
        return F.relu(far - near + 0.5).mean()


class Quantiles(Base):
    """Three quantiles from one head, kept in order by softplus steps."""

    lr = 5e-3
    levels = (0.1, 0.5, 0.9)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 3))

    def loss(self, batch):
        x, y = batch
        raw = self.net(x)
        guess = torch.cat([raw[:, :1], F.softplus(raw[:, 1:])], 1).cumsum(1)
        error = y[:, None] - guess
        level = torch.tensor(self.levels)
        return torch.maximum(level * error, (level - 1) * error).mean()


def quantiles():
    g = generator(36)
    x = torch.randn(1800, 4, generator=g)
    spread = 0.1 + 0.4 * torch.sigmoid(2 * x[:, 1])
    return Quantiles(), *loaders(x, 2 * x[:, 0] + x[:, 2] + spread * torch.randn(1800, generator=g))


class PaddedTagger(Base):
    """Packed sequences of many lengths; padding is token 0 and tag -100."""

    lr = 1e-2

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 16, padding_idx=0)
        self.rnn = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.out = nn.Linear(48, 3)

    def loss(self, batch):
        tokens, tags, lengths = batch
        packed = pack_padded_sequence(self.embed(tokens), lengths, True, False)
        hidden, _ = pad_packed_sequence(self.rnn(packed)[0], True, total_length=tokens.shape[1])
        return F.cross_entropy(self.out(hidden).transpose(1, 2), tags)


def padded():
    g = generator(37)
    lengths = torch.randint(3, 19, (1500,), generator=g)
    tokens = torch.randint(1, 12, (1500, 18), generator=g)
    tags = (tokens.roll(1, 1) % 3 + (tokens > 6)) % 3
    tags[:, 0] = 0
    gone = torch.arange(18) >= lengths[:, None]
    return PaddedTagger(), *loaders(tokens * ~gone, tags.masked_fill(gone, -100), lengths)


class Weighted(Base):
    """Losses of two tasks weighted by learned variances; the sum may go below zero."""

    lr = 3e-3

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 96), nn.ReLU())
        self.digit, self.ink = nn.Linear(96, 10), nn.Linear(96, 1)
        self.log_vars = nn.ParameterDict({k: nn.Parameter(torch.zeros(())) for k in ("d", "i")})

    def losses(self, batch):
        h = self.trunk(batch[0])
        ink = F.mse_loss(self.ink(h)[:, 0], batch[2])
        return {"d": F.cross_entropy(self.digit(h), batch[1]), "i": ink}

    def training_step(self, batch, _):
        losses = self.losses(batch)
        total = sum(loss * (-self.log_vars[k]).exp() for k, loss in losses.items())
        return {"loss": total + sum(self.log_vars.values()) / 2, "parts": losses["i"].detach()}

    def validation_step(self, batch, _):
        self.log("val_loss", sum(self.losses(batch).values()))


def weighted():
    x, y = standardized("digits")
    ink = bundled("digits")[0].mean(1)
    return Weighted(), *loaders(x, y, (ink - ink.mean()) / ink.std())


PROGRAMS = [
    Program("fourth_gan", point_gan, metric="val_gap"),
    Program("fourth_frozen_kernels", lambda: (FrozenKernels(), *loaders(*images()))),
    Program("fourth_tied_causal", lambda: (TiedModel(3e-3), *loaders(sentences()))),
    Program("fourth_ignored_pixels", segmentation),
    Program("fourth_counts", counts, metric="val_mae"),
    Program("fourth_series", series),
    Program("fourth_deep_linear", deep_linear),
    Program("fourth_low_rank", lambda: (LowRank(), *loaders(*standardized("digits")))),
    Program(
        "fourth_student", lambda: (Student(), *loaders(*standardized("digits"))), metric="val_acc"
    ),
    Program(
        "fourth_triplets", lambda: (Triplets(), *loaders(*standardized("digits"), batch_size=64))
    ),
    Program("fourth_quantiles", quantiles),
    Program("fourth_padded_tags", padded, steps=80),
    Program("fourth_weighted_tasks", weighted),
]
