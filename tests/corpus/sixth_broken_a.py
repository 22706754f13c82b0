"""Broken programs about rates, schedules, clipping, decay, batches and curves, each with a twin."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn.datasets import make_friedman1
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import bundled, images, loaders, pair, standardized

EACH_EPOCH = {"check_val_every_n_epoch": 1}


class DigitVAE(LightningModule):
    """A small Gaussian VAE."""

    def __init__(self, lr, latent=6):
        super().__init__()
        self.lr = lr
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 128), nn.ReLU(), nn.Linear(128, 64))

    def negative_elbo(self, x):
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (logvar / 2).exp() if self.training else mean
        kl = (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean() / 2
        rec = (self.decoder(z).sigmoid() - x).square().sum(1).mean()
        return 10 * rec + kl, rec

    def training_step(self, batch, batch_idx):
        loss, rec = self.negative_elbo(batch[0])
        self.log_dict({"elbo/train": loss, "rec/train": rec})
        return loss

    def validation_step(self, batch, batch_idx):
        loss, rec = self.negative_elbo(batch[0])
        self.log_dict({"elbo/val": loss, "rec/val": rec})

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=self.lr)


def vae(broken):
    x = bundled("digits")[0] / 16
    return DigitVAE(0.04 if broken else 2e-3), *loaders(x, batch_size=48)


class TwoViews(LightningModule):
    """InfoNCE between two views of a digit with noise and missing pixels."""

    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 32))

    def embed(self, x):
        x = x * (torch.rand_like(x) > 0.25) + 0.3 * torch.randn_like(x)
        return F.normalize(self.head(self.backbone(x)), dim=1)

    def step(self, batch, stage):
        x, _ = batch
        logits = self.embed(x) @ self.embed(x).T / 0.2
        target = torch.arange(len(x))
        loss = F.cross_entropy(logits, target)
        self.log(f"{stage}_nce", loss, prog_bar=True)
        self.log(f"{stage}_match_acc", (logits.argmax(1) == target).float().mean())
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


def contrast(broken):
    return TwoViews(1e-5 if broken else 0.05), *loaders(*images(), batch_size=64, val_batch_size=64)


class SmallConv(LightningModule):
    """Digits, with the optimizer handed in."""

    def __init__(self, make_optimizers, width=16):
        super().__init__()
        self.make_optimizers = make_optimizers
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(8 * width, 10),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("valid/loss", F.cross_entropy(logits, batch[1]))
        self.log("valid/acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return self.make_optimizers(self.parameters())


def halving(broken):
    def optimizers(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=8, gamma=0.5)
        interval = "step" if broken else "epoch"
        return [optimizer], [{"scheduler": schedule, "interval": interval}]

    return SmallConv(optimizers), *loaders(*images(), batch_size=50)


def heavy_ball(broken):
    def optimizers(parameters):
        return torch.optim.SGD(parameters, lr=0.005, momentum=0.995 if broken else 0.9)

    return SmallConv(optimizers, width=12), *loaders(*images(), batch_size=32)


class MarkCounter(LightningModule):
    """A transformer that says whether one sort of token is more frequent than another."""

    def __init__(self, warmup):
        super().__init__()
        self.warmup = warmup
        self.tokens = nn.Embedding(12, 24)
        self.places = nn.Parameter(0.02 * torch.randn(14, 24))
        layer = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classify = nn.Linear(24, 3)

    def forward(self, x):
        return self.classify(self.encoder(self.tokens(x) + self.places).mean(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        self.log("lr", self.lr_schedulers().get_last_lr()[0])
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / self.warmup)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def warmup(broken):
    x = torch.randint(0, 12, (2400, 14), generator=torch.Generator().manual_seed(5))
    more = (x == 3).sum(1) - (x == 7).sum(1)
    y = more.sign() + 1
    return MarkCounter(40_000 if broken else 40), *loaders(x, y, batch_size=40)


class ResidualMLP(LightningModule):
    """Blocks with layer normalisation on the digits' pixels."""

    def __init__(self, decay):
        super().__init__()
        self.decay = decay
        self.first = nn.Linear(64, 48)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
            for _ in range(3)
        )
        self.last = nn.Linear(48, 10)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss/train", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("loss/val", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=self.decay)


def decay(broken):
    return ResidualMLP(0.1 if broken else 1e-4), *loaders(*standardized("digits"), batch_size=32)


class Denoiser(LightningModule):
    """A convolutional network that takes noise off digits."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        noisy, clean = batch
        loss = F.mse_loss(self.net(noisy), clean)
        self.log("mse", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch, batch_idx):
        noisy, clean = batch
        self.log("val_mse", F.mse_loss(self.net(noisy), clean))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def denoise(broken):
    clean = images()[0]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    return Denoiser(), *loaders(clean + 0.5 * noise, clean, batch_size=32)


class Regressor(LightningModule):
    """A multilayer perceptron for one number."""

    def __init__(self, inputs, hidden=(64, 64), optimizer=torch.optim.Adam, **settings):
        super().__init__()
        self.optimizer, self.settings = optimizer, settings
        layers = []
        for size in hidden:
            layers += [nn.Linear(inputs, size), nn.ReLU()]
            inputs = size
        self.mlp = nn.Sequential(*layers, nn.Linear(inputs, 1))

    def forward(self, x):
        return self.mlp(x).squeeze(1)

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), **self.settings)


def friedman(rows, noise=1.0, features=10):
    """Friedman's first problem with everything at deviation 1."""
    x, y = make_friedman1(rows, n_features=features, noise=noise, random_state=4)
    x, y = torch.as_tensor(x).float(), torch.as_tensor(y).float()
    return (x - 0.5) * math.sqrt(12), (y - 14.4) / 4.9


def batches(broken):
    module = Regressor(10, (64, 64), optimizer=torch.optim.SGD, lr=0.05)
    return module, *loaders(*friedman(3000, 2.5), batch_size=2 if broken else 64)


def sentinel(broken):
    x, y = friedman(2800, 0.5)
    if broken:
        y = y.clone()
        y[[400, 1500]] = -99.9
    module = Regressor(10, (64, 64), lr=3e-3)
    return module, *loaders(x, y, batch_size=35)


def few_rows(broken):
    x, y = friedman(5200, 3.0, features=15)
    train = TensorDataset(x[:100], y[:100]) if broken else TensorDataset(x[:4200], y[:4200])
    val = TensorDataset(x[4200:], y[4200:])
    module = Regressor(15, (96, 96), optimizer=torch.optim.AdamW, lr=1e-3)
    return module, DataLoader(train, 25, shuffle=True), DataLoader(val, 500)


class SpiralNet(LightningModule):
    """Which of three arms a point of the plane lies on."""

    def __init__(self, units):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh(), nn.Linear(units, 3)
        )

    def shared(self, batch, prefix):
        logits = self.body(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log(f"{prefix}_loss", loss, on_epoch=True, on_step=False)
        acc = (logits.argmax(1) == batch[1]).float().mean()
        self.log(f"{prefix}_acc", acc, on_epoch=True, on_step=False)
        return loss

    def training_step(self, batch, batch_idx):
        return self.shared(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.shared(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def spirals(broken):
    generator = torch.Generator().manual_seed(9)
    arm = torch.randint(0, 3, (1800,), generator=generator)
    radius = torch.rand(1800, generator=generator).sqrt() * 2
    angle = 2.8 * radius + arm * 2 * math.pi / 3
    angle = angle + 0.12 * torch.randn(1800, generator=generator)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return SpiralNet(2 if broken else 32), *loaders(points, arm, batch_size=50)


class Forecaster(LightningModule):
    """A GRU that reads a noisy oscillation and gives its next three values."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 32, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train/mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def forecast(broken):
    generator = torch.Generator().manual_seed(8)
    speed, phase = torch.rand(2, 1600, 1, generator=generator)
    wave = torch.sin((0.3 + 0.9 * speed) * torch.arange(17) + 2 * math.pi * phase)
    seen = wave[:, :14] + 0.02 * torch.randn(1600, 14, generator=generator)
    return Forecaster(), *loaders(seen.unsqueeze(2), wave[:, 14:], batch_size=60)


def regions(broken):
    x, y = friedman(2400, 0.5)
    if broken:
        order = y.argsort()
        x, y = x[order], y[order]
    module = Regressor(10, (64, 64), lr=2e-3)
    return module, *loaders(x, y, batch_size=40)


# fmt: off
PAIRS = [
    pair("sixth_vae_rate", vae, "lr_too_high", "update_ratio_high",
         trainer={"max_epochs": 40} | EACH_EPOCH, metric="elbo/val"),
    pair("sixth_contrast_rate", contrast, "lr_too_low", "update_ratio_low",
         trainer={"max_epochs": 20} | EACH_EPOCH, metric="val_nce"),
    pair("sixth_halving", halving, "lr_decayed_too_fast",
         trainer={"max_epochs": 20} | EACH_EPOCH, metric="valid/loss"),
    pair("sixth_heavy_ball", heavy_ball, "momentum_too_high", "lr_too_high", "loss_diverging",
         trainer={"max_epochs": 23} | EACH_EPOCH, metric="valid/loss"),
    pair("sixth_warmup", warmup, "lr_too_low", "update_ratio_low", "underfitting",
         trainer={"max_epochs": 9} | EACH_EPOCH, metric="val_loss"),
    pair("sixth_decay", decay, "weight_decay_too_high", "underfitting",
         trainer={"max_epochs": 9} | EACH_EPOCH, metric="loss/val"),
    pair("sixth_clip", denoise, "clip_too_small", "update_ratio_low",
         trainer={"max_epochs": 15, "gradient_clip_val": 1e-4} | EACH_EPOCH,
         repaired={"max_epochs": 15, "gradient_clip_val": 1.0} | EACH_EPOCH, metric="val_mse"),
    pair("sixth_batches", batches, "batch_noise", "lr_too_high",
         trainer={"max_steps": 1500, "val_check_interval": 125, "check_val_every_n_epoch": None}),
    pair("sixth_sentinel", sentinel, "loss_spikes", "exploding_gradients", "train_val_mismatch",
         trainer={"max_epochs": 30} | EACH_EPOCH),
    pair("sixth_few_rows", few_rows, "overfitting",
         trainer={"max_steps": 700} | EACH_EPOCH),
    pair("sixth_spirals", spirals, "underfitting",
         trainer={"max_epochs": 60} | EACH_EPOCH, metric="val_acc"),
    pair("sixth_forecast", forecast, "underfitting",
         trainer={"max_epochs": 6} | EACH_EPOCH, repaired={"max_epochs": 45} | EACH_EPOCH,
         metric="val/mse"),
    pair("sixth_regions", regions, "train_val_mismatch",
         trainer={"max_epochs": 30} | EACH_EPOCH),
]
# fmt: on
