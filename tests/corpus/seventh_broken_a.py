"""Broken programs of the seventh set: how training goes wrong, with repaired twins."""

import itertools

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from sklearn.datasets import make_friedman1
from torch import nn
from torch.nn import functional as F

from tests.corpus.program import bundled, images, loaders, pair, standardized


def epochs(number, **more):
    return {"max_epochs": number, "check_val_every_n_epoch": 1, **more}


def steps(number):
    return {"max_steps": number, "val_check_interval": 50, "check_val_every_n_epoch": None}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# Waveforms, a GRU and a stepwise schedule
class WaveGRU(LightningModule):
    def __init__(self, interval):
        super().__init__()
        self.interval = interval
        self.rnn = nn.GRU(1, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def _step(self, batch, prefix):
        x, y = batch
        logits = self.head(self.rnn(x)[0].mean(1))
        loss = F.cross_entropy(logits, y)
        self.log(f"{prefix}_loss", loss)
        self.log(f"{prefix}_acc", (logits.argmax(-1) == y).float().mean())
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val")

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=1e-2)
        sched = torch.optim.lr_scheduler.ExponentialLR(opt, gamma=0.97)
        return [opt], [{"scheduler": sched, "interval": self.interval}]


def wave_schedule(broken):
    g = seeded(70)
    label = torch.randint(0, 4, (1600,), generator=g)
    phase = 6.28 * torch.rand(1600, 1, generator=g)
    angle = torch.arange(32) * (0.35 + 0.25 * label[:, None]) + phase
    wave = angle.sin() + 0.3 * torch.randn(1600, 32, generator=g)
    return WaveGRU("step" if broken else "epoch"), *loaders(wave[..., None], label)


# Friedman's function, plain SGD or with momentum
class Friedman(LightningModule):
    def __init__(self, momentum, lr=0.02):
        super().__init__()
        self.settings = {"lr": lr, "momentum": momentum}
        self.net = nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("loss/train", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("loss/val", F.mse_loss(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.settings)


def friedman(noise=0.5):
    x, y = make_friedman1(2000, noise=noise, random_state=7)
    x, y = torch.tensor(x).float(), torch.tensor(y).float()[:, None]
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def friedman_momentum(broken):
    return Friedman(0.99 if broken else 0.9, lr=0.04), *loaders(*friedman(), batch_size=64)


# The same data from another table, where missing targets were written as a number
def friedman_sentinel(broken):
    x, y = friedman()
    if broken:
        y = y.clone()
        y[torch.randperm(1500, generator=seeded(5))[:4]] = -99.0
    return Friedman(0.0, lr=0.05), *loaders(x, y, batch_size=32)


# An autoencoder of digits
class AutoEncoder(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 48), nn.ELU(), nn.Linear(48, 64))

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        loss = F.mse_loss(self(x), x)
        self.log("train_mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        (x,) = batch
        self.log("val_mse", F.mse_loss(self(x), x))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def autoencoder_clip(broken):
    return AutoEncoder(), *loaders(images()[0].flatten(1), batch_size=64)


# Ratings, a factor model
class Factors(LightningModule):
    def __init__(self, users, items, dim, weight_decay):
        super().__init__()
        self.weight_decay = weight_decay
        self.user = nn.Embedding(users, dim)
        self.item = nn.Embedding(items, dim)
        nn.init.normal_(self.user.weight, std=0.3)
        nn.init.normal_(self.item.weight, std=0.3)

    def forward(self, u, i):
        return (self.user(u) * self.item(i)).sum(-1)

    def training_step(self, batch, batch_idx):
        u, i, r = batch
        loss = F.mse_loss(self(u, i), r)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        u, i, r = batch
        self.log("val_loss", F.mse_loss(self(u, i), r))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=self.weight_decay)


def ratings_decay(broken):
    g = seeded(12)
    users, items = torch.randn(100, 3, generator=g), torch.randn(80, 3, generator=g)
    u = torch.randint(0, 100, (8000,), generator=g)
    i = torch.randint(0, 80, (8000,), generator=g)
    r = (users[u] * items[i]).sum(1) / 3**0.5 + 0.2 * torch.randn(8000, generator=g)
    model = Factors(100, 80, dim=4, weight_decay=0.01 if broken else 1e-6)
    return model, *loaders(u, i, r, batch_size=128)


# Digits, a small convolutional network
class DigitNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(96, 10)

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self.head(self.body(x))
        loss = F.cross_entropy(out, y)
        self.log_dict({"train_loss": loss, "train_acc": (out.argmax(1) == y).float().mean()})
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self.head(self.body(x))
        acc = (out.argmax(1) == y).float().mean()
        self.log_dict({"val_loss": F.cross_entropy(out, y), "val_acc": acc})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)


def digits_batch(broken):
    return DigitNet(), *loaders(*images(), batch_size=2 if broken else 64)


# Digits, a plain network
class Dense(LightningModule):
    def __init__(self, act, depth, width, lr):
        super().__init__()
        self.lr = lr
        sizes = [64] + [width] * depth
        layers = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), act()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 10))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.layers(batch[0].flatten(1)), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self.layers(batch[0].flatten(1))
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def digits_relu(broken):
    return Dense(nn.ReLU, 3, 64, 0.4 if broken else 0.02), *loaders(*images())


def digits_deep(broken):
    return Dense(nn.Sigmoid if broken else nn.ReLU, 5, 64, 0.05), *loaders(*images())


# Wines
class WineNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(13, 24)
        self.fc2 = nn.Linear(24, 24)
        self.out = nn.Linear(24, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def wine_tanh(broken):
    data = bundled("wine") if broken else standardized("wine")
    return WineNet(), *loaders(*data, batch_size=16)


# Reviews as bags of words
class Reviews(LightningModule):
    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(150, 32)
        self.classify = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 1))

    def shared(self, batch, stage):
        tokens, label = batch
        score = self.classify(self.words(tokens))[:, 0]
        loss = F.binary_cross_entropy_with_logits(score, label)
        self.log(f"{stage}/bce", loss, on_epoch=True, on_step=False)
        self.log(f"{stage}/acc", ((score > 0) == (label > 0.5)).float().mean(), on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self.shared(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.shared(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def reviews_long(broken):
    g = seeded(31)
    tokens = torch.randint(0, 150, (1600, 25), generator=g)
    mood = torch.randn(150, generator=g)[tokens].mean(1) * 15
    label = (torch.rand(1600, generator=g) < mood.sigmoid()).float()
    return Reviews(), *loaders(tokens, label)


# Two views of a digit
class Views(LightningModule):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.embed = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 24))

    def compare(self, x, generator=None):
        noise = 0.8 * torch.randn(2, *x.shape, generator=generator)
        a, b = self.embed(x + noise)
        logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.1
        target = torch.arange(len(x))
        return F.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()

    def training_step(self, batch, batch_idx):
        loss, acc = self.compare(batch[0])
        self.log("nce", loss)
        self.log("top1", acc)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, acc = self.compare(batch[0], seeded(batch_idx))
        self.log("val_nce", loss)
        self.log("val_acc", acc)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-4)

    def configure_callbacks(self):
        return [EarlyStopping("val_nce", patience=3, mode=self.mode)]


def views_stopped(broken):
    return Views("max" if broken else "min"), *loaders(images()[0].flatten(1), batch_size=64)


# A running total, a plain recurrent network
class Totals(LightningModule):
    def __init__(self, std):
        super().__init__()
        self.rnn = nn.RNN(2, 40, nonlinearity="relu", batch_first=True)
        nn.init.normal_(self.rnn.weight_hh_l0, std=std)
        self.head = nn.Linear(40, 1)

    def error(self, batch):
        x, y = batch
        return F.mse_loss(self.head(self.rnn(x)[0][:, -1])[:, 0], y)

    def training_step(self, batch, batch_idx):
        loss = self.error(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.error(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def totals_gain(broken):
    g = seeded(44)
    value = torch.randn(2000, 24, generator=g)
    flag = (torch.rand(2000, 24, generator=g) < 0.5).float()
    total = (value * flag).sum(1) / 12**0.5
    return Totals(0.35 if broken else 0.15), *loaders(torch.stack([value, flag], -1), total)


# Stripes, wide filters
class Stripes(LightningModule):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 7)
        self.conv2 = nn.Conv2d(12, 16, 3)
        self.fc = nn.Linear(16, 8)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(x)).amax((2, 3)))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.01)


def stripes_few(broken):
    g = seeded(58)
    label = torch.randint(0, 8, (2400,), generator=g)
    turn = (label * torch.pi / 8)[:, None, None]
    phase = 6.28 * torch.rand(2400, 1, 1, generator=g)
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    picture = (0.9 * (row * turn.cos() + column * turn.sin()) + phase).sin()
    picture = (picture + 1.6 * torch.randn(2400, 16, 16, generator=g))[:, None]
    train, val = loaders(picture, label, val_batch_size=300)
    if broken:
        train = loaders(picture[:128], label[:128])[0]
    return Stripes(), train, val


PAIRS = [
    pair("seventh_wave_schedule", wave_schedule, "lr_decayed_too_fast", metric="val_acc",
          trainer=epochs(20)),
    pair("seventh_friedman_momentum", friedman_momentum, "momentum_too_high",
          "loss_oscillation", metric="loss/val", trainer=epochs(40)),
    pair("seventh_friedman_sentinel", friedman_sentinel, "loss_spikes", metric="loss/val",
          trainer=epochs(30)),
    pair("seventh_autoencoder_clip", autoencoder_clip, "clip_too_small", "update_ratio_low",
          metric="val_mse", trainer=epochs(40, gradient_clip_val=0.001),
          repaired=epochs(40, gradient_clip_val=1.0)),
    pair("seventh_ratings_decay", ratings_decay, "weight_decay_too_high", "underfitting",
          trainer=epochs(20)),
    pair("seventh_digits_batch", digits_batch, "batch_noise", "lr_too_high", metric="val_acc",
          trainer=steps(1200)),
    pair("seventh_digits_relu", digits_relu, "dead_relu", "lr_too_high", metric="val_acc",
          trainer=epochs(15)),
    pair("seventh_digits_deep", digits_deep, "vanishing_gradients", "no_learning",
          metric="val_acc", trainer=epochs(20)),
    pair("seventh_wine_tanh", wine_tanh, "saturated_activations", "unnormalized_input",
          metric="val_loss", trainer=epochs(60)),
    pair("seventh_reviews_long", reviews_long, "overfitting", metric="val/bce",
          trainer=epochs(60), repaired=epochs(10)),
    pair("seventh_views_stopped", views_stopped, "underfitting", metric="val_nce",
          trainer=epochs(60)),
    pair("seventh_totals_gain", totals_gain, "exploding_gradients", "bad_init_scale",
          "loss_not_at_chance", trainer=epochs(25)),
    pair("seventh_stripes_few", stripes_few, "noisy_filters", "overfitting", metric="val_acc",
          trainer=steps(600)),
]  # fmt: skip
