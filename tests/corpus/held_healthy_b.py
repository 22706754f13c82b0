"""Healthy whole fits that only look odd, written without sight of the monitors: part two."""

import copy

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tests.corpus.held_healthy_a import Model, by, dense, digits, pretrained
from tests.corpus.program import Program, bundled, images, loaders, standardized


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Task(LightningModule):
    """One network, one loss of outputs and targets, and scores named in a dictionary."""

    def __init__(self, net, loss, lr=3e-3, scores=None, optimizer=optim.Adam):
        super().__init__()
        self.net, self.loss, self.scores = net, loss, scores or {}
        self.optimizer = optimizer(net.parameters(), lr=lr)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.loss(self.net(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self.net(x)
        self.log("val_loss", self.loss(out, y), prog_bar=True)
        for name, score in self.scores.items():
            self.log(name, score(out, y), prog_bar=True)

    def configure_optimizers(self):
        return self.optimizer


def accuracy(out, y):
    return (out.argmax(1) == y).float().mean()


def friedman(n=1000, noise=0.1):
    x = torch.rand(n, 6, generator=generator(3))
    y = 2 * torch.sin(3.14 * x[:, 0] * x[:, 1]) + (2 * x[:, 2] - 1) ** 2 + x[:, 3]
    return x * 2 - 1, y + noise * torch.randn(n, generator=generator(4))


def r2(out, y):
    return 1 - F.mse_loss(out.view_as(y), y) / y.var()


def one_epoch_no_val():
    x, y = images()
    data = TensorDataset(x.repeat(4, 1, 1, 1), y.repeat(4))
    net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    return Task(net, F.cross_entropy, 2e-3), DataLoader(data, 32, shuffle=True), None


def val_four_times():
    return Model(dense(64, 64, 10), by(optim.AdamW, lr=1e-3)), *digits(batch_size=16)


def cosine(out, y):
    return -F.cosine_similarity(out, y).mean()


def negative_cosine():
    """Minus the cosine similarity: the loss goes to minus one."""
    x = torch.randn(1200, 8, generator=generator(5))
    y = torch.tanh(x @ torch.randn(8, 12, generator=generator(6)))
    return Task(dense(8, 48, 12), cosine), *loaders(x, y)


def log_density(out, y):
    """Minus the log density of a mixture of three normals; below zero where it is sharp."""
    logits, mean, log_std = out.chunk(3, 1)
    parts = torch.distributions.Normal(mean, log_std.clamp(-5, 3).exp()).log_prob(y[:, None])
    return -torch.logsumexp(logits.log_softmax(1) + parts, 1).mean()


def mixture_density():
    x = torch.rand(1200, 1, generator=generator(7)) * 2 - 1
    sign = torch.randint(0, 2, (1200,), generator=generator(8)) * 2 - 1
    y = sign * (0.5 + 0.4 * x[:, 0]) + 0.03 * torch.randn(1200, generator=generator(9))
    return Task(dense(1, 32, 32, 9, act=nn.Tanh), log_density, 2e-3), *loaders(x, y)


class Curriculum(Model):
    """Easy digits first, all of them later: the training loss rises twice."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        easy = y < min(10, 4 + 3 * (self.current_epoch // 2))
        loss = F.cross_entropy(self(x[easy]), y[easy])
        self.log("train_loss", loss)
        return loss


def curriculum():
    return Curriculum(dense(64, 48, 10), by(optim.Adam, lr=3e-3)), *digits()


def label_smoothing():
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    return Task(dense(64, 48, 10), loss, scores={"val_acc": accuracy}), *digits()


class Mixup(Model):
    def training_step(self, batch, batch_idx):
        (x, y), share = batch, float(torch.distributions.Beta(1.0, 1.0).sample())
        order = torch.randperm(len(x))
        out = self(share * x + (1 - share) * x[order])
        loss = share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[order])
        self.log("train_loss", loss)
        return loss


def mixup():
    return Mixup(dense(64, 96, 10), by(optim.Adam, lr=3e-3)), *digits()


def recall(out, y):
    """The mean of the recalls of both classes."""
    right = (out > 0).float() == y
    return (right[y == 1].float().mean() + right[y == 0].float().mean()) / 2


def bce(out, y):
    return F.binary_cross_entropy_with_logits(out, y)


def imbalance():
    """Five in a hundred are positive; the sampler balances training, nothing else."""
    x = torch.randn(2400, 5, generator=generator(10))
    y = (x[:, :3].sum(1) + 0.3 * torch.randn(2400, generator=generator(11)) > 2.85).float()
    sampler = WeightedRandomSampler(1.0 + 18 * y[:1600], 1600)
    train = DataLoader(TensorDataset(x[:1600], y[:1600]), 32, sampler=sampler)
    val = DataLoader(TensorDataset(x[1600:], y[1600:]), 800)
    net = nn.Sequential(*dense(5, 24, 1), nn.Flatten(0))
    return Task(net, bce, scores={"val_balanced_acc": recall}), train, val


class LastState(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.gru, self.head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, outputs)

    def forward(self, x):
        return self.head(self.gru(x)[1][-1])


def gru():
    y = torch.randint(0, 3, (900,), generator=generator(12))
    start = 6.28 * torch.rand(900, 1, generator=generator(13))
    x = torch.sin(torch.arange(16) * (0.3 + 0.4 * y[:, None]) + start)
    x = (x + 0.1 * torch.randn(900, 16, generator=generator(14)))[..., None]
    return Task(LastState(3), F.cross_entropy, 1e-2, {"val_acc": accuracy}), *loaders(x, y)


class Characters(nn.Module):
    """A causal transformer that shares the table between input and output."""

    def __init__(self, size=12, dim=24):
        super().__init__()
        self.table = nn.Embedding(size, dim)
        self.place = nn.Parameter(torch.zeros(11, dim))
        self.block = nn.TransformerEncoderLayer(dim, 2, 48, 0.0, batch_first=True)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(11))
        nn.init.normal_(self.table.weight, std=0.2)

    def forward(self, x):
        h = self.block(self.table(x) + self.place, src_mask=self.mask, is_causal=True)
        return (h @ self.table.weight.T).transpose(1, 2)


def characters():
    """Each letter follows from the last two, or in one case of ten from nothing."""
    text = torch.randint(0, 12, (700, 12), generator=generator(15))
    for i in range(2, 12):
        keep = torch.rand(700, generator=generator(16 + i)) < 0.9
        text[:, i] = torch.where(keep, (2 * text[:, i - 1] + 3) % 12, text[:, i])
    return Task(Characters(), F.cross_entropy, 5e-3), *loaders(text[:, :-1], text[:, 1:])


def denoising():
    x = bundled("digits")[0] / 16
    noisy = x + 0.3 * torch.randn(x.shape, generator=generator(30))
    net = nn.Sequential(*dense(64, 48, 64), nn.Sigmoid())
    return Task(net, nn.MSELoss(), 3e-3), *loaders(noisy, x)


def pinball(out, y):
    error = y[:, None] - out
    levels = torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def quantiles():
    x, y = friedman(noise=0.4)
    return Task(dense(6, 48, 3), pinball, 5e-3), *loaders(x, y)


def poisson():
    x = torch.randn(1200, 5, generator=generator(31))
    y = torch.poisson((0.7 * x[:, 0] + 0.5 * x[:, 1].sin() + 1).exp(), generator=generator(32))
    net = nn.Sequential(*dense(5, 24, 1), nn.Flatten(0))
    return Task(net, nn.PoissonNLLLoss()), *loaders(x, y)


def exact(out, y):
    return ((out > 0).float() == y).float().mean()


def multilabel():
    x = torch.randn(1200, 10, generator=generator(33))
    y = ((x @ torch.randn(10, 6, generator=generator(34))) > 2.5).float()
    return Task(dense(10, 48, 6), bce, scores={"val_acc": exact}), *loaders(x, y)


def overlap(out, y):
    hit = out.squeeze(1) > 0
    return (hit & (y > 0)).sum() / (hit | (y > 0)).sum()


def dice(out, y):
    p = out.squeeze(1).sigmoid()
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def segmentation():
    """Discs in noise, learnt with the Dice loss."""
    center = 12 * torch.rand(400, 2, 1, 1, generator=generator(35)) + 2
    rows, columns = torch.arange(16)[:, None], torch.arange(16)
    y = ((rows - center[:, 0]) ** 2 + (columns - center[:, 1]) ** 2 < 12).float()
    x = y[:, None] + 0.7 * torch.randn(400, 1, 16, 16, generator=generator(36))
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1)),
    )
    return Task(net, dice, 1e-2, {"val_iou": overlap}), *loaders(x, y, batch_size=10)


def plain_sgd():
    return Model(dense(64, 64, 10, act=nn.Tanh), by(optim.SGD, lr=0.1)), *digits()


def strong_decay():
    """Many inputs and few rows: decay of this strength is what validation asks for."""
    x = torch.randn(900, 60, generator=generator(37))
    y = (x[:, :4].sum(1) + torch.randn(900, generator=generator(38)) > 0).long()
    opt = by(optim.AdamW, lr=3e-3, weight_decay=1.0)
    train = DataLoader(TensorDataset(x[:400], y[:400]), 16, shuffle=True)
    return Model(nn.Linear(60, 2), opt), train, DataLoader(TensorDataset(x[400:], y[400:]), 500)


def clipped_adam():
    return Model(dense(64, 64, 10), by(optim.Adam, lr=2e-3)), *digits()


def late_overfit():
    """A few epochs past the best, as most people train."""
    x, y = standardized("breast_cancer")
    return Model(dense(30, 32, 2), by(optim.Adam, lr=2e-3)), *loaders(x, y, batch_size=16)


def noisy_targets():
    """Half of the variance is noise that nobody can learn."""
    x, y = friedman(1600, noise=0.8)
    return Task(
        nn.Sequential(*dense(6, 32, 1), nn.Flatten(0)), F.mse_loss, scores={"val_r2": r2}
    ), *(loaders(x, y))


def wrong_labels():
    """Three labels of ten in training are wrong, the loss stays high and the digits are learnt."""
    x, y = standardized("digits")
    wrong = torch.rand(1347, generator=generator(39)) < 0.3
    noisy = torch.where(wrong, torch.randint(0, 10, (1347,), generator=generator(40)), y[:1347])
    train = DataLoader(TensorDataset(x[:1347], noisy), 32, shuffle=True)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
    val = DataLoader(TensorDataset(x[1347:], y[1347:]), 450)
    return Model(net, by(optim.AdamW, lr=2e-3, weight_decay=0.1)), train, val


class Student(Model):
    """Learns from the softened outputs of a frozen teacher in its own module."""

    def __init__(self):
        super().__init__(dense(64, 16, 10), by(optim.Adam, lr=5e-3))
        self.teacher = copy.deepcopy(pretrained()).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            goal = (self.teacher(batch[0]) / 3).softmax(1)
        loss = F.kl_div((self(batch[0]) / 3).log_softmax(1), goal, reduction="batchmean") * 9
        self.log("distillation", loss)
        return loss

    def configure_optimizers(self):
        return optim.Adam(self.net.parameters(), lr=5e-3)


def distillation():
    return Student(), *digits()


class Sets(nn.Module):
    """The same small network over each point, then the sum."""

    def __init__(self):
        super().__init__()
        self.each, self.all = dense(2, 24, 24), dense(24, 24, 1)

    def forward(self, x):
        return self.all(self.each(x).mean(1))[:, 0]


def sets_of_points():
    x = torch.randn(1000, 8, 2, generator=generator(41))
    y = x.norm(dim=2).mean(1) * 3
    return Task(Sets(), F.smooth_l1_loss, 5e-3, {"val_r2": r2}), *loaders(x, y)


class ReZero(nn.Module):
    """Six residual layers whose gates begin at zero."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 40), nn.Linear(40, 10)
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(6))
        self.gates = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        x = self.first(x)
        for gate, layer in zip(self.gates, self.layers, strict=True):
            x = x + gate * F.gelu(layer(x))
        return self.last(x)


def rezero():
    return Model(ReZero(), by(optim.Adam, lr=2e-3)), *digits()


class MeanTeacher(Model):
    """Few labels; agreement with the moving average of oneself on the rest."""

    def __init__(self):
        super().__init__(dense(64, 64, 10), by(optim.Adam, lr=3e-3))
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        known = slice(0, 12)
        guess = self.net(x + 0.2 * torch.randn_like(x))
        loss = F.cross_entropy(guess[known], y[known])
        loss = loss + F.mse_loss(guess.softmax(1), self.teacher(x).softmax(1))
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, *args):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.03)

    def forward(self, x):
        return self.teacher(x) if not self.training else self.net(x)


def mean_teacher():
    return MeanTeacher(), *digits()


FITS = """
val_four_times 5 val_acc, negative_cosine 8 val_loss, mixture_density 16 val_loss,
curriculum 6 val_acc, label_smoothing 5 val_acc, mixup 6 val_acc, imbalance 5 val_balanced_acc,
gru 8 val_acc, characters 8 val_loss, denoising 6 val_loss, quantiles 10 val_loss,
poisson 8 val_loss, multilabel 8 val_acc, segmentation 6 val_iou, plain_sgd 5 val_acc,
strong_decay 16 val_loss, clipped_adam 5 val_acc, late_overfit 12 val_acc, noisy_targets 8 val_r2,
wrong_labels 6 val_acc, distillation 5 val_acc, sets_of_points 18 val_r2,
rezero 5 val_loss, mean_teacher 6 val_acc
"""
EXTRA = {"clipped_adam": {"gradient_clip_val": 0.5}, "val_four_times": {"val_check_interval": 0.25}}
PROGRAMS = [
    Program("held_one_epoch_no_val", one_epoch_no_val, {"max_epochs": 1}, metric="train_loss_epoch")
]
for row in FITS.split(","):
    n, epochs, metric = row.split()
    settings = {"max_epochs": int(epochs)} | EXTRA.get(n, {})
    PROGRAMS.append(Program(f"held_{n}", globals()[n], trainer=settings, metric=metric))
