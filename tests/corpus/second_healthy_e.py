"""Optimizers, schedules and steps by hand, and data that only look troubled."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.autograd import Function
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tests.corpus.program import Program, bundled, loaders, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mlp(*sizes, act=nn.ReLU):
    layers = [nn.Linear(sizes[0], sizes[1])]
    for i in range(1, len(sizes) - 1):
        layers += [act(), nn.Linear(sizes[i], sizes[i + 1])]
    return nn.Sequential(*layers)


def curve(rows, seed, columns=6):
    """Features and a smooth function of them with deviation 1."""
    x = torch.randn(rows, columns, generator=seeded(seed))
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + x[:, 3:4]
    return x, y / y.std()


class Regressor(LightningModule):
    """Mean squares and Adam, where the program says nothing else."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def loss(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Classifier(Regressor):
    """Cross-entropy and accuracy."""

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


class SteepSGD(Classifier):
    """Plain descent with a step of one half on normalised layers."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class OneCycle(Classifier):
    """One cycle to a high peak and back, with nesterov momentum; longer than the fit."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=400)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class CosineRestarts(Regressor):
    """The step size falls to almost zero every fifty batches and jumps back."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        waves = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 50)
        return [optimizer], [{"scheduler": waves, "interval": "step"}]


class StrongDecay(Classifier):
    """Decoupled decay of one half: strong as a number, a two-hundredth per step in effect."""

    def configure_optimizers(self):
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-2)


class Sampled(Classifier):
    """Judged by the mean recall of the two classes, as rare ones count the same here."""

    def validation_step(self, batch, batch_idx):
        hit = (self.net(batch[0]).argmax(1) == batch[1]).float()
        self.log("val_balanced_acc", (hit[batch[1] == 0].mean() + hit[batch[1] == 1].mean()) / 2)


class WideDropout(Classifier):
    """Dropout of 0.7 on a wide layer; validation averages ten random passes on purpose."""

    def validation_step(self, batch, batch_idx):
        self.net[2].train()
        logits = torch.stack([self.net(batch[0]).softmax(1) for _ in range(10)]).mean(0)
        self.net[2].eval()
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())


class ByLBFGS(Regressor):
    """LBFGS with its closure on the whole set: few steps, each of many evaluations."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=4, history_size=10)


class AccumulatedByHand(Regressor):
    """Four batches to a step by hand, each loss divided by four and the norm clipped."""

    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.loss(batch)
        self.manual_backward(loss / 4)
        if (batch_idx + 1) % 4 == 0:
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()


class SteepSign(Function):
    """The sign forward, a clipped identity backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class BinaryNet(Classifier):
    """Hidden units of -1 and 1 with a straight-through gradient written by hand."""

    def __init__(self):
        super().__init__(None)
        self.first, self.norm = nn.Linear(64, 128, bias=False), HandNorm(128)
        self.last = nn.Linear(128, 10)
        self.net = lambda x: self.last(SteepSign.apply(self.norm(self.first(x))))


class HandNorm(nn.Module):
    """Batch normalisation written out, with running averages for evaluation."""

    def __init__(self, width):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x):
        mean, var = self.mean, self.var
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            self.mean.lerp_(mean.detach(), 0.1)
            self.var.lerp_(var.detach(), 0.1)
        return (x - mean) / (var + 1e-5).sqrt() * self.scale + self.shift


class Reversal(Function):
    """The identity whose gradient changes its sign."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.strength * grad, None


class DomainAdversary(Classifier):
    """Labels from the source alone; the domain's loss is meant to stay at chance."""

    def __init__(self):
        super().__init__(None)
        self.trunk = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU())
        self.label, self.domain = nn.Linear(16, 3), nn.Linear(16, 1)
        self.net = lambda x: self.label(self.trunk(x))

    def training_step(self, batch, batch_idx):
        x, y, domain = batch
        h = self.trunk(x)
        label_loss = F.cross_entropy(self.label(h), y, ignore_index=-1)
        logit = self.domain(Reversal.apply(h, 0.1)).squeeze(1)
        domain_loss = F.binary_cross_entropy_with_logits(logit, domain)
        self.log_dict({"label_loss": label_loss, "domain_loss": domain_loss})
        return label_loss + domain_loss


class UncertainTasks(LightningModule):
    """Two tasks in a nested batch, weighted by learned variances."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.heads = nn.ModuleDict({"level": nn.Linear(64, 1), "sign": nn.Linear(64, 1)})
        self.log_vars = nn.ParameterDict({k: nn.Parameter(torch.zeros(())) for k in self.heads})

    def losses(self, batch):
        h = self.trunk(batch["inputs"]["x"])
        level, sign = batch["targets"]
        sign_loss = F.binary_cross_entropy_with_logits(self.heads["sign"](h), sign)
        return {"level": F.mse_loss(self.heads["level"](h), level), "sign": sign_loss}

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        self.log_dict({f"train_{name}": value for name, value in losses.items()})
        s = self.log_vars
        total = sum((-s[k]).exp() * v + s[k] / 2 for k, v in losses.items())
        return {"loss": total, "losses": {k: v.detach() for k, v in losses.items()}}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", sum(self.losses(batch).values()))

    def configure_optimizers(self):
        weights = {"params": self.log_vars.parameters(), "lr": 1e-3}
        nets = [*self.trunk.parameters(), *self.heads.parameters()]
        return torch.optim.Adam([{"params": nets}, weights], lr=5e-3)


class GapsFilled(Regressor):
    """A third of the inputs is NaN: zeros and a mask of what was there take their place."""

    def loss(self, batch):
        x, y = batch
        there = ~x.isnan()
        guess = self.net(torch.cat([x.nan_to_num(0.0), there.float()], 1))
        known = ~y.isnan()
        return F.mse_loss(guess[known], y[known])


class Ratings(Regressor):
    """Matrix factorisation of rank six; each batch touches a few rows of the tables."""

    def __init__(self):
        super().__init__(None)
        self.users, self.items = nn.Embedding(150, 6), nn.Embedding(100, 6)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)

    def loss(self, batch):
        users, items, stars = batch
        return F.mse_loss((self.users(users) * self.items(items)).sum(1), stars)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def normed():
    return nn.Sequential(nn.Linear(64, 64), HandNorm(64), nn.ReLU(), nn.Linear(64, 10))


def digits(kind, net, **settings):
    return lambda: (kind(net()), *loaders(*standardized("digits"), **settings))


def binary():
    return BinaryNet(), *loaders(*standardized("digits"))


def tiny_batches():
    return Classifier(mlp(4, 32, 3)), *loaders(*standardized("iris"), batch_size=4)


def last_batch_small():
    x, y = curve(333, 81, columns=4)
    train, val = TensorDataset(x[:243], y[:243]), TensorDataset(x[243:], y[243:])
    return Regressor(mlp(4, 64, 64, 1)), DataLoader(train, 32, shuffle=True), DataLoader(val, 128)


def by_lbfgs():
    x, y = curve(600, 82)
    return ByLBFGS(mlp(6, 24, 1, act=nn.Tanh)), *loaders(x, y, batch_size=450)


def noisy_labels():
    x, y = standardized("digits")
    wrong = torch.rand(len(y), generator=seeded(83)) < 0.3
    wrong[1347:] = False
    noisy = torch.where(wrong, torch.randint(0, 10, y.shape, generator=seeded(84)), y)
    return Classifier(mlp(64, 32, 10)), *loaders(x, noisy, batch_size=64)


def sampled_rare():
    x, _ = curve(3000, 85)
    y = (x[:, 0] + x[:, 1] - x[:, 2] > 3).long()
    train, val = TensorDataset(x[:2000], y[:2000]), TensorDataset(x[2000:], y[2000:])
    weights = torch.where(y[:2000] == 1, 1 / y[:2000].sum(), 1 / (1 - y[:2000]).sum())
    sampler = WeightedRandomSampler(weights, 2000, generator=seeded(86))
    return Sampled(mlp(6, 32, 2)), DataLoader(train, 64, sampler=sampler), DataLoader(val, 1000)


def spare_classes():
    x, y = bundled("wine")
    net = nn.Sequential(nn.BatchNorm1d(13), mlp(13, 48, 100))
    return Classifier(net), *loaders(x, y, batch_size=16)


def domains():
    g = seeded(87)
    y = torch.randint(0, 3, (2000,), generator=g)
    domain = (torch.rand(2000, generator=g) < 0.5).float()
    x = 1.2 * F.one_hot(y, 12).float() + 0.3 * torch.randn(2000, 12, generator=g)
    x[:, 8:] += 0.6 * domain[:, None]
    train = TensorDataset(x[:1500], y[:1500].masked_fill(domain[:1500] == 1, -1), domain[:1500])
    val = TensorDataset(x[1500:], y[1500:])
    return DomainAdversary(), DataLoader(train, 64, shuffle=True), DataLoader(val, 500)


def tasks():
    x, y = curve(1500, 88)
    pairs = zip(x, y, strict=True)
    rows = [{"inputs": {"x": a}, "targets": (b, (b > 0).float())} for a, b in pairs]
    return UncertainTasks(), DataLoader(rows[:1200], 32, shuffle=True), DataLoader(rows[1200:], 300)


def gaps():
    g = seeded(89)
    hidden = torch.randn(1500, 2, generator=g)
    x = hidden @ torch.randn(2, 12, generator=g) + 0.1 * torch.randn(1500, 12, generator=g)
    y = (hidden[:, :1] * 1.5).tanh() + hidden[:, 1:]
    y[torch.rand(1500, 1, generator=g) < 0.1] = torch.nan
    x[torch.rand(1500, 12, generator=g) < 0.33] = torch.nan
    return GapsFilled(mlp(24, 64, 1)), *loaders(x, y)


def ratings():
    g = seeded(90)
    table = torch.randn(150, 4, generator=g) @ torch.randn(4, 100, generator=g) / 2
    users, items = torch.randperm(15000, generator=g).remainder(150), torch.arange(15000) // 150
    order = torch.randperm(15000, generator=g)
    rows = users[order], items[order]
    return Ratings(), *loaders(*rows, table[rows], batch_size=512)


def deep_linear():
    x = torch.randn(1200, 10, generator=seeded(91))
    y = x @ torch.randn(10, 4, generator=seeded(92)) / 3
    layers = [nn.Linear(10, 32, bias=False), *(nn.Linear(32, 32, bias=False) for _ in range(3))]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
    return Regressor(nn.Sequential(*layers, nn.Linear(32, 4, bias=False))), *loaders(x, y)


def wide_dropout():
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Dropout(0.7), nn.Linear(512, 10))
    return WideDropout(net), *loaders(*standardized("digits"))


def by_curve(kind, seed, **settings):
    return lambda: (kind(mlp(6, 64, 64, 1)), *loaders(*curve(1600, seed), **settings))


PROGRAMS = [
    Program("digits_mlp", digits(Classifier, lambda: mlp(64, 64, 10)), metric="val_acc"),
    Program("curve_mlp", by_curve(Regressor, 93)),
    Program("iris_batches_of_four", tiny_batches, metric="val_acc"),
    Program("last_batch_small", last_batch_small),
    Program("steep_sgd", digits(SteepSGD, normed), metric="val_acc"),
    Program("one_cycle", digits(OneCycle, lambda: mlp(64, 64, 10)), metric="val_acc"),
    Program("cosine_restarts", by_curve(CosineRestarts, 94)),
    Program("strong_decay", digits(StrongDecay, lambda: mlp(64, 64, 10)), metric="val_acc"),
    Program("wide_dropout_mc", wide_dropout, metric="val_acc"),
    Program("lbfgs_whole_set", by_lbfgs, steps=40),
    Program("four_batches_a_step", by_curve(AccumulatedByHand, 95, batch_size=8), steps=600),
    Program("binary_units", binary, metric="val_acc"),
    Program("domain_adversary", domains, metric="val_acc", steps=250),
    Program("uncertain_tasks", tasks),
    Program("noisy_labels", noisy_labels, metric="val_acc"),
    Program("sampler_for_rare_rows", sampled_rare, metric="val_balanced_acc"),
    Program("spare_classes", spare_classes, metric="val_acc"),
    Program("gaps_filled", gaps),
    Program("ratings_factorised", ratings),
    Program("deep_linear", deep_linear),
]
