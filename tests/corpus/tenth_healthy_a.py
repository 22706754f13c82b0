"""Forty programs that train as they should, though some look unusual while they do."""

import functools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .program import Program, bundled, images, loaders, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def every(epochs, **more):
    """The Trainer's arguments of a fit that validates after each epoch."""
    return {"max_epochs": epochs, "check_val_every_n_epoch": 1} | more


def warm_cosine(optimizer, total, warm):
    def factor(step):
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def by_step(optimizer, scheduler):
    schedule = {"scheduler": scheduler, "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def annealed(module, optimizer, warm=0):
    """A cosine over the whole fit, after ``warm`` steps of rising rate."""
    total = int(module.trainer.estimated_stepping_batches)
    if warm:
        return by_step(optimizer, warm_cosine(optimizer, total, warm))
    return by_step(optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total))


def shifted(x):
    """Images moved by up to one pixel at random."""
    dx, dy = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(x, (dx, dy), (-2, -1))


# --- image classifiers ---------------------------------------------------------------------


class Classifier(LightningModule):
    """The usual two steps of a classifier."""

    smoothing = 0.0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1], label_smoothing=self.smoothing)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self(batch[0])
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", (out.argmax(1) == batch[1]).float().mean())


class SmallConvNet(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.GELU(),
            nn.Conv2d(24, 48, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(48),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(192, 10),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(shifted(x)), y, label_smoothing=0.1)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=6e-3, weight_decay=0.05)
        total = int(self.trainer.estimated_stepping_batches)
        return by_step(opt, warm_cosine(opt, total, total // 10))


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class GammaZeroResNet(LightningModule):
    def __init__(self, max_lr=0.1):
        super().__init__()
        self.max_lr = max_lr
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(16) for _ in range(3)))
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x):
        x = F.avg_pool2d(self.blocks(self.stem(x)), 2)
        return self.head(x.flatten(1))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(shifted(batch[0])), batch[1])
        self.log("loss/train", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("loss/val", F.cross_entropy(logits, batch[1]))
        self.log("acc/val_acc", (logits.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self):
        sgd = torch.optim.SGD(
            self.parameters(), lr=self.max_lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            sgd, self.max_lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return by_step(sgd, cycle)


class NoisyLabelNet(LightningModule):
    """A fifth of the training labels are wrong; the held-out ones are clean."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(128, 10),
        )

    def training_step(self, batch, batch_idx):
        x, _, noisy = batch
        out = self.model(shifted(x))
        loss = F.cross_entropy(out, noisy)
        self.log("train/loss", loss)
        self.log("train/acc", (out.argmax(1) == noisy).float().mean())
        return loss

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        out = self.model(x)
        self.log("val/loss", F.cross_entropy(out, y))
        self.log("val/acc", (out.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        opt = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, nesterov=True)
        return [opt], [torch.optim.lr_scheduler.MultiStepLR(opt, [18, 25], 0.1)]


def label_noise_nesterov_multistep():
    x, y = images()
    g = seeded(11)
    wrong = torch.rand(len(y), generator=g) < 0.2
    noisy = torch.where(wrong, torch.randint(0, 10, y.shape, generator=g), y)
    return NoisyLabelNet(), *loaders(x, y, noisy, batch_size=32)


class DropoutMLP(Classifier):
    def __init__(self, width=256):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(width, 10),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=6e-3, weight_decay=0.01)
        return annealed(self, opt)


def dropout_accumulated_mlp():
    x, y = images()
    return DropoutMLP(), *loaders(x.flatten(1), y, batch_size=16)


class GroupNormNet(Classifier):
    """Four images at a time, as on a small card."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GroupNorm(4, 32),
            nn.SiLU(),
        )
        self.classifier = nn.Linear(32 * 16, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=6e-3, weight_decay=0.02)
        return annealed(self, opt)


class CancerPairs(LightningModule):
    """Two patients a step: slow, small, steady."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self.net(x)[:, 0], y.float())
        self.log("train_bce", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        z = self.net(x)[:, 0]
        self.log("val_bce", F.binary_cross_entropy_with_logits(z, y.float()))
        self.log("val_acc", ((z > 0) == y.bool()).float().mean())

    def configure_optimizers(self):
        opt = torch.optim.SGD(self.parameters(), lr=0.02, weight_decay=1e-3)
        return annealed(self, opt)


# --- fine-tuning and frozen parts ----------------------------------------------------------


def backbone():
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1, stride=2),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 16, 64),
        nn.ReLU(),
    )


@functools.cache
def pretrained():
    """Weights of the backbone after it learned the ten digits."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        body, head = backbone(), nn.Linear(64, 10)
        x, y = images()
        x, y = x[:1347], y[:1347]
        opt = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=2e-3)
        for _ in range(250):
            pick = torch.randint(0, len(x), (64,))
            loss = F.cross_entropy(head(body(shifted(x[pick]))), y[pick])
            opt.zero_grad()
            loss.backward()
            opt.step()
    return {k: v.clone() for k, v in body.state_dict().items()}


class ParityHead(Classifier):
    """A new head (odd or even) upon the backbone, which stays as it is."""

    def __init__(self):
        super().__init__()
        self.body = backbone()
        self.body.load_state_dict(pretrained())
        self.body.requires_grad_(False)
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        with torch.no_grad():
            z = self.body(x)
        return self.head(z)

    def training_step(self, batch, batch_idx):
        self.body.eval()
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.head.parameters(), lr=5e-2)
        return [opt], [torch.optim.lr_scheduler.CosineAnnealingLR(opt, self.trainer.max_epochs)]


class MirroredDigits(LightningModule):
    """Everything is tuned a little on mirrored digits, but for the BatchNorm statistics."""

    def __init__(self):
        super().__init__()
        self.body = backbone()
        self.body.load_state_dict(pretrained())
        self.head = nn.Linear(64, 10)

    def train(self, mode=True):
        super().train(mode)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
                m.weight.requires_grad_(False)
                m.bias.requires_grad_(False)
        return self

    def training_step(self, batch, batch_idx):
        self.train()
        loss = F.cross_entropy(self.head(self.body(batch[0])), batch[1])
        self.log("ft_loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self.head(self.body(batch[0]))
        self.log("ft_val_loss", F.cross_entropy(out, batch[1]))
        self.log("ft_val_acc", (out.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        opt = torch.optim.AdamW(
            [
                {"params": self.body.parameters(), "lr": 5e-4},
                {"params": self.head.parameters(), "lr": 3e-3},
            ],
            weight_decay=0.05,
        )
        return annealed(self, opt)


def batchnorm_frozen_finetune():
    x, y = images()
    return MirroredDigits(), *loaders(x.flip(-1), y, batch_size=32)


class Adapter(nn.Module):
    def __init__(self, width, bottleneck=32):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        return x + self.up(F.gelu(self.down(x)))


class AdapterTuning(Classifier):
    def __init__(self):
        super().__init__()
        self.body = backbone()
        self.body.load_state_dict(pretrained())
        self.body.requires_grad_(False)
        self.first = Adapter(48 * 16)
        self.second = Adapter(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = self.first(self.body[:7](x))
        return self.head(self.second(self.body[7:](x)))

    def training_step(self, batch, batch_idx):
        self.body.eval()
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        params = [p for p in self.parameters() if p.requires_grad]
        opt = torch.optim.AdamW(params, lr=2e-3, weight_decay=0.01)
        return annealed(self, opt, warm=30)


def zero_adapters_on_frozen_body():
    x, y = images()
    return AdapterTuning(), *loaders(x.flip(-1), y, batch_size=32)


def denoiser():
    encoder = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.SiLU())
    decoder = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1)
    )
    return encoder, decoder


@functools.cache
def trained_denoiser():
    with torch.random.fork_rng():
        torch.manual_seed(8)
        encoder, decoder = denoiser()
        x = images()[0][:1347]
        opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
        for _ in range(300):
            clean = x[torch.randint(0, len(x), (64,))]
            loss = F.mse_loss(decoder(encoder(clean + torch.randn_like(clean))), clean)
            opt.zero_grad()
            loss.backward()
            opt.step()
    return encoder.state_dict(), decoder.state_dict()


class ControlledDenoiser(LightningModule):
    """A frozen denoiser is told of the left half by a copy that enters through zero layers."""

    def __init__(self):
        super().__init__()
        first, second = trained_denoiser()
        self.encoder, self.decoder = denoiser()
        self.encoder.load_state_dict(first)
        self.decoder.load_state_dict(second)
        self.encoder.requires_grad_(False)
        self.decoder.requires_grad_(False)
        self.control = denoiser()[0]
        self.control.load_state_dict(first)
        self.hint = nn.Conv2d(1, 16, 3, padding=1)
        self.mix = nn.Sequential(nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU())
        self.zero = nn.Conv2d(16, 16, 1)
        self.zero_out = nn.Conv2d(16, 1, 1)
        for layer in (self.zero, self.zero_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, noisy, hint):
        c = self.mix(self.control(noisy) + self.hint(hint))
        return self.decoder(self.encoder(noisy) + self.zero(c)) + self.zero_out(c)

    def step(self, batch):
        clean, noise = batch
        if self.training:
            noise = torch.randn_like(clean)
        hint = clean.clone()
        hint[..., 4:] = 0
        return F.mse_loss(self(clean + noise, hint), clean)

    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", self.step(batch))

    def configure_optimizers(self):
        params = filter(lambda p: p.requires_grad, self.parameters())
        opt = torch.optim.AdamW(params, lr=8e-3, weight_decay=0.01)
        return annealed(self, opt)


def controlnet_zero_convolutions():
    x = images()[0]
    noise = torch.randn(x.shape, generator=seeded(2))
    return ControlledDenoiser(), *loaders(x, noise, batch_size=64)


def token_texts(n=3000, length=12, words=200, dim=24, seed=21):
    """Sentences of four topics, and word vectors in which a topic's words lie together."""
    g = seeded(seed)
    topic_of_word = torch.randint(0, 4, (words,), generator=g)
    centres = torch.randn(4, dim, generator=g)
    vectors = centres[topic_of_word] + torch.randn(words, dim, generator=g)
    labels = torch.randint(0, 4, (n,), generator=g)
    odds = torch.where(topic_of_word[None] == torch.arange(4)[:, None], 5.0, 1.0)
    texts = torch.multinomial(odds[labels], length, replacement=True, generator=g)
    return vectors, texts, labels


class TopicGRU(Classifier):
    def __init__(self, vectors):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.gru = nn.GRU(vectors.shape[1], 32, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, ids):
        states, _ = self.gru(self.embedding(ids))
        return self.out(states.mean(1))

    def configure_optimizers(self):
        params = [p for p in self.parameters() if p.requires_grad]
        opt = torch.optim.Adam(params, lr=6e-3)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, 3, 0.3)]


def frozen_embeddings_gru():
    vectors, texts, labels = token_texts()
    return TopicGRU(vectors), *loaders(texts, labels, batch_size=32)


class RandomFourier(Classifier):
    """A linear classifier upon fixed random cosines."""

    def __init__(self, features=512):
        super().__init__()
        self.register_buffer("omega", torch.randn(64, features) * 0.08)
        self.register_buffer("phase", torch.rand(features) * 2 * math.pi)
        self.head = nn.Linear(features, 10)

    def forward(self, x):
        return self.head(math.sqrt(2) * torch.cos(x @ self.omega + self.phase))

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.head.parameters(), lr=5e-3, weight_decay=1e-5)
        return annealed(self, opt)


def head_on_random_features():
    x, y = images()
    return RandomFourier(), *loaders(x.flatten(1), y, batch_size=32)


# --- regression ----------------------------------------------------------------------------


def friedman(n=2000, noise=1.0, seed=4):
    """Friedman's first function of ten uniform features, standardized."""
    g = seeded(seed)
    x = torch.rand(n, 10, generator=g)
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = y + 10 * x[:, 3] + 5 * x[:, 4] + noise * torch.randn(n, generator=g)
    return (x - 0.5) * math.sqrt(12), (y - y.mean()) / y.std()


class PlateauRegressor(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x).squeeze(1), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.mse_loss(self.net(x).squeeze(1), y))

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=6e-3, weight_decay=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.3, patience=2)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class ReZeroNet(LightningModule):
    """Fourteen residual layers, each of which begins as the identity."""

    def __init__(self, width=48, depth=14):
        super().__init__()
        self.inp = nn.Linear(10, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.alpha = nn.Parameter(torch.zeros(depth))
        self.out = nn.Linear(width, 1)

    def forward(self, x):
        h = self.inp(x)
        for a, layer in zip(self.alpha, self.layers, strict=True):
            h = h + a * F.gelu(layer(h))
        return self.out(h)[:, 0]

    def training_step(self, batch, batch_idx):
        loss = F.smooth_l1_loss(self(batch[0]), batch[1])
        self.log("huber/train", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self(batch[0])
        self.log("huber/val", F.smooth_l1_loss(out, batch[1]))
        self.log("val_mae", F.l1_loss(out, batch[1]))

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=0.05)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            opt, max_lr=4e-3, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return by_step(opt, cycle)


class ZeroHead(LightningModule):
    """The last layer starts at zero, so that the first prediction is the mean."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.head = nn.Linear(64, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.head(self.body(x)), y)
        self.log("mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self.head(self.body(batch[0])), batch[1]))

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=1.2e-2)
        total = int(self.trainer.estimated_stepping_batches)
        return by_step(opt, warm_cosine(opt, total, total // 20))


def zero_head_regression():
    g = seeded(31)
    x = torch.randn(6000, 8, generator=g)
    first = torch.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] - 0.3 * x[:, 3]
    second = torch.tanh(x[:, 4] + x[:, 5]) - 0.5 * x[:, 6].abs()
    y = torch.stack([first, second], 1)
    y = (y - y.mean(0)) / y.std(0) + 0.2 * torch.randn(y.shape, generator=g)
    return ZeroHead(), *loaders(x, y, batch_size=64)


class GaussianRegressor(LightningModule):
    """Predicts mean and deviation; the loss falls below zero and stops when it no longer does."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def nll(self, batch):
        x, y = batch
        mean, raw = self.net(x).unbind(1)
        return F.gaussian_nll_loss(mean, y, F.softplus(raw) ** 2 + 1e-4)

    def training_step(self, batch, batch_idx):
        loss = self.nll(batch)
        self.log("train_nll", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_nll", self.nll(batch))

    def configure_callbacks(self):
        return [EarlyStopping("val_nll", patience=6)]

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=3e-3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.3, patience=2)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": plateau, "monitor": "val_nll"}}


def gaussian_nll_early_stopped():
    g = seeded(12)
    x = torch.rand(6000, 1, generator=g) * 4 - 2
    noise = (0.05 + 0.15 * (x[:, 0] > 0)) * torch.randn(6000, generator=g)
    return GaussianRegressor(), *loaders(x, torch.sin(2 * x[:, 0]) + noise, batch_size=64)


class Quantiles(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
        )
        self.register_buffer("levels", torch.tensor([0.1, 0.5, 0.9]))

    def pinball(self, batch):
        x, y = batch
        error = y[:, None] - self.net(x)
        return torch.maximum(self.levels * error, (self.levels - 1) * error).mean(), error

    def training_step(self, batch, batch_idx):
        loss, _ = self.pinball(batch)
        self.log("train_pinball", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, error = self.pinball(batch)
        self.log("val_pinball", loss)
        self.log("val_coverage", ((error[:, 0] > 0) & (error[:, 2] < 0)).float().mean())

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, 8, 0.3)]


def quantile_regression():
    g = seeded(14)
    x = torch.randn(6000, 3, generator=g)
    noise = torch.randn(6000, generator=g).exp() * 0.3
    y = torch.sin(x[:, 0] * 2) + 0.5 * x[:, 1] + noise * (1 + x[:, 2].sigmoid())
    return Quantiles(), *loaders(x, y, batch_size=64)


class Siren(LightningModule):
    """Sines of high frequency with the initialisation of Sitzmann et al."""

    def __init__(self, width=64, omega=15.0):
        super().__init__()
        self.omega = omega
        self.layers = nn.ModuleList(nn.Linear(n, width) for n in (2, width, width))
        self.out = nn.Linear(width, 1)
        for i, layer in enumerate([*self.layers, self.out]):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.out(x)[:, 0]

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=1e-3)
        return annealed(self, opt)


def siren_picture():
    g = seeded(15)
    x = torch.rand(8000, 2, generator=g) * 2 - 1
    y = torch.sin(8 * x[:, 0]) * torch.cos(6 * x[:, 1]) + 0.5 * torch.sin(9 * (x**2).sum(1))
    return Siren(), *loaders(x, y + 0.1 * torch.randn(8000, generator=g), batch_size=128)


class PoissonPINN(LightningModule):
    """u'' = -pi^2 sin(pi x) with u = 0 at both ends; held out is the distance to sin(pi x)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )
        self.register_buffer("ends", torch.tensor([[-1.0], [1.0]]))

    def training_step(self, batch, batch_idx):
        x = batch[0].clone().requires_grad_()
        u = self.net(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        residual = ((ddu + math.pi**2 * torch.sin(math.pi * x)) ** 2).mean()
        border = (self.net(self.ends) ** 2).mean()
        loss = residual + 20 * border
        self.log_dict({"train_loss": loss, "residual": residual, "border": border})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self.net(batch[0]), torch.sin(math.pi * batch[0])))

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=5e-3)
        return annealed(self, opt)


def pinn_poisson():
    x = torch.rand(4000, 1, generator=seeded(16)) * 2 - 1
    return PoissonPINN(), *loaders(x, batch_size=64)


class TwoTasks(LightningModule):
    """A value and a class from one trunk."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU())
        self.value = nn.Linear(96, 1)
        self.kind = nn.Linear(96, 3)

    def losses(self, batch):
        x, y, c = batch
        h = self.trunk(x)
        logits = self.kind(h)
        accuracy = (logits.argmax(1) == c).float().mean()
        return F.mse_loss(self.value(h)[:, 0], y), F.cross_entropy(logits, c), accuracy

    def training_step(self, batch, batch_idx):
        mse, ce, _ = self.losses(batch)
        self.log_dict({"train_loss": mse + ce, "train_mse": mse, "train_ce": ce})
        return mse + ce

    def validation_step(self, batch, batch_idx):
        mse, ce, accuracy = self.losses(batch)
        self.log_dict({"val_loss": mse + ce, "val_mse": mse, "val_ce": ce, "val_acc": accuracy})

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=6e-3, weight_decay=0.02)
        return annealed(self, opt, warm=50)


def multitask_trunk():
    x, y = friedman(10000, seed=17)
    angle = torch.atan2(x[:, 5] + 0.5 * x[:, 7], x[:, 6])
    kind = torch.bucketize(angle, torch.tensor([-1.0, 1.0]))
    return TwoTasks(), *loaders(x, y, kind, batch_size=64)


# --- tables and classes --------------------------------------------------------------------


class WeightedClassifier(LightningModule):
    """One example in twelve is positive; the loss weighs it up."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 1))
        self.register_buffer("weight", torch.tensor(11.0))

    def training_step(self, batch, batch_idx):
        x, y = batch
        z = self.net(x)[:, 0]
        loss = F.binary_cross_entropy_with_logits(z, y, pos_weight=self.weight)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        z = self.net(x)[:, 0]
        loss = F.binary_cross_entropy_with_logits(z, y, pos_weight=self.weight)
        recalls = [((z > 0) == (y > 0.5))[y == c].float().sum() for c in (0, 1)]
        counts = [(y == c).sum().clamp_min(1) for c in (0, 1)]
        self.log("val_loss", loss)
        self.log("val_balanced_acc", sum(r / c for r, c in zip(recalls, counts, strict=True)) / 2)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=8e-3, weight_decay=0.01)
        return annealed(self, opt)


def imbalanced_weighted():
    g = seeded(18)
    y = (torch.rand(8000, generator=g) < 1 / 12).float()
    x = torch.randn(8000, 12, generator=g)
    x[:, :4] += 1.3 * y[:, None] * torch.tensor([1.0, -1.0, 1.0, 0.5])
    radius = torch.where(y > 0, 1.6, 1.0)
    x[:, 4:7] *= radius[:, None]
    return WeightedClassifier(), *loaders(x, y, batch_size=64, val_batch_size=2000)


class EarlyStopped(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))

    def configure_callbacks(self):
        return [EarlyStopping(monitor="val_loss", patience=10, min_delta=1e-3)]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=0.1)


class AveragedTanhNet(Classifier):
    """A tanh network whose weights are averaged over the last third (SWA)."""

    smoothing = 0.05

    def __init__(self):
        super().__init__()
        layers, width = [], 64
        for i in range(4):
            linear = nn.Linear(64 if i == 0 else width, width)
            nn.init.xavier_normal_(linear.weight, gain=nn.init.calculate_gain("tanh"))
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))
        self.swa = AveragedModel(self.net)
        self.swa.requires_grad_(False)

    def on_train_epoch_end(self):
        if self.current_epoch >= self.trainer.max_epochs * 2 // 3:
            self.swa.update_parameters(self.net)

    def forward(self, x):
        averaged = self.swa.n_averaged > 0 and not self.training
        return (self.swa if averaged else self.net)(x)

    def configure_optimizers(self):
        opt = torch.optim.SGD(
            self.net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
        end = self.trainer.max_epochs * 2 // 3
        anneal = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.3, total_iters=end)
        return {"optimizer": opt, "lr_scheduler": anneal}


def swa_tanh_net():
    x, y = images()
    return AveragedTanhNet(), *loaders(x.flatten(1), y, batch_size=32)


class OneEpoch(Classifier):
    """A wide network that sees thirty thousand examples once."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 6)
        )
        # negative biases make the features sparse; some units never fire
        nn.init.constant_(self.net[0].bias, -1.0)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.01)
        total = int(self.trainer.estimated_stepping_batches)
        return by_step(opt, warm_cosine(opt, total, total // 10))


def one_epoch_sparse_relu():
    g = seeded(19)
    y = torch.randint(0, 6, (40000,), generator=g)
    centres = torch.randn(6, 2, 16, generator=g) * 1.1
    side = torch.randint(0, 2, (40000,), generator=g)
    x = (centres[y, side] + torch.randn(40000, 16, generator=g)) / 1.5
    return OneEpoch(), *loaders(x, y, batch_size=64, val_batch_size=1000)


class Student(LightningModule):
    def __init__(self, temperature=3.0):
        super().__init__()
        self.teacher = nn.Sequential(backbone(), nn.Linear(64, 10))
        self.teacher[0].load_state_dict(pretrained())
        self.teacher.requires_grad_(False)
        self.student = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
        self.temperature = temperature

    def on_fit_start(self):
        """The teacher's last layer is solved for, upon the features it has."""
        self.teacher.eval()
        x, y = images()
        z = self.teacher[0](x[:1347])
        z = torch.cat([z, torch.ones(len(z), 1)], 1)
        target = 8 * (F.one_hot(y[:1347], 10).float() - 0.1)
        solution = torch.linalg.solve(z.T @ z + 5 * torch.eye(65), z.T @ target)
        self.teacher[1].weight.data.copy_(solution[:-1].T)
        self.teacher[1].bias.data.copy_(solution[-1])

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.teacher.eval()
        x = shifted(x) if batch_idx % 2 else x
        with torch.no_grad():
            soft = F.softmax(self.teacher(x) / self.temperature, 1)
        out = self.student(x.flatten(1))
        kd = F.cross_entropy(out / self.temperature, soft) * self.temperature
        loss = 0.5 * kd + 0.5 * F.cross_entropy(out, y)
        self.log("kd/train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self.student(x.flatten(1))
        self.log("kd/val_loss", F.cross_entropy(out, y))
        self.log("kd/val_acc", (out.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        opt = torch.optim.SGD(
            self.student.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        return [opt], [torch.optim.lr_scheduler.MultiStepLR(opt, [14, 18], 0.1)]


# --- language and sequences ----------------------------------------------------------------


def markov_text(length=24000, letters=20, seed=23):
    """Letters drawn from a chain of second order in which few may follow each pair."""
    g = seeded(seed)
    table = torch.randn(letters, letters, generator=g) * 2.5
    second = torch.randn(letters, letters, generator=g) * 1.0
    odds = (table[:, None] + second[None]).softmax(-1)
    noise = torch.rand(length, generator=g).tolist()
    rows = odds.cumsum(-1)
    text = [0, 1]
    for u in noise:
        row = rows[text[-1], text[-2]]
        text.append(min(int((row < u).sum()), letters - 1))
    return torch.tensor(text)


def windows(text, size):
    usable = (len(text) - 1) // size * size
    return text[:usable].view(-1, size), text[1 : usable + 1].view(-1, size)


class LetterLSTM(LightningModule):
    def __init__(self, letters=20, width=96):
        super().__init__()
        self.embed = nn.Embedding(letters, 32)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(width, letters)

    def loss(self, batch):
        x, y = batch
        h, _ = self.lstm(self.embed(x))
        return F.cross_entropy(self.out(self.drop(h)).flatten(0, 1), y.flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("val_loss", loss)
        self.log("val_perplexity", loss.exp())

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=4e-3)
        return annealed(self, opt)


class CausalTransformer(LightningModule):
    def __init__(self, letters, size, width=48, layers=2):
        super().__init__()
        self.tokens = nn.Embedding(letters, width)
        self.places = nn.Parameter(torch.randn(size, width) * 0.02)
        nn.init.normal_(self.tokens.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(size))
        self.head = nn.Linear(width, letters)

    def forward(self, x):
        h = self.tokens(x) + self.places
        return self.head(self.norm(self.blocks(h, mask=self.mask, is_causal=True)))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]).transpose(1, 2), batch[1])
        self.log("train/loss", loss, on_step=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0]).transpose(1, 2), batch[1]))

    def configure_optimizers(self):
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}]
        opt = torch.optim.AdamW(groups, lr=4e-3, betas=(0.9, 0.98))
        return annealed(self, opt, warm=100)


def causal_transformer_warmup():
    text = markov_text(seed=24)
    return CausalTransformer(20, 24), *loaders(*windows(text, 24), batch_size=16)


class Copier(LightningModule):
    """Each output letter is the input letter that a pointer names; attention turns sharp."""

    def __init__(self, size=12, letters=16, width=48):
        super().__init__()
        self.tokens = nn.Embedding(letters, width)
        self.places = nn.Embedding(size, width)
        self.asked = nn.Embedding(size, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, letters)

    def forward(self, text, order):
        keys = self.places.weight + self.tokens(text)
        found, _ = self.attention(self.asked(order), keys, keys, need_weights=False)
        return self.head(found)

    def training_step(self, batch, batch_idx):
        text, order = batch
        loss = F.cross_entropy(self(text, order).flatten(0, 1), text.gather(1, order).flatten())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        text, order = batch
        out, target = self(text, order), text.gather(1, order)
        self.log("val_loss", F.cross_entropy(out.flatten(0, 1), target.flatten()))
        self.log("val_acc", (out.argmax(-1) == target).float().mean())

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.01)
        total = int(self.trainer.estimated_stepping_batches)
        return by_step(opt, warm_cosine(opt, total, total // 20))


def sharp_copy_attention():
    g = seeded(25)
    text = torch.randint(0, 16, (8000, 12), generator=g)
    order = torch.rand(8000, 12, generator=g).argsort(1)
    return Copier(), *loaders(text, order, batch_size=64)


# --- generative models ---------------------------------------------------------------------


def ring(n=4000, seed=26):
    g = seeded(seed)
    angle = torch.rand(n, generator=g) * 2 * math.pi
    points = torch.stack([angle.cos(), 0.6 * angle.sin()], 1)
    return points + 0.08 * torch.randn(n, 2, generator=g)


def energy_distance(a, b):
    cross, inner = torch.cdist(a, b).mean(), torch.cdist(a, a).mean() + torch.cdist(b, b).mean()
    return 2 * cross - inner


class RingGAN(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        )
        self.critic = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)
        )
        self.verdict = nn.Linear(64, 1)
        self.average = AveragedModel(self.generator, multi_avg_fn=get_ema_multi_avg_fn(0.98))
        self.average.requires_grad_(False)

    def judge(self, x):
        return self.verdict(self.critic(x))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        for_g, for_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        real = real.clone().requires_grad_()
        score = self.judge(real)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        d_loss = F.softplus(-score).mean() + F.softplus(self.judge(fake.detach())).mean()
        d_loss = d_loss + 0.1 * slope.pow(2).sum(1).mean()
        for_d.zero_grad()
        self.manual_backward(d_loss)
        for_d.step()
        g_loss = F.softplus(-self.judge(fake)).mean()
        for_g.zero_grad()
        self.manual_backward(g_loss)
        for_g.step()
        self.average.update_parameters(self.generator)
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss})

    def validation_step(self, batch, batch_idx):
        (real,) = batch
        noise = torch.randn(1000, 4, generator=seeded(1))
        self.log("val_energy", energy_distance(self.average(noise), real))

    def configure_optimizers(self):
        judge = [*self.critic.parameters(), *self.verdict.parameters()]
        return (
            torch.optim.Adam(self.generator.parameters(), lr=1e-3, betas=(0.5, 0.99)),
            torch.optim.Adam(judge, lr=1e-3, betas=(0.5, 0.99)),
        )


class DigitVAE(LightningModule):
    def __init__(self, latent=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 128), nn.ReLU(), nn.Linear(128, 64))

    def elbo(self, x):
        mean, logvar = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        nll = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)
        return nll.mean(), kl.mean()

    def training_step(self, batch, batch_idx):
        nll, kl = self.elbo(batch[0])
        self.log_dict({"train_nll": nll, "train_kl": kl})
        self.log("train_loss", nll + kl, prog_bar=True)
        return nll + kl

    def validation_step(self, batch, batch_idx):
        nll, kl = self.elbo(batch[0])
        self.log("val_loss", nll + kl, prog_bar=True)

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=6e-3)
        return annealed(self, opt)


class RingDiffusion(LightningModule):
    """Predicts the noise; the loss hardly falls after the first epochs, as it must."""

    def __init__(self, steps=50):
        super().__init__()
        alphas = torch.cos(torch.linspace(0.02, 1.5, steps)) ** 2
        self.register_buffer("alphas", alphas)
        self.net = nn.Sequential(
            nn.Linear(2 + 16, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)
        self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        self.ema.requires_grad_(False)

    def loss(self, net, x, t, noise):
        a = self.alphas[t][:, None]
        phase = t[:, None] / len(self.alphas) * torch.arange(1, 9) * math.pi / 2
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        return F.mse_loss(net(torch.cat([noisy, phase.sin(), phase.cos()], 1)), noise)

    def training_step(self, batch, batch_idx):
        x = batch[0]
        t = torch.randint(0, len(self.alphas), (len(x),))
        loss = self.loss(self.net, x, t, torch.randn_like(x))
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.ema.update_parameters(self.net)

    def validation_step(self, batch, batch_idx):
        g = seeded(batch_idx)
        x = batch[0].repeat(8, 1)
        t = torch.randint(0, len(self.alphas), (len(x),), generator=g)
        self.log("val_loss", self.loss(self.ema, x, t, torch.randn(x.shape, generator=g)))

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.net.parameters(), lr=1e-2, weight_decay=0.01)
        return annealed(self, opt, warm=50)


def diffusion_ring_ema():
    points = ring(6000, seed=27) / ring(6000, seed=27).std(0)
    return RingDiffusion(), *loaders(points, batch_size=128, val_batch_size=1500)


class DigitAutoencoder(LightningModule):
    """Ink between 0 and 1, sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())

    def training_step(self, batch, batch_idx):
        x = batch[0]
        loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log("recon/train", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("recon/val", F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0]))

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [opt], [torch.optim.lr_scheduler.MultiStepLR(opt, [35, 45], 0.2)]


class Coupling(nn.Module):
    def __init__(self, flip, width=48):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(
            nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        a, b = x.flip(1).chunk(2, 1) if self.flip else x.chunk(2, 1)
        scale, shift = self.net(a).chunk(2, 1)
        scale = 2 * torch.tanh(scale)
        y = torch.cat([a, b * scale.exp() + shift], 1)
        return (y.flip(1) if self.flip else y), scale[:, 0]


class RealNVP(LightningModule):
    def __init__(self, depth=6):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2 == 1) for i in range(depth))

    def nll(self, x):
        total = 0.0
        for layer in self.layers:
            x, logdet = layer(x)
            total = total + logdet
        return (0.5 * (x**2).sum(1) + math.log(2 * math.pi) - total).mean()

    def training_step(self, batch, batch_idx):
        loss = self.nll(batch[0])
        self.log("nll", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_nll", self.nll(batch[0]))

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=6e-3)
        return annealed(self, opt, warm=30)


class PairContrast(LightningModule):
    """Two noisy views of each digit find one another among the batch (NT-Xent)."""

    def __init__(self, temperature=0.2):
        super().__init__()
        self.temperature = temperature
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32)
        )

    def contrast(self, x, g=None):
        views = [x + 0.5 * torch.randn(x.shape, generator=g) for _ in range(2)]
        a, b = (F.normalize(self.net(v), dim=1) for v in views)
        logits = a @ b.T / self.temperature
        return logits, torch.arange(len(x))

    def training_step(self, batch, batch_idx):
        logits, own = self.contrast(batch[0])
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits, own = self.contrast(batch[0], seeded(batch_idx))
        self.log("val_loss", F.cross_entropy(logits, own))
        self.log("val_top1_acc", (logits.argmax(1) == own).float().mean())

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        return annealed(self, opt, warm=40)


def contrastive_views():
    x = images()[0].flatten(1)
    return PairContrast(), *loaders(x, batch_size=64, val_batch_size=64)


# --- reinforcement learning ----------------------------------------------------------------

SIDE = 5
MOVES = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])


def walk(place, action):
    """One step in a square room; the goal is the far corner."""
    after = (place + MOVES[action]).clamp(0, SIDE - 1)
    return after, (after == SIDE - 1).all(-1)


def seen(place):
    return torch.cat([F.one_hot(place[..., 0], SIDE), F.one_hot(place[..., 1], SIDE)], -1).float()


def steps_to_goal(choose, place, limit=30):
    """The mean number of steps that the policy needs from these places."""
    done = torch.zeros(len(place), dtype=torch.bool)
    count = torch.zeros(len(place))
    for _ in range(limit):
        count += ~done
        after, arrived = walk(place, choose(seen(place)))
        place = torch.where(done[:, None], place, after)
        done = done | arrived
    return count.mean()


def starts(n, seed):
    cells = torch.randint(0, SIDE * SIDE - 1, (n,), generator=seeded(seed))
    return torch.stack([cells // SIDE, cells % SIDE], 1)


class RoomDQN(LightningModule):
    """Double Q-learning from stored random steps, with a slowly following target."""

    def __init__(self, gamma=0.9):
        super().__init__()
        self.q = nn.Sequential(nn.Linear(2 * SIDE, 64), nn.ReLU(), nn.Linear(64, 4))
        self.target = nn.Sequential(nn.Linear(2 * SIDE, 64), nn.ReLU(), nn.Linear(64, 4))
        self.target.load_state_dict(self.q.state_dict())
        self.target.requires_grad_(False)
        self.gamma = gamma

    def td_error(self, batch):
        place, action = batch
        after, done = walk(place, action)
        with torch.no_grad():
            best = self.q(seen(after)).argmax(1, keepdim=True)
            future = self.target(seen(after)).gather(1, best)[:, 0]
            goal = done.float() + self.gamma * future * ~done
        return F.smooth_l1_loss(self.q(seen(place)).gather(1, action[:, None])[:, 0], goal)

    def training_step(self, batch, batch_idx):
        loss = self.td_error(batch)
        self.log("td_loss", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.q.parameters(), strict=True):
                slow.lerp_(fast, 0.02)

    def validation_step(self, batch, batch_idx):
        self.log("val_td", self.td_error(batch))
        self.log("val_steps", steps_to_goal(lambda s: self.q(s).argmax(-1), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.q.parameters(), lr=1e-3)


def dqn_room():
    places = starts(6000, 29)
    actions = torch.randint(0, 4, (6000,), generator=seeded(30))
    return RoomDQN(), *loaders(places, actions, batch_size=64, val_batch_size=1500)


class RoomPolicy(LightningModule):
    """Policy gradient with a learned baseline; each batch is a set of starts."""

    def __init__(self, gamma=0.95, horizon=16):
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(2 * SIDE, 64), nn.Tanh(), nn.Linear(64, 4))
        self.baseline = nn.Sequential(nn.Linear(2 * SIDE, 64), nn.Tanh(), nn.Linear(64, 1))
        self.gamma, self.horizon = gamma, horizon

    def training_step(self, batch, batch_idx):
        place, alive = batch[0], torch.ones(len(batch[0]))
        logps, entropies, values, rewards, masks = [], [], [], [], []
        for _ in range(self.horizon):
            state = seen(place)
            choice = torch.distributions.Categorical(logits=self.policy(state))
            action = choice.sample()
            place, done = walk(place, action)
            logps.append(choice.log_prob(action))
            entropies.append(choice.entropy())
            values.append(self.baseline(state)[:, 0])
            rewards.append(done.float() * alive)
            masks.append(alive)
            alive = alive * ~done
        returns, total = [], torch.zeros(len(place))
        for reward in reversed(rewards):
            total = reward + self.gamma * total
            returns.insert(0, total)
        logp, entropy, value, mask = map(torch.stack, (logps, entropies, values, masks))
        advantage = torch.stack(returns) - value
        weights = mask / mask.sum()
        policy_loss = -(logp * advantage.detach() * weights).sum()
        value_loss = (advantage**2 * weights).sum()
        loss = policy_loss + 0.5 * value_loss - 0.005 * (entropy * weights).sum()
        self.log("train_loss", loss)
        self.log("return", torch.stack(rewards).sum(0).mean(), prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_steps", steps_to_goal(lambda s: self.policy(s).argmax(-1), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


# --- routing, sparse, discrete -------------------------------------------------------------


class SparseExperts(LightningModule):
    """Two of six experts serve each example; clusters are unequal, and so is their use."""

    def __init__(self, experts=6, width=32):
        super().__init__()
        self.gate = nn.Linear(6, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 1))
            for _ in range(experts)
        )

    def forward(self, x):
        top, which = self.gate(x).topk(2, 1)
        weights = torch.zeros(len(x), len(self.experts)).scatter(1, which, top.softmax(1))
        outs = torch.cat([expert(x) for expert in self.experts], 1)
        return (weights * outs).sum(1), weights

    def training_step(self, batch, batch_idx):
        out, weights = self(batch[0])
        loss = F.mse_loss(out, batch[1])
        self.log("train_mse", loss)
        self.log("least_used", (weights > 0).float().mean(0).min())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0])[0], batch[1]))

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=1.2e-2, weight_decay=0.01)
        return annealed(self, opt)


def experts_rarely_used():
    g = seeded(33)
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    kind = torch.multinomial(shares, 8000, replacement=True, generator=g)
    centres = torch.randn(4, 6, generator=g) * 1.5
    x = centres[kind] + 0.7 * torch.randn(8000, 6, generator=g)
    slopes = torch.randn(4, 6, generator=g)
    y = (slopes[kind] * (x - centres[kind])).sum(1) + torch.randn(4, generator=g)[kind]
    y = (y - y.mean()) / y.std() + 0.1 * torch.randn(8000, generator=g)
    return SparseExperts(), *loaders((x - x.mean(0)) / x.std(0), y, batch_size=64)


class SparseFactors(LightningModule):
    """Ratings from sparse user and item vectors, a second optimizer for the dense part."""

    def __init__(self, users, items, width=6):
        super().__init__()
        self.automatic_optimization = False
        self.user = nn.Embedding(users, width, sparse=True)
        self.item = nn.Embedding(items, width, sparse=True)
        nn.init.normal_(self.user.weight, std=0.3)
        nn.init.normal_(self.item.weight, std=0.3)
        self.dense = nn.Linear(width, 1)
        nn.init.ones_(self.dense.weight)

    def forward(self, u, i):
        return self.dense(self.user(u) * self.item(i))[:, 0]

    def training_step(self, batch, batch_idx):
        u, i, rating = batch
        loss = F.mse_loss(self(u, i), rating)
        for opt in self.optimizers():
            opt.zero_grad()
        self.manual_backward(loss)
        for opt in self.optimizers():
            opt.step()
        self.log("train_mse", loss)

    def on_train_epoch_end(self):
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def validation_step(self, batch, batch_idx):
        u, i, rating = batch
        self.log("val_mse", F.mse_loss(self(u, i), rating))

    def configure_optimizers(self):
        tables = [*self.user.parameters(), *self.item.parameters()]
        sparse = torch.optim.SparseAdam(tables, lr=1e-2)
        dense = torch.optim.Adam(self.dense.parameters(), lr=1e-3)
        steps = [torch.optim.lr_scheduler.StepLR(o, 4, 0.3) for o in (sparse, dense)]
        return [sparse, dense], steps


def sparse_factors_two_optimizers():
    g = seeded(34)
    u = torch.randint(0, 120, (20000,), generator=g)
    i = torch.randint(0, 80, (20000,), generator=g)
    users, items = torch.randn(120, 6, generator=g), torch.randn(80, 6, generator=g)
    rating = (users[u] * items[i]).sum(1) / math.sqrt(6)
    rating = rating + 0.3 * torch.randn(20000, generator=g)
    return SparseFactors(120, 80), *loaders(u, i, rating, batch_size=128, val_batch_size=1000)


class Sign(torch.autograd.Function):
    """Signs forward, straight through where the input is within one."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class BinaryNet(Classifier):
    smoothing = 0.1

    def __init__(self, width=256):
        super().__init__()
        self.first = nn.Linear(64, width)
        self.norm1 = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width, bias=False)
        self.norm2 = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 10)

    def forward(self, x):
        h = Sign.apply(self.norm1(self.first(x)))
        h = F.linear(h, Sign.apply(self.second.weight))
        return self.last(Sign.apply(self.norm2(h)))

    def configure_optimizers(self):
        opt = torch.optim.Adam(self.parameters(), lr=2e-3)
        return annealed(self, opt)


def binarized_straight_through():
    x, y = images()
    return BinaryNet(), *loaders(x.flatten(1), y, batch_size=64)


class Spike(torch.autograd.Function):
    """A threshold forward, the slope of a fast sigmoid backward."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).float()

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return grad / (1 + 5 * v.abs()) ** 2


class SpikingNet(Classifier):
    """Leaky integrate-and-fire units over eight time steps."""

    def __init__(self, width=128, steps=8, leak=0.8):
        super().__init__()
        self.inp = nn.Linear(64, width)
        self.out = nn.Linear(width, 10)
        self.steps, self.leak = steps, leak

    def forward(self, x):
        current = self.inp(x)
        v, total = torch.zeros_like(current), 0.0
        for _ in range(self.steps):
            v = self.leak * v + current
            spike = Spike.apply(v - 1)
            v = v - spike.detach()
            total = total + self.out(spike)
        return total / self.steps

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=1.2e-2, weight_decay=0.05)
        return [opt], [torch.optim.lr_scheduler.StepLR(opt, 5, 0.3)]


def spiking_digits():
    x, y = images()
    return SpikingNet(), *loaders(x.flatten(1), y, batch_size=32)


PROGRAMS = [
    Program(
        "tenth_warmup_cosine_convnet",
        lambda: (SmallConvNet(), *loaders(*images(), batch_size=64)),
        every(25),
        metric="val_acc",
    ),
    Program(
        "tenth_onecycle_gamma_zero_resnet",
        lambda: (GammaZeroResNet(), *loaders(*images(), batch_size=64)),
        every(12),
        metric="acc/val_acc",
    ),
    Program(
        "tenth_label_noise_nesterov_multistep",
        label_noise_nesterov_multistep,
        every(30),
        metric="val/acc",
    ),
    Program(
        "tenth_dropout_accumulated_mlp",
        dropout_accumulated_mlp,
        every(20, accumulate_grad_batches=4),
    ),
    Program(
        "tenth_batch_of_four_groupnorm",
        lambda: (GroupNormNet(), *loaders(*images(), batch_size=4)),
        every(5),
    ),
    Program(
        "tenth_batch_of_two_cancer",
        lambda: (CancerPairs(), *loaders(*standardized("breast_cancer"), batch_size=2)),
        every(8),
        metric="val_bce",
    ),
    Program(
        "tenth_frozen_backbone_new_head",
        lambda: (ParityHead(), *loaders(images()[0], images()[1] % 2, batch_size=32)),
        every(20),
    ),
    Program(
        "tenth_batchnorm_frozen_finetune", batchnorm_frozen_finetune, every(10), metric="ft_val_acc"
    ),
    Program("tenth_zero_adapters_on_frozen_body", zero_adapters_on_frozen_body, every(15)),
    Program(
        "tenth_controlnet_zero_convolutions",
        controlnet_zero_convolutions,
        every(30),
        metric="val_mse",
    ),
    Program("tenth_frozen_embeddings_gru", frozen_embeddings_gru, every(9)),
    Program("tenth_head_on_random_features", head_on_random_features, every(25), metric="val_loss"),
    Program(
        "tenth_plateau_friedman",
        lambda: (PlateauRegressor(), *loaders(*friedman(8000), batch_size=64)),
        every(22),
    ),
    Program(
        "tenth_rezero_onecycle",
        lambda: (ReZeroNet(), *loaders(*friedman(6000, seed=6), batch_size=64)),
        every(16),
        metric="huber/val",
    ),
    Program("tenth_zero_head_regression", zero_head_regression, every(15), metric="val_mse"),
    Program(
        "tenth_gaussian_nll_early_stopped", gaussian_nll_early_stopped, every(30), metric="val_nll"
    ),
    Program("tenth_quantile_regression", quantile_regression, every(20), metric="val_pinball"),
    Program("tenth_siren_picture", siren_picture, every(25)),
    Program("tenth_pinn_poisson", pinn_poisson, every(30), metric="val_mse"),
    Program("tenth_multitask_trunk", multitask_trunk, every(15)),
    Program("tenth_imbalanced_weighted", imbalanced_weighted, every(10)),
    Program(
        "tenth_early_stopped_wine",
        lambda: (EarlyStopped(), *loaders(*standardized("wine"), batch_size=8)),
        every(60),
    ),
    Program("tenth_swa_tanh_net", swa_tanh_net, every(24), metric="val_acc"),
    Program("tenth_one_epoch_sparse_relu", one_epoch_sparse_relu, every(1)),
    Program(
        "tenth_distilled_student",
        lambda: (Student(), *loaders(*images(), batch_size=32)),
        every(20),
        metric="kd/val_acc",
    ),
    Program(
        "tenth_lstm_language_model_clipped",
        lambda: (LetterLSTM(), *loaders(*windows(markov_text(), 24), batch_size=16)),
        every(12, gradient_clip_val=1.0),
    ),
    Program(
        "tenth_causal_transformer_warmup",
        causal_transformer_warmup,
        every(12, gradient_clip_val=1.0),
        metric="val/loss",
    ),
    Program("tenth_sharp_copy_attention", sharp_copy_attention, every(10)),
    Program(
        "tenth_gan_ring",
        lambda: (RingGAN(), *loaders(ring(), batch_size=64, val_batch_size=1000)),
        every(25),
        metric="val_energy",
    ),
    Program(
        "tenth_vae_digits",
        lambda: (DigitVAE(), *loaders(bundled("digits")[0] / 16, batch_size=64)),
        every(50),
    ),
    Program("tenth_diffusion_ring_ema", diffusion_ring_ema, every(25)),
    Program(
        "tenth_sigmoid_autoencoder",
        lambda: (DigitAutoencoder(), *loaders(bundled("digits")[0] / 16, batch_size=32)),
        every(50),
        metric="recon/val",
    ),
    Program(
        "tenth_realnvp_ring",
        lambda: (RealNVP(), *loaders(ring(8000, seed=28), batch_size=128, val_batch_size=2000)),
        every(30, gradient_clip_val=1.0),
        metric="val_nll",
    ),
    Program("tenth_contrastive_views", contrastive_views, every(25)),
    Program("tenth_dqn_room", dqn_room, every(15), metric="val_steps"),
    Program(
        "tenth_policy_gradient_room",
        lambda: (RoomPolicy(), *loaders(starts(1024, 32), batch_size=32, val_batch_size=256)),
        every(12),
        metric="val_steps",
    ),
    Program("tenth_experts_rarely_used", experts_rarely_used, every(15), metric="val_mse"),
    Program(
        "tenth_sparse_factors_two_optimizers",
        sparse_factors_two_optimizers,
        every(12),
        metric="val_mse",
    ),
    Program(
        "tenth_binarized_straight_through", binarized_straight_through, every(30), metric="val_acc"
    ),
    Program("tenth_spiking_digits", spiking_digits, every(15)),
]
