"""Broken programs with their repaired twins, fourth set, second part."""

import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tests.corpus.fourth_broken_a import Classifier, generator, waves
from tests.corpus.program import images, loaders, pair, standardized


class Assistant(LightningModule):
    """Validation averages a few noisy passes, or what its author takes for that."""

    def __init__(self, noisy):
        super().__init__()
        self.noisy = noisy
        self.conv = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.4))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(24 * 64, 10))

    def forward(self, x):
        return self.head(self.conv(x))

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def on_validation_model_eval(self):
        if self.noisy:
            self.train()
        else:
            self.eval()

    def validation_step(self, batch, _):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def noisy_validation(broken):
    return Assistant(broken), *loaders(*images())


class Groups(Classifier):
    """Decays matrices and spares vectors; kernels of convolutions have four dimensions."""

    def __init__(self, forget):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3),
            nn.Tanh(),
            nn.Conv2d(4, 6, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, 10),
        )
        super().__init__(net)
        self.forget = forget

    def configure_optimizers(self):
        everything = list(self.parameters())
        if self.forget:
            decayed = [p for p in everything if p.ndim == 2]
        else:
            decayed = [p for p in everything if p.ndim > 1]
        spared = [p for p in everything if p.ndim == 1]
        groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": spared, "weight_decay": 0}]
        return torch.optim.AdamW(groups, lr=1e-2)


def forgotten_kernels(broken):
    return Groups(broken), *loaders(*images())


class BinaryCodes(LightningModule):
    """An autoencoder through sixteen bits."""

    def __init__(self, straight_through):
        super().__init__()
        self.straight_through = straight_through
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 64))

    def forward(self, x):
        soft = torch.tanh(self.encoder(x))
        bits = torch.where(soft > 0, 1.0, -1.0)
        if self.straight_through:
            bits = soft + (bits - soft).detach()
        return self.decoder(bits)

    def training_step(self, batch, _):
        return F.mse_loss(self(batch[0]), batch[0])

    def validation_step(self, batch, _):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def faces(seed=6):
    """Sixty-four values that four hidden ones tell, through a smooth map."""
    rng = generator(seed)
    hidden = torch.randn(2000, 4, generator=rng)
    x = torch.tanh(hidden @ torch.randn(4, 64, generator=rng))
    return (x - x.mean(0)) / x.std(0)


def hard_bits(broken):
    return BinaryCodes(not broken), *loaders(faces())


class Warming(Classifier):
    def __init__(self, floored):
        net = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 10))
        super().__init__(net)
        self.floored = floored

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)

        def rate(step):
            share = (step + 1) // 1000 if self.floored else (step + 1) / 50
            return min(1, share)

        return [optimizer], [{"scheduler": LambdaLR(optimizer, rate), "interval": "step"}]


def floored_warm_up(broken):
    return Warming(broken), *loaders(*standardized("digits"))


class Denoiser(LightningModule):
    """A dense autoencoder with one initializer for all of its layers."""

    def __init__(self, initialize):
        super().__init__()
        sizes = [64, 64, 24, 64, 64]
        layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])
        for module in self.net:
            if isinstance(module, nn.Linear):
                initialize(module.weight)
                nn.init.zeros_(module.bias)

    def training_step(self, batch, _):
        (x,) = batch
        return F.mse_loss(self.net(x + 0.1 * torch.randn_like(x)), x)

    def validation_step(self, batch, _):
        self.log("val_mse", F.mse_loss(self.net(batch[0]), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def zeros_everywhere(broken):
    return Denoiser(nn.init.zeros_ if broken else nn.init.kaiming_normal_), *loaders(faces())


def unit_normal(broken):
    hidden = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    net = nn.Sequential(*hidden)
    for layer in net[::2]:
        (nn.init.normal_ if broken else nn.init.xavier_normal_)(layer.weight)
    return Classifier(net, 1e-3), *loaders(*standardized("digits"))


class Bags(LightningModule):
    """Which of six kinds is the most frequent in a bag of noisy points, by attention."""

    def __init__(self, batch_first):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(6, 32), nn.ReLU())
        self.mix = nn.TransformerEncoderLayer(32, 2, 48, 0.0, batch_first=batch_first)
        self.score = nn.Linear(32, 1)
        self.head = nn.Linear(32, 6)

    def forward(self, bags):
        hidden = self.mix(self.embed(bags))
        return self.head(hidden[:, 0])

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        scores = self(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def bags(broken):
    rng = generator(12)
    major = torch.randint(0, 6, (1600,), generator=rng)
    kinds = torch.randint(0, 6, (1600, 12), generator=rng)
    often = torch.rand(1600, 12, generator=rng) < 0.5
    kinds = torch.where(often, major[:, None], kinds)
    points = F.one_hot(kinds, 6) + 0.2 * torch.randn(1600, 12, 6, generator=rng)
    return Bags(not broken), *loaders(points, major)


class Edges(LightningModule):
    """Tags every step of a signal as rising, falling or neither."""

    def __init__(self, view):
        super().__init__()
        self.view = view
        self.features = nn.Sequential(
            nn.Conv1d(1, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 24, 5, padding=2), nn.ReLU()
        )
        self.tag = nn.Linear(24, 3)

    def forward(self, signal):
        h = self.features(signal)
        h = h.reshape(len(h), -1, 24) if self.view else h.transpose(1, 2)
        return self.tag(h)

    def step(self, batch):
        scores = self(batch[0]).flatten(0, 1)
        return F.cross_entropy(scores, batch[1].flatten()), scores

    def training_step(self, batch, _):
        return self.step(batch)[0]

    def validation_step(self, batch, _):
        loss, scores = self.step(batch)
        self.log("val_loss", loss)
        self.log("val_acc", (scores.argmax(-1) == batch[1].flatten()).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def edges(broken):
    signal = waves(1200, 42, seed=14)
    slope = signal[:, 2:] - signal[:, :-2]
    tags = (slope > 0.3).long() + 2 * (slope < -0.3).long()
    return Edges(broken), *loaders(signal[:, None, 1:-1], tags)


class Dilated(LightningModule):
    """Predicts every next value of a series; judged on the last value of a shorter one."""

    def __init__(self, symmetric):
        super().__init__()
        self.symmetric = symmetric
        self.layers = nn.ModuleList(
            nn.Conv1d(1 if d == 1 else 16, 16, 3, dilation=d) for d in (1, 2, 4)
        )
        self.out = nn.Conv1d(16, 1, 1)

    def forward(self, x):
        x = x[:, None]
        for layer in self.layers:
            pad = 2 * layer.dilation[0]
            x = F.gelu(layer(F.pad(x, (pad // 2, pad // 2) if self.symmetric else (pad, 0))))
        return self.out(x)[:, 0]

    def training_step(self, batch, _):
        (series,) = batch
        return F.mse_loss(self(series[:, :-1]), series[:, 1:])

    def validation_step(self, batch, _):
        (series,) = batch
        errors = [self(series[:, :i])[:, -1] - series[:, i] for i in range(20, 40, 4)]
        self.log("val_mse", torch.stack(errors).square().mean())
        self.log("val_loss", F.mse_loss(self(series[:, :-1]), series[:, 1:]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def dilated(broken):
    return Dilated(broken), *loaders(waves(1200, 48, seed=16))


class Ward(LightningModule):
    """Vital signs with a few lost readings."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def loss(self, batch):
        _, h = self.rnn(batch["signs"])
        return F.binary_cross_entropy_with_logits(self.head(h[0])[:, 0], batch["risk"])

    def training_step(self, batch, _):
        return {"loss": self.loss(batch)}

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch), batch_size=len(batch["risk"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Records(torch.utils.data.Dataset):
    def __init__(self, broken, part):
        rng = generator(17 + part)
        drift = torch.randn(1000, 1, 3, generator=rng) * 0.15
        walk = (drift + 0.4 * torch.randn(1000, 14, 3, generator=rng)).cumsum(1)
        walk = walk / 2
        self.risk = (walk[:, -1, 0] > walk[:, -1, 2]).float()
        # the first reading of a sign after its sensor came off
        lost = torch.rand(walk.shape, generator=rng) < 0.002
        self.walk = walk.masked_fill(lost, math.nan if broken else 0.0)

    def __len__(self):
        return len(self.risk)

    def __getitem__(self, i):
        return {"signs": self.walk[i], "risk": self.risk[i]}


def lost_readings(broken):
    load = torch.utils.data.DataLoader
    return (
        Ward(),
        load(Records(broken, 0), 32, shuffle=True, drop_last=True),
        load(Records(broken, 1), 125),
    )


PAIRS = [
    pair("fourth_noisy_validation", noisy_validation, "train_mode_in_validation"),
    pair("fourth_forgotten_kernels", forgotten_kernels, "params_not_in_optimizer"),
    pair("fourth_hard_bits", hard_bits, "no_grad_flow", metric="val_mse"),
    pair("fourth_floored_warm_up", floored_warm_up, "weights_not_updating", "lr_too_low"),
    pair("fourth_zeros_everywhere", zeros_everywhere, "zero_init", metric="val_mse"),
    pair("fourth_unit_normal", unit_normal, "bad_init_scale", "loss_not_at_chance"),
    pair("fourth_bags", bags, "batch_leakage"),
    pair("fourth_viewed_edges", edges, "dims_scrambled"),
    pair("fourth_dilated", dilated, "future_leakage", metric="val_mse"),
    pair("fourth_lost_readings", lost_readings, "nan_in_data", "non_finite"),
]
