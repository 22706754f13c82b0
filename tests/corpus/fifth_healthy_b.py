"""Healthy whole fits, a fifth blind set, second third: regressions and odd data."""

import copy
import math

import sklearn.datasets
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn, optim
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from tests.corpus.program import Program, images, loaders, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


class Forecaster(LightningModule):
    """The next value of a noisy seasonal series from the last 24 ones."""

    def __init__(self, hidden_size=24):
        super().__init__()
        self.save_hyperparameters()
        self.gru = nn.GRU(1, hidden_size, batch_first=True)
        self.out = nn.Linear(hidden_size, 1)

    def forward(self, window):
        _, h = self.gru(window)
        return self.out(h[-1])

    def _step(self, batch, stage):
        window, target = batch
        loss = F.mse_loss(self(window), target)
        self.log(f"{stage}_loss", loss, prog_bar=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val")

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=3e-3)


def seasonal_gru():
    t = torch.arange(1600.0)
    series = torch.sin(t * 2 * math.pi / 24) + 0.5 * torch.sin(t * 2 * math.pi / 7)
    series = series + 0.15 * torch.randn(1600, generator=rng(501))
    windows = series.unfold(0, 25, 1)[:, :, None]
    return Forecaster(), *loaders(windows[:, :-1], windows[:, -1])


class AutoEncoder(LightningModule):
    """Stopped after a few epochs, when there is still something to gain."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64))

    def training_step(self, batch, batch_idx):
        x, _ = batch
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def validation_step(self, batch, batch_idx):
        x, _ = batch
        self.log("val_loss", F.mse_loss(self.decoder(self.encoder(x)), x))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=1e-3)


def unfinished_autoencoder():
    x, y = images()
    return AutoEncoder(), *loaders(x.flatten(1), y)


class Quantiles(LightningModule):
    """The lower, the middle and the upper decile by the pinball loss."""

    def __init__(self):
        super().__init__()
        self.register_buffer("tau", torch.tensor([0.1, 0.5, 0.9]))
        self.body = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 3))

    def pinball(self, batch):
        x, y = batch
        error = y[:, None] - self.body(x)
        return torch.maximum(self.tau * error, (self.tau - 1) * error).sum(1).mean()

    def training_step(self, batch, batch_idx):
        return self.pinball(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.pinball(batch))

    def configure_optimizers(self):
        return optim.RMSprop(self.parameters(), lr=1e-3)


def friedman_quantiles():
    x, y = sklearn.datasets.make_friedman1(2000, noise=1.0, random_state=6)
    x, y = torch.tensor(x).float(), torch.tensor(y).float()
    return Quantiles(), *loaders((x - 0.5) * 3.46, (y - y.mean()) / y.std(), batch_size=50)


class Tags(LightningModule):
    """Twelve labels, some of them on one row in thirty; the rare ones weigh more."""

    def __init__(self, frequency):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.1))
        self.tagger = nn.Linear(64, 12)
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=((1 - frequency) / frequency).sqrt())

    def training_step(self, batch, batch_idx):
        features, tags = batch
        return self.criterion(self.tagger(self.trunk(features)), tags)

    def validation_step(self, batch, batch_idx):
        features, tags = batch
        self.log("val_loss", self.criterion(self.tagger(self.trunk(features)), tags))

    def configure_optimizers(self):
        return optim.AdamW(self.parameters(), lr=4e-3, weight_decay=0.01)


def rare_tags():
    g = rng(504)
    x = torch.randn(3000, 20, generator=g)
    score = x @ torch.randn(20, 12, generator=g) / 20**0.5 + 0.3 * torch.randn(
        3000, 12, generator=g
    )
    rate = torch.linspace(0.03, 0.25, 12)
    tags = (
        score > torch.stack([c.quantile(1 - r) for c, r in zip(score.T, rate, strict=True)])
    ) * 1.0
    return Tags(rate), *loaders(x, tags, batch_size=16)


class HousePrices(LightningModule):
    """Prices in dollars; the module itself knows their mean and deviation."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.regressor = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 1))
        self.huber = nn.HuberLoss(delta=1.0)

    def forward(self, x):
        return self.regressor(x).squeeze(-1) * self.std + self.mean

    def training_step(self, batch, batch_idx):
        x, price = batch
        return self.huber(self.regressor(x).squeeze(-1), (price - self.mean) / self.std)

    def validation_step(self, batch, batch_idx):
        x, price = batch
        loss = self.huber((self(x) - self.mean) / self.std, (price - self.mean) / self.std)
        self.log_dict({"val_loss": loss, "val_mae": (self(x) - price).abs().mean()})

    def configure_optimizers(self):
        adam = optim.Adam(self.parameters(), lr=2e-3)
        return [adam], [optim.lr_scheduler.ExponentialLR(adam, 0.9)]


def house_prices():
    g = rng(505)
    x = torch.randn(2000, 8, generator=g)
    value = (
        x @ torch.randn(8, generator=g) + x[:, 0] * x[:, 1] + 0.5 * torch.randn(2000, generator=g)
    )
    far = torch.rand(2000, generator=g) < 0.03
    price = 320_000 + 45_000 * (value + far * 8)
    return HousePrices(price[:1500].mean(), price[:1500].std()), *loaders(x, price)


class Task(LightningModule):
    """Everything follows from ``compute_loss``."""

    learning_rate = 1e-3

    def training_step(self, batch, batch_idx):
        return self.compute_loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.compute_loss(batch))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=self.learning_rate)


class Needle(LightningModule):
    """Attention pooling over bags of any size; one bag in six holds a positive instance."""

    def __init__(self):
        super().__init__()
        self.instance = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.attention = nn.Linear(32, 1)
        self.classify = nn.Linear(32, 1)

    def forward(self, bag, mask):
        h = self.instance(bag)
        scores = self.attention(h).squeeze(-1).masked_fill(~mask, float("-inf"))
        return self.classify((scores.softmax(1)[..., None] * h).sum(1)).squeeze(-1)

    def focal(self, batch):
        bag, mask, label = batch
        ce = F.binary_cross_entropy_with_logits(self(bag, mask), label, reduction="none")
        alpha = 0.6 * label + 0.4 * (1 - label)
        return (alpha * (1 - torch.exp(-ce)) ** 2 * ce).mean()

    def training_step(self, batch, batch_idx):
        return self.focal(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.focal(batch), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return optim.AdamW(self.parameters(), lr=2e-3)


def pad_bags(items):
    bags, labels = zip(*items, strict=True)
    sizes = torch.tensor([len(b) for b in bags])
    mask = torch.arange(int(sizes.max())) < sizes[:, None]
    return pad_sequence(bags, batch_first=True), mask, torch.tensor(labels)


def needles():
    g, rows = rng(521), []
    for i in range(2400):
        bag = torch.randn(int(torch.randint(3, 10, (), generator=g)), 6, generator=g)
        if i % 6 == 0:
            bag[0, :3] += 2.5
        rows.append((bag[torch.randperm(len(bag), generator=g)], float(i % 6 == 0)))
    train = DataLoader(rows[:1800], 32, shuffle=True, collate_fn=pad_bags)
    return Needle(), train, DataLoader(rows[1800:], 150, collate_fn=pad_bags)


class TinyUNet(LightningModule):
    """Blobs that fill about four hundredths of the picture; cross-entropy plus soft Dice."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.mid = nn.Sequential(
            *(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            nn.Upsample(scale_factor=2),
        )
        self.last = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, image):
        skip = self.down(image)
        return self.last(torch.cat([skip, self.mid(skip)], 1))

    def losses(self, batch):
        logits = self(batch["image"])
        p, mask = logits.sigmoid(), batch["mask"]
        dice = 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        return {"bce": F.binary_cross_entropy_with_logits(logits, mask), "dice": dice}, logits > 0

    def training_step(self, batch, batch_idx):
        losses, _ = self.losses(batch)
        self.log_dict({f"train_{k}": v.detach() for k, v in losses.items()}, batch_size=16)
        return {"loss": sum(losses.values()), **{k: v.detach() for k, v in losses.items()}}

    def validation_step(self, batch, batch_idx):
        losses, found = self.losses(batch)
        true = batch["mask"] > 0
        iou = (found & true).sum() / (found | true).sum()
        scores = {"val_loss": sum(losses.values()), "val_iou": iou}
        self.log_dict(scores, batch_size=len(true))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=3e-3)


def blobs():
    g = rng(522)
    grid = torch.arange(16.0)
    centre = torch.rand(600, 2, 1, 1, generator=g) * 10 + 3
    far = (grid[:, None] - centre[:, 0]) ** 2 + (grid - centre[:, 1]) ** 2
    mask = (far < 3.5)[:, None].float()
    image = 1.5 * mask + 0.5 * torch.randn(600, 1, 16, 16, generator=g)
    rows = [{"image": i, "mask": m} for i, m in zip(image, mask, strict=True)]
    return TinyUNet(), DataLoader(rows[:450], 16, True), DataLoader(rows[450:], 75)


class MeanTeacher(LightningModule):
    """The teacher is a moving average of the student and is what gets validated."""

    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(128, 10)),
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y, labelled = batch
        p = self.student(x + 0.2 * torch.randn_like(x))
        with torch.no_grad():
            q = self.teacher(x + 0.2 * torch.randn_like(x))
        known = F.cross_entropy(p, y, reduction="none")[labelled].sum() / len(y)
        ramp = min(1.0, self.global_step / 150)
        return known + ramp * F.mse_loss(p.softmax(1), q.softmax(1))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        keep = min(0.98, 1 - 1 / (self.global_step + 1))
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for slow, fast in pairs:
            slow.data.lerp_(fast.data, 1 - keep)

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        logits = self.teacher(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return optim.Adam(self.student.parameters(), lr=2e-3)


def mean_teacher():
    x, y = images()
    return MeanTeacher(), *loaders(x, y, torch.rand(len(y), generator=rng(523)) < 0.4)


class Margin(Task):
    """A weight-normalised net with a multi-class hinge loss on 133 wines."""

    learning_rate = 3e-3

    def __init__(self):
        super().__init__()
        self.hidden = parametrizations.weight_norm(nn.Linear(13, 16))
        self.out = parametrizations.weight_norm(nn.Linear(16, 3))

    def compute_loss(self, batch):
        x, y = batch
        return F.multi_margin_loss(
            self.out(F.dropout(self.hidden(x).relu(), 0.2, self.training)), y
        )


class Gaussian(Task):
    """Mostly noise, which also varies: the best mean explains a fifteenth of the variance."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(5, 32), nn.Tanh())
        self.mean, self.log_var = nn.Linear(32, 1), nn.Linear(32, 1)

    def compute_loss(self, batch):
        x, y = batch
        h = self.shared(x)
        return F.gaussian_nll_loss(self.mean(h), y, self.log_var(h).exp())


def mostly_noise():
    g = rng(524)
    x = torch.randn(4000, 5, generator=g)
    noise = torch.randn(4000, 1, generator=g) * (0.9 * x[:, 1:2]).exp() / 1.5
    return Gaussian(), *loaders(x, 0.4 * x[:, :1] + noise, batch_size=64)


class DeepSet(Task):
    """How many events a set of weak and strong sources yields, by the Poisson likelihood."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
        self.criterion = nn.PoissonNLLLoss()

    def compute_loss(self, batch):
        sets, counts = batch
        return self.criterion(self.rho(self.phi(sets).mean(1)).squeeze(-1), counts)


def poisson_sets():
    g = rng(525)
    sets = torch.randn(2000, 8, 3, generator=g)
    rate = (sets[..., 0].relu() * (sets[..., 1] > 0)).sum(1)
    return DeepSet(), *loaders(sets, torch.poisson(1 + 2 * rate, generator=g))


class Bandit(LightningModule):
    """REINFORCE with a learnt baseline and an entropy bonus; five arms, a context of four."""

    def __init__(self):
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 5))
        self.value = nn.Linear(4, 1)
        self.register_buffer("arms", torch.randn(4, 5, generator=rng(532)))

    def training_step(self, batch, batch_idx):
        (context,) = batch
        dist = torch.distributions.Categorical(logits=self.policy(context))
        action = dist.sample()
        pay = (context @ self.arms).gather(1, action[:, None]).squeeze(1)
        pay = pay + 0.3 * torch.randn_like(pay)
        baseline = self.value(context).squeeze(1)
        actor = -(dist.log_prob(action) * (pay - baseline.detach())).mean()
        self.log("reward", pay.mean())
        return actor + 0.5 * F.mse_loss(baseline, pay) - 0.01 * dist.entropy().mean()

    def validation_step(self, batch, batch_idx):
        mean = batch[0] @ self.arms
        regret = mean.amax(1) - (mean * self.policy(batch[0]).softmax(1)).sum(1)
        self.log_dict({"val_loss": regret.mean(), "val_regret": regret.mean()})

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=3e-3)


def contexts():
    return loaders(torch.randn(4000, 4, generator=rng(537)), batch_size=50)


def healthy(name, make, epochs, metric="val_loss", **trainer):
    return Program(f"fifth_{name}", make, trainer={"max_epochs": epochs} | trainer, metric=metric)


PROGRAMS = [
    healthy("seasonal_gru", seasonal_gru, 12),
    healthy("unfinished_autoencoder", unfinished_autoencoder, 6),
    healthy("friedman_quantiles_rmsprop", friedman_quantiles, 25),
    healthy("rare_tags_accumulated", rare_tags, 12, accumulate_grad_batches=4),
    healthy("house_prices_huber", house_prices, 12),
    healthy("needle_focal_attention", needles, 9),
    healthy("blob_segmentation", blobs, 10, "val_iou"),
    healthy("mean_teacher", mean_teacher, 12, "val_acc"),
    healthy("wine_hinge", lambda: (Margin(), *loaders(*standardized("wine"), batch_size=16)), 18),
    healthy("mostly_noise_gaussian", mostly_noise, 12),
    healthy("poisson_sets", poisson_sets, 12),
    healthy("bandit_reinforce", lambda: (Bandit(), *contexts()), 15, "val_regret"),
]
