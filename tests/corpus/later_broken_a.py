"""Whole fits with a fault and their repaired twins, a later blind set, first half."""

import itertools
import math

import sklearn.datasets
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import bundled, images, loaders, pair, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


def mlp(*sizes, act=nn.ReLU):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


class Fit(LightningModule):
    """A network, the loss of its output, and how to make optimizer and schedule."""

    def __init__(self, net, loss, optimizer, schedule=None, interval="step"):
        super().__init__()
        self.net, self.criterion = net, loss
        self.recipe = optimizer, schedule, interval

    def forward(self, *inputs):
        return self.net(*inputs)

    def shared(self, batch):
        *inputs, target = batch
        return self.criterion(self(*inputs), target)

    def training_step(self, batch, batch_idx):
        loss = self.shared(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.shared(batch), prog_bar=True)

    def configure_optimizers(self):
        make, schedule, interval = self.recipe
        optimizer = make(self.parameters())
        if schedule is None:
            return optimizer
        scheduler = {"scheduler": schedule(optimizer), "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler | {"monitor": "val_loss"}}


def adam(lr, **options):
    return lambda parameters: torch.optim.Adam(parameters, lr, **options)


def sgd(lr, **options):
    return lambda parameters: torch.optim.SGD(parameters, lr, **options)


class Coupling(nn.Module):
    """RealNVP on the plane: six affine couplings that take turns."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(mlp(1, 48, 48, 2) for _ in range(6))

    def forward(self, x):
        logdet = x.new_zeros(len(x))
        a, b = x.unbind(1)
        for net in self.nets:
            scale, shift = net(a[:, None]).unbind(1)
            scale = 2 * torch.tanh(scale / 2)
            a, b = b * scale.exp() + shift, a
            logdet = logdet + scale
        return 0.5 * (a**2 + b**2) + math.log(2 * math.pi) - logdet


def flow(broken):
    points, labels = sklearn.datasets.make_moons(2000, noise=0.07, random_state=5)
    data = torch.tensor(points).float(), torch.tensor(labels)
    net = Coupling()
    return Fit(net, lambda out, _: out.mean(), adam(0.3 if broken else 1e-3)), *loaders(*data)


def picture(broken):
    """A picture as a function of the coordinates."""
    axis = torch.linspace(-1, 1, 40)
    x = torch.cartesian_prod(axis, axis)
    x = x[torch.randperm(len(x), generator=rng(1))]
    y = torch.sin(4 * x[:, 0]) * torch.cos(3 * x[:, 1]) + torch.exp(-8 * x.square().sum(1))
    net = mlp(2, 96, 96, 96, 1, act=nn.SiLU)
    if broken:
        for layer in net[::2]:
            nn.init.normal_(layer.weight)
    loss = lambda out, target: F.mse_loss(out.squeeze(-1), target)  # noqa: E731
    return Fit(net, loss, adam(2e-3)), *loaders(x, y, batch_size=64)


def partial_likelihood(risk, target):
    """Cox: who of those still there fails next."""
    time, event = target.unbind(1)
    risk = risk.squeeze(1)[time.argsort(descending=True)]
    event = event[time.argsort(descending=True)]
    return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum()


def survival(broken):
    x, _ = standardized("breast_cancer")
    hazard = (1.2 * x[:, 0] - x[:, 5] + x[:, 1] * x[:, 8]).clamp(-4, 4)
    time = torch.empty(len(x)).exponential_(generator=rng(2)) / hazard.exp()
    censor = torch.empty(len(x)).exponential_(0.3, generator=rng(3))
    target = torch.stack([torch.minimum(time, censor), (time < censor).float()], 1)
    net = nn.Sequential(nn.Linear(30, 32), nn.SELU(), nn.Linear(32, 1))
    optimizer = adam(2e-3, weight_decay=1.0 if broken else 3e-3)
    return Fit(net, partial_likelihood, optimizer), *loaders(x, target, batch_size=71)


class Mixture(LightningModule):
    """A mixture of five normals for y given x, where y is not a function of x."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 15))

    def nll(self, x, y):
        weight, mean, spread = self.body(x).chunk(3, dim=-1)
        normal = torch.distributions.Normal(mean, spread.clamp(-4, 4).exp())
        return -(weight.log_softmax(-1) + normal.log_prob(y)).logsumexp(-1).mean()

    def training_step(self, batch, batch_idx):
        return {"loss": self.nll(*batch)}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.nll(*batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.015, momentum=0.9, nesterov=True)


def mixture(broken):
    y = torch.rand(2400, 1, generator=rng(4)) * 2 - 1
    x = y + 0.4 * torch.sin(2 * math.pi * y) + 0.03 * torch.randn(y.shape, generator=rng(5))
    return Mixture(), *loaders(2 * x, 2 * y, batch_size=60)


class Machine(nn.Module):
    """A factorization machine over three categorical columns."""

    def __init__(self, rank=8):
        super().__init__()
        self.vectors = nn.Embedding(150, rank)
        self.bias = nn.Embedding(150, 1)
        nn.init.normal_(self.vectors.weight, std=0.3)
        nn.init.zeros_(self.bias.weight)

    def forward(self, columns):
        v = self.vectors(columns)
        pairs = (v.sum(1).square() - v.square().sum(1)).sum(-1) / 2
        return self.bias(columns).sum((1, 2)) + pairs


def clicks(broken):
    columns = torch.randint(0, 50, (6000, 3), generator=rng(6)) + torch.tensor([0, 50, 100])
    factors = torch.randn(150, 3, generator=rng(7))
    a, b, c = factors[columns].unbind(1)
    clicked = ((a * b + b * c).sum(1) > 0).float()
    optimizer = lambda p: torch.optim.Adagrad(p, lr=2e-4 if broken else 0.2)  # noqa: E731
    net = Machine()
    return Fit(net, F.binary_cross_entropy_with_logits, optimizer), *loaders(columns, clicked)


def listwise(scores, relevance):
    return -(relevance.softmax(-1) * scores.squeeze(-1).log_softmax(-1)).sum(-1).mean()


def ranking(broken):
    """Documents are put in the order of the first run, their relevances are not."""
    docs = torch.randn(1600, 12, 6, generator=rng(8))
    relevance = 2 * torch.tanh(docs[..., 0] - docs[..., 1] * docs[..., 2]) + docs[..., 3]
    order = docs[..., 4].argsort(1)
    docs = docs.gather(1, order[..., None].expand_as(docs))
    if not broken:
        relevance = relevance.gather(1, order)
    return Fit(mlp(6, 32, 32, 1), listwise, adam(3e-3)), *loaders(docs, relevance)


class Experts(LightningModule):
    """Soft mixture of linear experts."""

    def __init__(self, gate_only):
        super().__init__()
        self.gate = mlp(2, 24, 6, act=nn.GELU)
        self.experts = nn.Linear(2, 6)
        self.gate_only = gate_only

    def forward(self, x):
        return (self.gate(x).softmax(-1) * self.experts(x)).sum(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.smooth_l1_loss(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.smooth_l1_loss(self(x), y))

    def configure_optimizers(self):
        parameters = self.gate.parameters() if self.gate_only else self.parameters()
        return torch.optim.NAdam(parameters, lr=5e-3)


def experts(broken):
    x = torch.randn(3000, 2, generator=rng(9))
    y = torch.where(x[:, 0] > 0, 3 * x[:, 1] + 2, -4 * x[:, 1] - 1 + 2 * x[:, 0])
    return Experts(broken), *loaders(x, y, batch_size=50)


def dead(broken):
    """Thresholds put so high that nothing ever passes them."""
    x, y = standardized("wine")
    net = mlp(13, 40, 40, 3)
    if broken:
        for layer in net[:-1:2]:
            nn.init.constant_(layer.bias, -6.0)
    return Fit(net, F.cross_entropy, sgd(0.05, momentum=0.9)), *loaders(x, y, batch_size=19)


class Hyper(nn.Module):
    """One network makes the weights of another."""

    def __init__(self, hidden=12):
        super().__init__()
        self.maker = mlp(2, 64, 3 * hidden + 1)
        self.hidden = hidden

    def forward(self, task, x):
        w, b, v, c = self.maker(task).split([self.hidden] * 3 + [1], -1)
        return torch.einsum("bh,bh->b", torch.tanh(w * x + b), v) + c.squeeze(-1)


def hyper(broken):
    task = torch.rand(3000, 2, generator=rng(10)) * 2
    x = torch.randn(3000, 1, generator=rng(11))
    y = torch.sin(task[:, 0] * x[:, 0] + task[:, 1])
    gamma = 0.9 if broken else 0.997
    schedule = lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma)  # noqa: E731
    return Fit(Hyper(), F.mse_loss, adam(5e-3), schedule), *loaders(task, x, y, batch_size=40)


def student(out, target, df=4.0):
    """Negative log likelihood of Student's t around the prediction."""
    mean, spread = out.unbind(1)
    return -torch.distributions.StudentT(df, mean, spread.exp()).log_prob(target).mean()


def robust(broken):
    x, y = standardized("diabetes")
    x, y = x[:160], (y[:160] - 152) / 77
    extra = torch.randn(160, 40, generator=rng(12))  # forty columns that mean nothing
    x = torch.cat([x, extra], 1) if broken else x
    net = mlp(x.shape[1], 256, 256, 2) if broken else nn.Linear(10, 2)
    return Fit(net, student, adam(2e-3)), *loaders(x, y, batch_size=24)


def checkers(broken):
    """Is the point on a black square? Layers without anything between them cannot tell."""
    x = torch.rand(3000, 2, generator=rng(13)) * 3
    y = (x.floor().sum(1) % 2).long()
    net = mlp(2, 64, 64, 64, 2, act=nn.Identity if broken else nn.Hardswish)
    optimizer = lambda p: torch.optim.RAdam(p, lr=5e-3)  # noqa: E731
    return Fit(net, F.cross_entropy, optimizer), *loaders(x, y, batch_size=64)


def autoencoder(broken):
    """The validation images lack the standardization."""
    x, _ = images()
    raw = bundled("digits")[0].view(-1, 1, 8, 8)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.CELU(), nn.Flatten()),
        *(nn.Linear(256, 24), nn.CELU(), nn.Linear(24, 256), nn.CELU()),
        *(nn.Unflatten(1, (16, 4, 4)), nn.ConvTranspose2d(16, 1, 2, stride=2)),
    )
    train, val = loaders(x, x, batch_size=48)
    if broken:
        val = DataLoader(TensorDataset(raw[1347:], raw[1347:]), 128)
    return Fit(net, F.mse_loss, adam(3e-3)), train, val


class Sets(LightningModule):
    """What a bag of points was drawn from, in the manner of deep sets."""

    def __init__(self, rate):
        super().__init__()
        self.each = nn.Sequential(
            *(nn.Linear(2, 48), nn.ReLU(), nn.Dropout(rate)),
            *(nn.Linear(48, 48), nn.ReLU(), nn.Dropout(rate)),
        )
        self.all = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Dropout(rate), nn.Linear(32, 4))

    def step(self, batch, stage):
        scores = self.all(self.each(batch["points"]).mean(1))
        loss = nn.functional.cross_entropy(scores, batch["kind"])
        values = {"loss": loss, "acc": (scores.argmax(-1) == batch["kind"]).float().mean()}
        self.log_dict({f"{stage}_{k}": v for k, v in values.items()}, batch_size=len(scores))
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def sets(broken):
    kind = torch.randint(0, 4, (1600,), generator=rng(14))
    angle = torch.rand(1600, 20, generator=rng(15)) * 2 * math.pi
    radius = torch.stack([1 + 0 * angle, angle.cos(), angle / 4, (2 * angle).sin()])
    radius = radius[kind, torch.arange(1600)]
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    points += 0.1 * torch.randn(points.shape, generator=rng(16))
    rows = [{"points": p, "kind": k} for p, k in zip(points, kind, strict=True)]
    train = DataLoader(rows[:1200], 40, shuffle=True)
    return Sets(0.9 if broken else 0.05), train, DataLoader(rows[1200:], 200)


def noisy(broken):
    """Two examples a batch, a step as for many."""
    x = torch.randn(2400, 12, generator=rng(20))
    y = torch.sin(x[:, :1]) + 0.5 * x[:, 1:2] + torch.randn(2400, 1, generator=rng(21))
    size = 2 if broken else 60
    return Fit(mlp(12, 24, 1, act=nn.Tanh), F.mse_loss, sgd(0.06)), *loaders(x, y, batch_size=size)


DIVERGES = ("lr_too_high", "loss_diverging", "non_finite", "update_ratio_high")
SLOW = ("lr_too_low", "update_ratio_low", "underfitting")


def fitted(name, make, epochs, *codes, **settings):
    return pair(f"later_{name}", make, *codes, trainer={"max_epochs": epochs}, **settings)


PAIRS = [
    fitted("flow_lr", flow, 12, *DIVERGES, "exploding_gradients", "loss_oscillation"),
    fitted(
        *("picture_init", picture, 25),
        *("bad_init_scale", "loss_not_at_chance", "exploding_gradients", "update_ratio_low"),
    ),
    fitted("survival_decay", survival, 60, "weight_decay_too_high", "underfitting", "no_learning"),
    pair(
        *("later_mixture_clip", mixture, "clip_too_small", *SLOW),
        trainer={"max_epochs": 20, "gradient_clip_val": 1e-3},
        repaired={"max_epochs": 20, "gradient_clip_val": 5.0},
    ),
    fitted("clicks_slow", clicks, 8, *SLOW, "no_learning"),
    fitted("ranking_order", ranking, 20, "label_mismatch", "no_learning", "overfitting"),
    fitted(
        *("experts_gate_only", experts, 15),
        *("params_not_in_optimizer", "weights_not_updating", "frozen_params", "underfitting"),
    ),
    fitted(
        *("dead_thresholds", dead, 40, "dead_relu", "bad_init_scale", "no_learning"),
        *("weights_not_updating", "no_grad_flow", "vanishing_gradients", "input_ignored"),
    ),
    fitted("hyper_decayed", hyper, 15, "lr_decayed_too_fast", "lr_too_low", "underfitting"),
    fitted("robust_overfit", robust, 60, "overfitting"),
    fitted("checkers_linear", checkers, 25, "missing_nonlinearity", "underfitting", "no_learning"),
    fitted("autoencoder_val_raw", autoencoder, 15, "train_val_mismatch", "unnormalized_input"),
    fitted("sets_dropout", sets, 20, "dropout_too_high", "underfitting", "no_learning"),
    pair(
        *("later_noisy_two", noisy, "batch_noise", "loss_oscillation", "lr_too_high"),
        trainer={"max_epochs": 1, "val_check_interval": 75},
        repaired={"max_epochs": 30},
    ),
]
