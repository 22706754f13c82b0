"""Whole fits with a fault in their dynamics and their repaired twins, second blind writer, end."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from tests.corpus.program import images, loaders, pair


def rng(seed):
    return torch.Generator().manual_seed(seed)


class DigitVAE(LightningModule):
    def __init__(self, eps, latent=6, beta=0.02):
        super().__init__()
        self.eps, self.beta = eps, beta
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.SiLU())
        self.mu, self.logvar = nn.Linear(96, latent), nn.Linear(96, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 96), nn.SiLU(), nn.Linear(96, 64))

    def elbo(self, x, stage):
        h = self.encoder(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        reconstruction = F.mse_loss(self.decoder(z), x.flatten(1))
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction + self.beta * kl
        self.log_dict({f"{stage}_loss": loss, f"{stage}_kl": kl})
        return loss

    def training_step(self, batch, batch_idx):
        return self.elbo(batch[0], "train")

    def validation_step(self, batch, batch_idx):
        self.elbo(batch[0], "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3, eps=self.eps)


def digit_vae(broken):
    """The epsilon that some documentation recommends for Inception."""
    return DigitVAE(1.0 if broken else 1e-8), *loaders(*images())


class AirQuality(LightningModule):
    """Tomorrow's concentration from twelve sensors."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            *(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1))
        )

    def forward(self, batch):
        return self.model(batch["sensors"]).squeeze(-1)

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch), batch["target"])
        self.log("train_loss", loss, batch_size=len(batch["target"]))
        return loss

    def validation_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch), batch["target"])
        self.log("val_loss", loss, batch_size=len(batch["target"]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}


def air_quality(broken):
    """Failed readings are -200 in the record, and only some years were cleaned."""
    sensors = torch.randn(1600, 12, generator=rng(60))
    target = torch.sin(sensors[:, 0] + sensors[:, 1]) + 0.5 * sensors[:, 2] * sensors[:, 3]
    target += 0.1 * torch.randn(1600, generator=rng(61))
    failed = torch.rand(1200, 12, generator=rng(62)) < 0.001
    train = sensors[:1200].masked_fill(failed, -200.0 if broken else 0.0)
    sensors = torch.cat([train, sensors[1200:]])
    rows = [{"sensors": s, "target": t} for s, t in zip(sensors, target, strict=True)]
    return AirQuality(), DataLoader(rows[:1200], 32, shuffle=True), DataLoader(rows[1200:], 200)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.norm(self.conv1(x))))


class DigitResNet(LightningModule):
    """Pixels of 0 to 16 are brought to deviation 1 when the batch arrives."""

    def __init__(self, always=True, lr=2e-3):
        super().__init__()
        self.always, self.lr = always, lr
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.Sequential(Residual(12), nn.MaxPool2d(2), Residual(12))
        self.head = nn.Linear(12 * 16, 10)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        if self.always or self.training:
            x = (x - 4.9) / 6.0
        return x, y

    def forward(self, x):
        return self.head(self.blocks(F.relu(self.stem(x))).flatten(1))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def digit_resnet(broken):
    """Normalized in training alone."""
    x, y = images()
    return DigitResNet(always=not broken), *loaders((6.0 * x + 4.9).clamp(0, 16), y)


def debugging_subset(broken):
    """Sixty-four digits, from the time when the code had to be tried."""
    x, y = images()
    train, val = loaders((6.0 * x + 4.9).clamp(0, 16), y)
    if broken:
        train = DataLoader(Subset(train.dataset, range(64)), batch_size=16, shuffle=True)
    return DigitResNet(), train, val


class ReviewTransformer(LightningModule):
    """Whether a review's words are kind, from embeddings by attention."""

    def __init__(self, keep, words=60, width=32):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Dropout(keep))
        self.classifier = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(keep))
        self.output = nn.Linear(32, 1)

    def forward(self, words):
        x = self.embedding(words)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1)
        return self.output(self.classifier(self.feed(x))).squeeze(-1)

    def training_step(self, batch, batch_idx):
        loss = F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, batch[1]))
        self.log("val_acc", ((logits > 0) == batch[1].bool()).float().mean())

    def configure_optimizers(self):
        return torch.optim.NAdam(self.parameters(), lr=1e-3)


def reviews(broken):
    """What is to be kept was given as what is to be dropped."""
    words = torch.randint(0, 60, (1600, 16), generator=rng(63))
    mood = torch.randn(60, generator=rng(64))
    kind = (mood[words].sum(1) + 0.3 * torch.randn(1600, generator=rng(65)) > 0).float()
    return ReviewTransformer(0.9 if broken else 0.1), *loaders(words, kind)


class Signals(Dataset):
    """Windows of an accelerometer with the activity of each."""

    def __init__(self, windows, activity, order=None):
        self.windows = windows if order is None else windows[order]
        self.activity = activity

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        return {"window": self.windows[index], "activity": self.activity[index]}


class ActivityGRU(LightningModule):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 24, batch_first=True)
        self.fc = nn.Linear(24, 5)

    def forward(self, window):
        return self.fc(self.gru(window)[0].mean(1))

    def step(self, batch, stage):
        logits = self(batch["window"])
        loss = F.cross_entropy(logits, batch["activity"])
        accuracy = (logits.argmax(-1) == batch["activity"]).float().mean()
        size = len(logits)
        self.log_dict({f"{stage}_loss": loss, f"{stage}_acc": accuracy}, batch_size=size)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=1e-3)


def activities(broken):
    """The windows are put in random order, the activities are not."""
    activity = torch.randint(0, 5, (1200,), generator=rng(66))
    speed = (0.3 + 0.25 * activity)[:, None] * (1 + 0.05 * torch.randn(1200, 1, generator=rng(67)))
    angle = speed * torch.arange(24) + 6.3 * torch.rand(1200, 1, generator=rng(68))
    windows = torch.stack([angle.sin(), angle.cos(), (2 * angle).sin()], -1)
    windows += 0.3 * torch.randn(windows.shape, generator=rng(69))
    order = torch.randperm(900, generator=rng(70)) if broken else None
    train = Signals(windows[:900], activity[:900], order)
    val = Signals(windows[900:], activity[900:])
    return ActivityGRU(), DataLoader(train, 30, shuffle=True), DataLoader(val, 150)


class Compressor(LightningModule):
    """A convolutional autoencoder of digits."""

    def __init__(self, code):
        super().__init__()
        self.encode = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GELU(), nn.Flatten()),
            *(nn.Linear(256, code),),
        )
        self.decode = nn.Sequential(
            *(nn.Linear(code, 256), nn.GELU(), nn.Unflatten(1, (16, 4, 4))),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        )

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self.decode(self.encode(batch[0])), batch[0])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self.decode(self.encode(batch[0])), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def compressor(broken):
    """One number for a whole digit."""
    return Compressor(1 if broken else 16), *loaders(*images())


class RingGAN(LightningModule):
    """Points on a ring from noise; told apart from true ones by the energy distance."""

    def __init__(self, copied):
        super().__init__()
        self.automatic_optimization = False
        self.copied = copied
        self.generator = nn.Sequential(
            *(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
        )
        self.critic = nn.Sequential(
            *(nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2)),
            nn.Linear(48, 1),
        )

    def judge(self, points):
        return self.critic(points + 0.3 * torch.randn_like(points))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        g_opt, d_opt = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        d_loss = F.softplus(-self.judge(real)).mean()
        d_loss = d_loss + F.softplus(self.judge(fake.detach())).mean()
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()
        g_loss = F.softplus(-self.judge(fake)).mean()
        self.toggle_optimizer(g_opt)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.untoggle_optimizer(g_opt)
        self.log_dict({"train_loss": d_loss, "g_loss": g_loss}, prog_bar=True)

    def validation_step(self, batch, batch_idx):
        (real,) = batch
        fake = self.generator(torch.randn(len(real), 4))
        within = torch.cdist(real, real).mean() + torch.cdist(fake, fake).mean()
        self.log("val_loss", 2 * torch.cdist(real, fake).mean() - within)

    def configure_optimizers(self):
        betas = (0.5, 0.99)
        trained_by_g = self.critic if self.copied else self.generator
        g_opt = torch.optim.Adam(trained_by_g.parameters(), lr=1e-3, betas=betas)
        d_opt = torch.optim.Adam(self.critic.parameters(), lr=3e-3, betas=betas)
        return g_opt, d_opt


def ring(broken):
    """The generator's optimizer was copied from the critic's."""
    angle = 6.2832 * torch.rand(2000, generator=rng(71))
    points = torch.stack([angle.cos(), angle.sin()], 1) * 2 + 0.5
    points += 0.05 * torch.randn(2000, 2, generator=rng(72))
    return RingGAN(copied=broken), *loaders(points, batch_size=60, val_batch_size=500)


class Textures(LightningModule):
    """Gratings of four directions by large filters."""

    def __init__(self, normal):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 9, padding=4)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 4)
        if normal:
            self.apply(self.initialize)

    @staticmethod
    def initialize(module):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.second(x)).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def textures(broken):
    direction = torch.randint(0, 4, (800,), generator=rng(73))
    angle = direction * torch.pi / 4 + 0.15 * torch.randn(800, generator=rng(74))
    grid = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")).float()
    along = angle.cos()[:, None, None] * grid[0] + angle.sin()[:, None, None] * grid[1]
    image = torch.sin(along + 6.3 * torch.rand(800, 1, 1, generator=rng(75)))
    image += 1.0 * torch.randn(image.shape, generator=rng(76))
    return Textures(normal=broken), *loaders(image[:, None], direction)


def fitted(name, make, epochs, *codes, **settings):
    return pair(f"fifth_{name}", make, *codes, trainer={"max_epochs": epochs}, **settings)


PAIRS = [
    fitted(
        *("vae_epsilon", digit_vae, 12, "update_ratio_low", "lr_too_low", "underfitting"),
    ),
    fitted(
        *("air_quality_failed_readings", air_quality, 16),
        *("loss_spikes", "unnormalized_input", "exploding_gradients"),
    ),
    fitted("resnet_scaled_in_training", digit_resnet, 8, "train_val_mismatch"),
    pair(
        *("fifth_resnet_debugging_subset", debugging_subset, "overfitting"),
        trainer={"max_epochs": 40},
        repaired={"max_epochs": 8},
    ),
    fitted(
        *("reviews_kept_dropped", reviews, 10),
        *("dropout_too_high", "underfitting", "no_learning"),
    ),
    fitted(
        *("activities_out_of_order", activities, 14),
        *("label_mismatch", "no_learning", "overfitting"),
    ),
    fitted("compressor_single_code", compressor, 10, "underfitting"),
    fitted(
        *("ring_optimizer_copied", ring, 16),
        *("params_not_in_optimizer", "weights_not_updating", "frozen_params"),
    ),
    fitted(
        *("textures_unit_normal", textures, 15),
        *("bad_init_scale", "saturated_activations", "noisy_filters"),
    ),
]
