"""Tables and likelihoods: vectors in, and the losses that statisticians write."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, NegativeBinomial, Normal

from tests.corpus.program import Program, bundled, loaders, standardized


def table(rows, columns, seed):
    """Features, a smooth signal of unit scale in them, and the generator for the noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=g)
    w = torch.randn(columns, 3, generator=g) / columns**0.5
    h = x @ w
    return x, torch.sin(h[:, 0] * 1.5) + h[:, 1] + 0.5 * h[:, 2].abs() - 0.4, g


def mlp(*widths, act=nn.ReLU):
    layers = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), act()]
    return nn.Sequential(*layers[:-1])


class Tabular(LightningModule):
    """What the programs of this file share: one loss for training and validation, and Adam."""

    lr = 5e-3

    def __init__(self, net=None):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Classifier(Tabular):
    """Cross-entropy and the accuracy of validation."""

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch[0], batch[1]
        self.log("val_acc", (self(x).argmax(-1) == y).float().mean())


class Logistic(Tabular):
    """Plain logistic regression (ordinary)."""

    lr = 3e-2

    def loss(self, batch):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x).squeeze(1), y.float())


class Squares(Tabular):
    """Mean squares (ordinary)."""

    def loss(self, batch):
        return F.mse_loss(self(batch[0]), batch[1][:, None])


class SummedSquares(Tabular):
    """Squares summed over the batch, with a step size chosen for the sum."""

    def loss(self, batch):
        x, y = batch
        return F.mse_loss(self(x).squeeze(-1), y, reduction="sum")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=5e-4, momentum=0.9)


class PoissonRates(Tabular):
    """Counts of a large mean: the loss without its constant term is far below zero."""

    def loss(self, batch):
        x, counts = batch
        return F.poisson_nll_loss(self(x).squeeze(-1), counts, log_input=True)


class Overdispersed(Tabular):
    """Negative binomial with one shared dispersion, which gets a tenth of the step size."""

    def __init__(self, net):
        super().__init__(net)
        self.log_total = nn.Parameter(torch.zeros(()))

    def loss(self, batch):
        x, counts = batch
        total = self.log_total.exp()
        logits = self(x).squeeze(-1) - self.log_total
        return -NegativeBinomial(total, logits=logits).log_prob(counts).mean()

    def validation_step(self, batch, batch_idx):
        x, counts = batch
        # E[count] = total * exp(logits)
        self.log("val_mae", F.l1_loss(self(x).squeeze(-1).exp(), counts))

    def configure_optimizers(self):
        groups = [{"params": self.net.parameters()}, {"params": [self.log_total], "lr": 2e-3}]
        return torch.optim.Adam(groups, lr=2e-2)


class BetaNLL(Tabular):
    """Mean and variance; the likelihood of each row weighted with its own detached variance."""

    def __init__(self, net):
        super().__init__(net)
        nn.init.zeros_(net[-1].weight)

    def loss(self, batch):
        x, y = batch
        mean, log_var = self(x).unbind(-1)
        var = log_var.clamp(-8, 8).exp()
        nll = 0.5 * (log_var + (y - mean) ** 2 / var)
        return (nll * var.detach() ** 0.5).mean()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x)[:, 0], y))


class Pinball(Tabular):
    """Three quantiles at once; the l1 error of the middle one is only watched."""

    quantiles = (0.1, 0.5, 0.9)

    def loss(self, batch):
        x, y = batch
        out = self(x)
        self.log("median_l1", F.l1_loss(out[:, 1], y))
        q = out.new_tensor(self.quantiles)
        diff = y[:, None] - out
        return torch.maximum(q * diff, (q - 1) * diff).sum(1).mean()


class HousePrices(Tabular):
    """Prices in dollars, squared: a loss of 1e10, but the net itself works in units of 1."""

    def __init__(self, net, prices):
        super().__init__(net)
        self.register_buffer("center", prices.mean())
        self.register_buffer("scale", prices.std())

    def forward(self, x):
        return self.net(x).squeeze(-1) * self.scale + self.center

    def loss(self, batch):
        return F.mse_loss(self(batch[0]), batch[1])


class RareClicks(Logistic):
    """Three rows in a hundred are positive; the last bias starts at their log odds."""

    lr = 1e-2

    def __init__(self, net, rate):
        super().__init__(net)
        nn.init.zeros_(net[-1].weight)
        nn.init.constant_(net[-1].bias, float(torch.logit(rate)))


class Smoothed(Classifier):
    """So much label smoothing that the loss cannot fall much; the accuracy is perfect."""

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.4)


class Focal(Tabular):
    """The focal loss of a 1-in-8 class, normalised by the positives, as in detectors."""

    def loss(self, batch):
        x, y = batch
        logits, y = self(x).squeeze(1), y.float()
        ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        p_t = torch.exp(-ce)
        alpha = torch.where(y == 1, 0.75, 0.25)
        return (alpha * (1 - p_t) ** 2 * ce).sum() / y.sum().clamp_min(1)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        hit = (self(x).squeeze(1) > 0).float()
        self.log("val_f1", 2 * (hit * y).sum() / (hit.sum() + y.sum()))


class Mixup(Classifier):
    """Rows and one-hot labels mixed in training, plain ones in validation."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        soft = F.one_hot(y, 10).float()
        lam = torch.distributions.Beta(0.8, 0.8).sample((len(x), 1))
        perm = torch.randperm(len(x))
        logits = self(lam * x + (1 - lam) * x[perm])
        return F.cross_entropy(logits, lam * soft + (1 - lam) * soft[perm])


class Evidence(Classifier):
    """Dirichlet evidence: expected squared error plus a KL term that is annealed in."""

    def loss(self, batch):
        x, y = batch
        alpha = F.softplus(self(x)) + 1
        target, total = F.one_hot(y, alpha.shape[1]).float(), alpha.sum(1, keepdim=True)
        p = alpha / total
        fit = ((target - p) ** 2 + p * (1 - p) / (total + 1)).sum(1)
        wrong = target + (1 - target) * alpha
        flat = torch.distributions.Dirichlet(torch.ones_like(wrong))
        kl = torch.distributions.kl_divergence(torch.distributions.Dirichlet(wrong), flat)
        return (fit + min(1.0, self.global_step / 400) * 0.1 * kl).mean()


class Coral(Tabular):
    """Ordered classes: one score without bias and ordered cut points."""

    def __init__(self, net, cuts):
        super().__init__(net)
        self.cuts = nn.Parameter(torch.linspace(-2, 2, cuts))

    def loss(self, batch):
        x, grade = batch
        logits = self(x) - self.cuts
        above = (grade[:, None] > torch.arange(len(self.cuts))).float()
        return F.binary_cross_entropy_with_logits(logits, above, reduction="none").sum(1).mean()

    def validation_step(self, batch, batch_idx):
        x, grade = batch
        said = (self(x) > self.cuts).sum(1)
        self.log("val_mae", (said - grade).abs().float().mean())


class Cox(Tabular):
    """The partial likelihood of survival times: only the order of the scores counts."""

    def loss(self, batch):
        x, time, event = batch
        score = self(x).squeeze(-1)
        order = time.argsort(descending=True)
        score, event = score[order], event[order]
        risk = torch.logcumsumexp(score, 0)
        return -((score - risk) * event).sum() / event.sum()

    def validation_step(self, batch, batch_idx):
        x, time, _ = batch
        score = self(x).squeeze(-1)
        later = time[:, None] > time
        discordant = (score[:, None] > score)[later]
        self.log("val_discordance", discordant.float().mean())


class MixtureDensity(Tabular):
    """A curve with two branches: a mixture of five narrow normals, its loss below zero."""

    def loss(self, batch):
        x, y = batch
        logits, mean, log_scale = self(x).chunk(3, -1)
        parts = Normal(mean, log_scale.clamp(-5, 3).exp())
        return -MixtureSameFamily(Categorical(logits=logits), parts).log_prob(y.squeeze(-1)).mean()


def wine():
    return Classifier(mlp(13, 32, 3)), *loaders(*standardized("wine"), batch_size=16)


def digits_batchnorm():
    x, y = bundled("digits")
    net = nn.Sequential(nn.BatchNorm1d(64), mlp(64, 64, 10, act=nn.GELU))
    return Classifier(net), *loaders(x, y)


def digits(kind):
    return lambda: (kind(mlp(64, 96, 10)), *loaders(*standardized("digits")))


def logistic():
    return Logistic(nn.Linear(30, 1)), *loaders(*standardized("breast_cancer"))


def smooth_regression():
    x, y, _ = table(1200, 8, 31)
    return Squares(mlp(8, 64, 64, 1, act=nn.Tanh)), *loaders(x, y)


def summed_squares():
    x, y, _ = table(1200, 8, 32)
    return SummedSquares(mlp(8, 64, 1)), *loaders(x, y)


def poisson():
    x, signal, g = table(1500, 6, 33)
    counts = torch.poisson(torch.exp(3 + 0.5 * signal), generator=g)
    return PoissonRates(mlp(6, 64, 1)), *loaders(x, counts)


def overdispersed():
    x, signal, g = table(1500, 6, 34)
    with torch.random.fork_rng():
        torch.manual_seed(34)
        spread = torch.distributions.Gamma(20.0, 20.0).sample(signal.shape)
    rate = torch.exp(3 + 0.6 * signal) * spread
    return Overdispersed(mlp(6, 32, 1)), *loaders(x, torch.poisson(rate, generator=g))


def beta_nll():
    x, signal, g = table(1500, 6, 35)
    noise = torch.randn(len(x), generator=g) * (0.1 + 0.3 * torch.sigmoid(3 * x[:, 0]))
    return BetaNLL(mlp(6, 64, 64, 2)), *loaders(x, signal + noise)


def pinball():
    x, signal, g = table(1500, 6, 36)
    return Pinball(mlp(6, 64, 3)), *loaders(x, signal + 0.1 * torch.randn(1500, generator=g))


def house_prices():
    x, signal, g = table(1200, 8, 37)
    prices = 350_000 + 120_000 * signal + 10_000 * torch.randn(1200, generator=g)
    return HousePrices(mlp(8, 64, 1), prices[:900]), *loaders(x, prices)


def rare_clicks():
    x, signal, _ = table(4000, 8, 38)
    y = (signal > signal.quantile(0.97)).long()
    return RareClicks(mlp(8, 32, 1), y[:3000].float().mean()), *loaders(x, y, batch_size=128)


def focal():
    x, signal, _ = table(3000, 8, 39)
    y = (signal > signal.quantile(0.875)).long()
    return Focal(mlp(8, 64, 1)), *loaders(x, y, batch_size=64)


def coral():
    x, signal, _ = table(1500, 8, 40)
    grade = torch.bucketize(signal, torch.tensor([-1.0, -0.4, 0.2, 0.8, 1.4]))
    net = nn.Sequential(mlp(8, 64), nn.ReLU(), nn.Linear(64, 1, bias=False))
    return Coral(net, 5), *loaders(x, grade)


def cox():
    x, signal, g = table(1600, 8, 41)
    time = -(torch.log(torch.rand(1600, generator=g)) ** 1) * torch.exp(-3 * signal)
    censored = torch.rand(1600, generator=g) * time.quantile(0.9)
    event = (time <= censored).float()
    return Cox(mlp(8, 32, 1)), *loaders(x, time.minimum(censored), event, batch_size=128)


def mixture_density():
    g = torch.Generator().manual_seed(42)
    x = torch.rand(2000, 1, generator=g) * 4 - 2
    side = torch.where(torch.rand(2000, 1, generator=g) < 0.5, -1.0, 1.0)
    y = side * (0.5 + torch.sigmoid(2 * x)) + 0.03 * torch.randn(2000, 1, generator=g)
    return MixtureDensity(mlp(1, 64, 15, act=nn.Tanh)), *loaders(x, y, batch_size=64)


PROGRAMS = [
    Program("wine_mlp", wine, metric="val_acc"),
    Program("digits_batchnorm_first", digits_batchnorm, metric="val_acc"),
    Program("breast_cancer_logistic", logistic),
    Program("smooth_regression", smooth_regression),
    Program("summed_squares", summed_squares),
    Program("poisson_rates", poisson),
    Program("negative_binomial", overdispersed, metric="val_mae"),
    Program("beta_nll", beta_nll, metric="val_mse"),
    Program("pinball_quantiles", pinball),
    Program("house_prices_in_dollars", house_prices),
    Program("rare_clicks_prior_bias", rare_clicks),
    Program("smoothed_heavily", digits(Smoothed), metric="val_acc"),
    Program("focal_rare_class", focal, metric="val_f1"),
    Program("mixup_digits", digits(Mixup), metric="val_acc"),
    Program("dirichlet_evidence", digits(Evidence), metric="val_acc"),
    Program("coral_grades", coral, metric="val_mae"),
    Program("cox_survival", cox, metric="val_discordance"),
    Program("mixture_density", mixture_density),
]
