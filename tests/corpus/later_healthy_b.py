"""Healthy whole fits that look odd, a later blind set, second half."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.corpus.later_healthy_a import Base, Simple, healthy, mlp, rings, rng
from tests.corpus.program import images, loaders, standardized


def adam(lr, **options):
    return lambda parameters: torch.optim.Adam(parameters, lr, **options)


def sgd(lr, **options):
    return lambda parameters: torch.optim.SGD(parameters, lr, **options)


def scheduled(make, schedule):
    """An optimizer whose rate changes at every step."""

    def configure(parameters):
        optimizer = make(parameters)
        return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    return configure


def digits(net, configure, loss=F.cross_entropy, **options):
    return Simple(net, loss, configure), *loaders(*images(), **options)


def pictures():
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10)),
    )


def flat(*sizes, **options):
    return nn.Sequential(nn.Flatten(), *mlp(*sizes, **options))


def wine(net, configure, loss=F.cross_entropy, **options):
    return Simple(net, loss, configure), *loaders(*standardized("wine"), **options)


def sugar():
    """The progression of diabetes as it was measured: the loss begins at thirty thousand."""
    x, y = standardized("diabetes")
    module = Simple(mlp(10, 32, 1), F.mse_loss, adam(3e-2, weight_decay=1e-2))
    return module, *loaders(x, y[:, None], batch_size=32)


def flipped():
    """A quarter of the labels are wrong and there is no way to know which."""
    x = torch.randn(3200, 10, generator=rng(70))
    y = (x[:, 0] + x[:, 1] > 0) ^ (torch.rand(3200, generator=rng(71)) < 0.25)
    net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2))
    return Simple(net, F.cross_entropy, adam(3e-3)), *loaders(x, y.long(), batch_size=64)


def bigrams(configure, size=100):
    """Next states of a Markov chain: the entropy of the chain is as good as it gets."""
    table = torch.randn(12, 12, generator=rng(72)).softmax(1)
    state = torch.randint(0, 12, (8000,), generator=rng(73))
    after = torch.multinomial(table[state], 1, generator=rng(74)).squeeze(1)
    net = nn.Embedding(12, 12)
    nn.init.zeros_(net.weight)
    return Simple(net, F.cross_entropy, configure), *loaders(state, after, batch_size=size)


def pinball(out, target):
    levels = torch.tensor([0.05, 0.5, 0.95])
    error = target - out
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def bands():
    x = torch.rand(2400, 1, generator=rng(75)) * 4 - 2
    y = x.sin() + (0.1 + 0.3 * x.abs()) * torch.randn(2400, 1, generator=rng(76))
    return Simple(mlp(1, 32, 32, 3, act=nn.GELU), pinball, adam(3e-3)), *loaders(x, y)


def inflated(out, count):
    """Counts of which many are zero for another reason."""
    gate, rate = out.unbind(1)
    poisson = count * rate - rate.exp() - torch.lgamma(count + 1)
    zero = torch.logaddexp(F.logsigmoid(gate), F.logsigmoid(-gate) - rate.exp())
    return -torch.where(count == 0, zero, F.logsigmoid(-gate) + poisson).mean()


def counts():
    x = torch.randn(3000, 4, generator=rng(77))
    count = torch.poisson((0.8 * x[:, 0] + 0.5).clamp(max=3).exp(), generator=rng(78))
    count *= torch.rand(3000, generator=rng(79)) > torch.sigmoid(x[:, 1])
    return Simple(mlp(4, 16, 2), inflated, adam(4e-3)), *loaders(x, count, batch_size=60)


def exact():
    """A density that ends far below zero, as units are small."""
    x = torch.randn(2400, 3, generator=rng(80))
    y = 0.02 * (x[:, 0] * x[:, 1]) + 0.005 * torch.randn(2400, generator=rng(81))
    loss = lambda out, y: F.gaussian_nll_loss(out[:, 0], y, out[:, 1].exp())  # noqa: E731
    return Simple(mlp(3, 32, 32, 2, act=nn.SiLU), loss, fade), *loaders(x, y, batch_size=50)


class Mixup(Base):
    """Trained on blends only, so that training looks much worse than validation."""

    def __init__(self):
        super().__init__()
        self.net = pictures()

    def training_step(self, batch, batch_idx):
        x, y = batch
        share = torch.distributions.Beta(1.0, 1.0).sample((len(x), 1))
        other = torch.randperm(len(x))
        target = F.one_hot(y, 10).float()
        target = share * target + (1 - share) * target[other]
        share = share[..., None, None]
        return F.cross_entropy(self.net(share * x + (1 - share) * x[other]), target)

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


def train_on(net, criterion, x, y, steps=250, lr=1e-2):
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
    return net


class LowRank(nn.Module):
    """A frozen layer with a correction that starts at zero."""

    def __init__(self, frozen, rank=4):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, frozen.in_features) / 8)
        self.b = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x):
        return self.frozen(x) + x @ self.a.T @ self.b.T


def adapted():
    """Knows the digits; is now to read them upside down."""
    x, y = images()
    net = train_on(flat(64, 48, 10), F.cross_entropy, x[:1300], y[:1300])
    net = nn.Sequential(net[0], LowRank(net[1]), net[2], LowRank(net[3]))
    return Simple(net, F.cross_entropy, adam(5e-3)), *loaders(x.flip(2), y)


def continued():
    """Has converged before; goes on at a small rate and hardly moves."""
    x = torch.randn(2000, 6, generator=rng(82))
    y = x[:, :1] - 2 * x[:, 1:2] + 0.3 * torch.randn(2000, 1, generator=rng(83))
    net = train_on(nn.Linear(6, 1), F.mse_loss, x[:1500], y[:1500], steps=400)
    return Simple(net, F.mse_loss, adam(1e-4)), *loaders(x, y)


class Averaged(Base):
    """Validated with the moving average of its weights."""

    def __init__(self):
        super().__init__()
        self.net = flat(64, 64, 10)
        self.slow = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self.slow.requires_grad_(False)

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, *_):
        self.slow.update_parameters(self.net)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.slow(batch[0]), batch[1]))


class Sharpness(LightningModule):
    """Sharpness-aware: climbs first, then descends with the gradient found there."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.net = mlp(2, 32, 32, 2)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        weights = list(self.net.parameters())
        grads = torch.autograd.grad(F.cross_entropy(self.net(batch[0]), batch[1]), weights)
        scale = 0.05 / (torch.stack([g.norm() for g in grads]).norm() + 1e-12)
        with torch.no_grad():
            torch._foreach_add_(weights, grads, alpha=float(scale))
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        with torch.no_grad():
            torch._foreach_sub_(weights, grads, alpha=float(scale))
        optimizer.step()
        return {"loss": loss.detach()}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Critic(LightningModule):
    """A Wasserstein game with gradient penalty; the distance of moments tells."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.maker, self.critic = mlp(4, 48, 2), mlp(2, 48, 48, 1, act=nn.SiLU)

    def training_step(self, batch, batch_idx):
        real, (o_maker, o_critic) = batch[0], self.optimizers()
        fake = self.maker(torch.randn(len(real), 4))
        between = torch.lerp(real, fake.detach(), torch.rand(len(real), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        loss = self.critic(fake.detach()).mean() - self.critic(real).mean()
        loss = loss + 5 * (slope.norm(dim=1) - 1).square().mean()
        o_critic.zero_grad()
        self.manual_backward(loss)
        o_critic.step()
        if batch_idx % 2 == 0:
            cheat = -self.critic(self.maker(torch.randn(len(real), 4))).mean()
            o_maker.zero_grad()
            self.manual_backward(cheat)
            o_maker.step()
            self.log("maker_loss", cheat)
        self.log("critic_loss", loss)

    def validation_step(self, batch, batch_idx):
        fake, real = self.maker(torch.randn(len(batch[0]), 4)), batch[0]
        inner = torch.cdist(fake, fake).mean() + torch.cdist(real, real).mean()
        self.log("val_energy", 2 * torch.cdist(fake, real).mean() - inner)

    def configure_optimizers(self):
        options = {"lr": 1e-3, "betas": (0.5, 0.9)}
        return [torch.optim.Adam(net.parameters(), **options) for net in (self.maker, self.critic)]


def game():
    x = torch.randn(2000, 2, generator=rng(84)) @ torch.tensor([[0.6, 0.3], [0.0, 0.3]])
    return Critic(), *loaders(x + torch.tensor([1.0, -0.5]), batch_size=50, val_batch_size=500)


class Adding(nn.Module):
    """Sum of two marked numbers: nothing happens for long, then it is found."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1]).squeeze(1)


def adding():
    mark = torch.rand(3000, 12, generator=rng(85)).argsort(1) < 2
    x = torch.stack([torch.rand(3000, 12, generator=rng(86)), mark.float()], 2)
    y = x.prod(2).sum(1)
    return Simple(Adding(), F.mse_loss, adam(5e-3)), *loaders(x, y, batch_size=50)


class Uncertain(Base):
    """Two tasks whose weights are learned; the weighted loss passes zero."""

    def __init__(self):
        super().__init__()
        self.net = mlp(5, 32, 2, act=nn.SiLU)
        self.log_var = nn.Parameter(torch.zeros(2))

    def loss(self, batch):
        errors = (self.net(batch[0]) - batch[1]).square().mean(0)
        return (errors * torch.exp(-self.log_var) + self.log_var).sum()


def uncertain():
    x = torch.randn(2400, 5, generator=rng(87))
    y = torch.stack([0.1 * x[:, 0] * x[:, 1], x[:, 2].sin() + 0.2 * x[:, 3]], 1)
    return Uncertain(), *loaders(x, y, batch_size=40)


def dice(scores, mask):
    p = torch.sigmoid(scores)
    both, either = (p * mask).sum((1, 2, 3)), (p + mask).sum((1, 2, 3))
    return (1 - (2 * both + 1) / (either + 1)).mean()


def blobs():
    axis = torch.linspace(-1, 1, 16)
    center = torch.rand(800, 2, 1, 1, generator=rng(88)) * 1.2 - 0.6
    near = (axis[:, None] - center[:, 0]) ** 2 + (axis - center[:, 1]) ** 2
    mask = (near < 0.12).float()[:, None]
    x = mask + 0.7 * torch.randn(mask.shape, generator=rng(89))
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2), nn.GroupNorm(2, 8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 1)),
    )
    return Simple(net, dice, adam(5e-3)), *loaders(x, mask, batch_size=20)


def ridge():
    """More columns than rows, so that strong decay is right."""
    x = torch.randn(160, 150, generator=rng(92))
    y = x[:, :40] @ torch.randn(40, 1, generator=rng(93)) / 6
    y += 0.5 * torch.randn(160, 1, generator=rng(94))
    return Simple(nn.Linear(150, 1), F.mse_loss, sgd(1e-2, weight_decay=1.0)), *loaders(x, y)


smooth = nn.CrossEntropyLoss(label_smoothing=0.2)
once = scheduled(sgd(0.02, momentum=0.9), lambda o: lr_scheduler.OneCycleLR(o, 0.2, 420))
again = scheduled(adam(3e-3), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 126, 2))
fade = scheduled(adam(2e-3), lambda o: lr_scheduler.CosineAnnealingLR(o, 720))


def inverse(step):
    return min((step + 1) / 80, math.sqrt(80 / (step + 1)))


root = scheduled(adam(4e-3), lambda o: lr_scheduler.LambdaLR(o, inverse))


def newton(parameters):
    return torch.optim.LBFGS(parameters, lr=0.3, max_iter=2)


def calm(out, y):
    return F.cross_entropy(out, y) + 0.05 * out.square().mean()


hinge = nn.MultiMarginLoss()
PROGRAMS = [
    healthy("rprop", lambda: bigrams(torch.optim.Rprop, 6000), 40),
    healthy(
        *("adadelta", lambda: digits(flat(64, 48, 10), lambda p: torch.optim.Adadelta(p, 1.0))),
        epochs=10,
    ),
    healthy("newton", lambda: wine(nn.Linear(13, 3), newton, calm, batch_size=133), 30),
    healthy(
        *("hinge", lambda: wine(nn.Linear(13, 3), sgd(0.05, weight_decay=0.01), hinge)),
        epochs=40,
    ),
    healthy("sugar", sugar, 25),
    healthy("single", lambda: wine(mlp(13, 12, 3), sgd(0.005), batch_size=1), 8),
    healthy("flipped", flipped, 15),
    healthy("bigrams", lambda: bigrams(sgd(2.0)), 12),
    healthy("bands", bands, 15),
    healthy("counts", counts, 15),
    healthy("exact", exact, 20),
    healthy("mixup", lambda: (Mixup(), *loaders(*images(), batch_size=64)), 25, "val_loss"),
    healthy("adapted", adapted, 12),
    healthy("continued", continued, 8),
    healthy("averaged", lambda: (Averaged(), *loaders(*images())), 10),
    healthy("sharpness", lambda: (Sharpness(), *loaders(*rings())), 25),
    healthy("game", game, 30, "val_energy"),
    healthy("adding", adding, 14),
    healthy("uncertain", uncertain, 25),
    healthy("blobs", blobs, 14),
    healthy("ridge", ridge, 60),
    healthy("one_cycle", lambda: digits(pictures(), once), 10),
    healthy("restarts", lambda: digits(pictures(), again), 9),
    healthy("inverse_root", lambda: digits(flat(64, 64, 10, act=nn.GELU), root), 12),
    healthy("smoothed", lambda: digits(pictures(), adam(3e-3), smooth), 10),
    healthy("thirty_steps", lambda: digits(pictures(), adam(1e-2)), 1, max_steps=30),
    healthy("one_epoch", lambda: (*bigrams(sgd(2.0))[:2], None), 1, ""),
    healthy("quarters", lambda: digits(pictures(), adam(3e-3)), 5, val_check_interval=0.25),
    healthy(
        *("gathered", lambda: digits(flat(64, 64, 10), adam(2e-3), batch_size=8), 8),
        accumulate_grad_batches=4,
    ),
    healthy(
        *("clipped_adam", lambda: digits(flat(64, 64, 10), adam(2e-3)), 12),
        gradient_clip_val=0.05,
    ),
]
