"""Healthy fits of kinds that may look odd: schedules, noise, small batches, frozen parts."""

import copy
import functools
import math

import sklearn.datasets
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from tests.corpus.program import Program, bundled, images, loaders, standardized


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).float().mean()


class Classifier(LightningModule):
    """Cross-entropy on the output of ``self.net``."""

    smoothing = 0.0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y, label_smoothing=self.smoothing)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", accuracy(logits, y))


# 1: linear warm-up, then cosine decay; AdamW as usual


class WarmupCosine(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.GELU(), nn.Dropout(0.4), nn.Linear(128, 64), nn.GELU()
        ).append(nn.Linear(64, 10))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)
        total, warmup = self.trainer.estimated_stepping_batches, 100

        def factor(step):
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def warmup_cosine():
    return WarmupCosine(), *loaders(*standardized("digits"))


# 2: one-cycle on a BatchNorm CNN


class OneCycleCNN(LightningModule):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.features(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss/train", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log_dict({"loss/val": F.cross_entropy(logits, y), "val_acc": accuracy(logits, y)})

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(
            self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.2, total_steps=self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def onecycle_cnn():
    return OneCycleCNN(), *loaders(*images(), batch_size=32, val_batch_size=450)


# 3: residual branches that begin at zero, step decay


class ZeroBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x):
        out = F.relu(self.norm1(self.first(x)))
        return F.relu(x + self.norm2(self.second(out)))


class ZeroResidual(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            ZeroBlock(16),
            nn.MaxPool2d(2),
            ZeroBlock(16),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [7, 11], 0.1)]


def zero_residual():
    return ZeroResidual(), *loaders(*images(), batch_size=64)


# 4: Huber loss on noisy targets, reduced on a plateau


@functools.cache
def waves(count=3000):
    random = torch.Generator().manual_seed(11)
    x = torch.rand(count, 3, generator=random) * 4 - 2
    clean = torch.sin(2 * x[:, :1]) + 0.5 * x[:, 1:2] ** 2 - x[:, 1:2] * x[:, 2:]
    noise = torch.randn(count, 1, generator=random) * 0.5
    outliers = torch.rand(count, 1, generator=random) < 0.03
    return x, clean + noise * torch.where(outliers, 8.0, 1.0)


class PlateauHuber(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )
        self.criterion = nn.HuberLoss(delta=1.0)

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self.model(batch[0]), batch[1])
        self.log("train_huber", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.criterion(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"},
        }


def plateau_huber():
    return PlateauHuber(), *loaders(*waves(), batch_size=64, val_batch_size=256)


# 5 and 6: a trunk that was pretrained elsewhere, frozen or tuned slowly


def trunk_layers():
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
    )


@functools.cache
def pretrained():
    """The trunk's weights after a short training on the digits 0 to 4."""
    inputs, labels = images()
    inputs, labels = inputs[labels < 5], labels[labels < 5]
    with torch.random.fork_rng():
        torch.manual_seed(100)
        trunk, head = trunk_layers(), nn.Linear(512, 5)
        optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=2e-3)
        for _ in range(150):
            rows = torch.randint(len(inputs), (64,))
            loss = F.cross_entropy(head(trunk(inputs[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return trunk.state_dict()


class FrozenTrunk(LightningModule):
    def __init__(self):
        super().__init__()
        self.trunk = trunk_layers()
        self.trunk.load_state_dict(pretrained())
        self.trunk.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 5))

    def train(self, mode=True):
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            hidden = self.trunk(x)
        return self.head(hidden)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", accuracy(logits, y), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.head.parameters(), lr=5e-4, weight_decay=0.05)


def frozen_trunk():
    inputs, labels = images()
    rows = labels >= 5
    return FrozenTrunk(), *loaders(inputs[rows], labels[rows] - 5, batch_size=16)


class FineTune(Classifier):
    def __init__(self):
        super().__init__()
        self.trunk = trunk_layers()
        self.trunk.load_state_dict(pretrained())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(512, 10))

    def forward(self, x):
        return self.head(self.trunk(x))

    def configure_optimizers(self):
        groups = [
            {"params": self.trunk.parameters(), "lr": 5e-5},
            {"params": self.head.parameters(), "lr": 1e-3},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]


def fine_tune():
    return FineTune(), *loaders(*images(), batch_size=32)


# 7: a transformer whose output layer begins at zero, label smoothing


@functools.cache
def reversals(count=4000, length=10, vocabulary=12):
    random = torch.Generator().manual_seed(21)
    tokens = torch.randint(vocabulary, (count, length), generator=random)
    return tokens, tokens.flip(1)


class Reverser(Classifier):
    smoothing = 0.1

    def __init__(self, width=48):
        super().__init__()
        self.token = nn.Embedding(12, width)
        self.position = nn.Parameter(torch.randn(10, width) * 0.5)
        layer = nn.TransformerEncoderLayer(
            width, 4, 96, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 12)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        hidden = self.encoder(self.token(x) + self.position)
        return self.out(self.norm(hidden)).transpose(1, 2)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", accuracy(logits.transpose(1, 2), y))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98)
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 2e-3, total_steps=self.trainer.estimated_stepping_batches, pct_start=0.1
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def transformer_reverse():
    return Reverser(), *loaders(*reversals(), batch_size=64)


# 8: batches of four, plain SGD


class BatchOfFour(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 3))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, weight_decay=1e-3)


def batch_of_four():
    return BatchOfFour(), *loaders(*standardized("wine"), batch_size=4)


# 9: 15 % of the labels are wrong


@functools.cache
def noisy_moons(count=4000):
    x, y = sklearn.datasets.make_moons(count, noise=0.2, random_state=5)
    random = torch.Generator().manual_seed(5)
    y = torch.as_tensor(y)
    flip = torch.rand(count, generator=random) < 0.15
    return torch.as_tensor(x).float(), torch.where(flip, 1 - y, y).long()


class NoisyLabels(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
        )

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def noisy_labels():
    return NoisyLabels(), *loaders(*noisy_moons(), batch_size=32)


# 10: one positive in sixteen, weighted


@functools.cache
def imbalanced(count=6000):
    x, y = sklearn.datasets.make_classification(
        count,
        n_features=16,
        n_informative=8,
        n_redundant=2,
        weights=[0.94],
        class_sep=1.3,
        flip_y=0.01,
        random_state=8,
    )
    x = torch.as_tensor(x).float()
    return (x - x.mean(0)) / x.std(0), torch.as_tensor(y).float()


class WeightedRare(LightningModule):
    def __init__(self, weight):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1))
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.criterion(self.mlp(x).squeeze(-1), y)
        self.log("bce", loss)
        return loss

    def on_validation_epoch_start(self):
        self.seen = []

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.mlp(x).squeeze(-1)
        self.log("val_loss", self.criterion(logits, y))
        self.seen.append((logits > 0, y > 0.5))

    def on_validation_epoch_end(self):
        guess, truth = (torch.cat(part) for part in zip(*self.seen, strict=True))
        recalls = [(guess[truth == side] == side).float().mean() for side in (True, False)]
        self.log("val_balanced_acc", sum(recalls) / 2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=1e-4)


def weighted_rare():
    return WeightedRare(14.0), *loaders(*imbalanced(), batch_size=64, val_batch_size=500)


# 11: half of every hidden layer dropped


class HeavyDropout(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(64, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 10),
        )

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-4, weight_decay=1e-4)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def heavy_dropout():
    return HeavyDropout(), *loaders(*standardized("digits"), batch_size=32)


# 12: strong augmentation, so that training looks worse than validation


class Augmented(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.GroupNorm(4, 24),
            nn.GELU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.GroupNorm(4, 48),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(768, 10),
        )

    def augment(self, x):
        dx, dy = torch.randint(-1, 2, (2,)).tolist()
        x = torch.roll(x, (dx, dy), (2, 3)) + 0.4 * torch.randn_like(x)
        top, left = torch.randint(0, 5, (2, len(x), 1, 1, 1))
        row = torch.arange(8).view(1, 1, 8, 1)
        column = torch.arange(8).view(1, 1, 1, 8)
        hole = (row >= top) & (row < top + 4) & (column >= left) & (column < left + 4)
        return x.masked_fill(hole, 0.0)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(self.augment(x))
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss)
        self.log("train_acc", accuracy(logits, y))
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]


def augmented():
    return Augmented(), *loaders(*images(), batch_size=32)


# 13: a GRU with an L1 loss and clipped gradients


@functools.cache
def tones(count=2500, length=24):
    random = torch.Generator().manual_seed(31)
    pitch = torch.rand(count, 1, generator=random) * 1.2 + 0.2
    phase = torch.rand(count, 1, generator=random) * 2 * math.pi
    signal = torch.sin(pitch * torch.arange(length) + phase)
    signal = signal + 0.1 * torch.randn(count, length, generator=random)
    return signal.unsqueeze(-1), (pitch - 0.8) / 0.35


class PitchGRU(LightningModule):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(1, 32, batch_first=True)
        self.fc = nn.Linear(32, 1)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])

    def training_step(self, batch, batch_idx):
        loss = F.l1_loss(self(batch[0]), batch[1])
        self.log("train_mae", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mae", F.l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]


def gru_pitch():
    return PitchGRU(), *loaders(*tones(), batch_size=50, val_batch_size=625)


# 14: a language model of an LSTM with tied weights; some tokens are rare


@functools.cache
def sentences(count=2400, length=17, vocabulary=40):
    random = torch.Generator().manual_seed(41)
    popular = 1.0 / torch.arange(1, vocabulary + 1)
    moves = 0.15 * popular / popular.sum() * torch.ones(vocabulary, 1)
    follow = torch.stack([torch.randperm(vocabulary, generator=random)[:2] for _ in moves])
    moves.scatter_add_(1, follow, torch.tensor([[0.6, 0.25]]).expand(vocabulary, 2))
    token = torch.multinomial(popular, count, replacement=True, generator=random)
    tokens = [token]
    for _ in range(length - 1):
        token = torch.multinomial(moves[token], 1, generator=random).squeeze(1)
        tokens.append(token)
    return (torch.stack(tokens, 1),)


class TiedLSTM(LightningModule):
    def __init__(self, width=48):
        super().__init__()
        self.embed = nn.Embedding(40, width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.decoder = nn.Linear(width, 40)
        self.decoder.weight = self.embed.weight

    def loss(self, tokens):
        hidden, _ = self.lstm(self.drop(self.embed(tokens[:, :-1])))
        logits = self.decoder(self.drop(hidden))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch[0])
        self.log("nll", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch[0]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]


def lstm_tied():
    return TiedLSTM(), *loaders(*sentences(), batch_size=32, val_batch_size=200)


# 15: bags of words with a long tail


@functools.cache
def reviews(count=12000, length=20, vocabulary=400):
    random = torch.Generator().manual_seed(51)
    popular = 1.0 / torch.arange(1, vocabulary + 1) ** 0.9
    words = torch.multinomial(popular.expand(count, -1), length, True, generator=random)
    mood = torch.randn(vocabulary, generator=random)
    score = mood[words].sum(1)
    score = (score - score.median()) / score.std()
    chance = torch.sigmoid(4 * score)
    return words, (torch.rand(count, generator=random) < chance).long()


class BagOfWords(Classifier):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(400, 8, mode="mean")
        self.classify = nn.Linear(8, 2)

    def forward(self, x):
        return self.classify(self.bag(x))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)


def rare_words():
    return BagOfWords(), *loaders(*reviews(), batch_size=64, val_batch_size=500)


# 16: several labels at once


@functools.cache
def tagged(count=4000):
    x, y = sklearn.datasets.make_multilabel_classification(
        count, n_features=30, n_classes=8, n_labels=3, length=60, random_state=6
    )
    x = torch.as_tensor(x).float()
    return (x - x.mean(0)) / x.std(0), torch.as_tensor(y).float()


class MultiLabel(LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(30, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 8)
        )

    def training_step(self, batch, batch_idx):
        loss = F.binary_cross_entropy_with_logits(self.body(batch[0]), batch[1])
        self.log("train_bce", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.body(batch[0])
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, batch[1]))
        self.log("tag_acc", ((logits > 0) == (batch[1] > 0.5)).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]


def multilabel():
    return MultiLabel(), *loaders(*tagged(), batch_size=64, val_batch_size=500)


# 17: an autoencoder of tanh layers


class TanhAutoencoder(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 64))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log("recon", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        (x,) = batch
        self.log("val_recon", F.mse_loss(self.decoder(self.encoder(x)), x))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 12, 0.3)]


def tanh_autoencoder():
    inputs, _ = bundled("digits")
    return TanhAutoencoder(), *loaders(inputs / 16, batch_size=32, val_batch_size=450)


# 18: a VAE whose KL term comes in slowly


class WarmVAE(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 64))

    def parts(self, x):
        mean, logvar = self.encoder(x).chunk(2, -1)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        bce = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)
        return bce.mean(), kl.mean()

    def training_step(self, batch, batch_idx):
        recon, kl = self.parts(batch[0])
        beta = min(1.0, self.global_step / 400)
        self.log_dict({"recon": recon, "kl": kl, "beta": beta})
        return recon + beta * kl

    def validation_step(self, batch, batch_idx):
        recon, kl = self.parts(batch[0])
        self.log("val_loss", recon + kl)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def vae_kl_warmup():
    inputs, _ = bundled("digits")
    return WarmVAE(), *loaders(inputs / 16, batch_size=32, val_batch_size=450)


# 19: contrastive learning of two views


class Contrastive(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.projector = nn.Linear(128, 32)

    def loss(self, x, random=None):
        views = [
            F.normalize(self.projector(self.encoder(x + noise)), dim=-1)
            for noise in 0.5 * torch.randn(2, *x.shape, generator=random)
        ]
        logits = views[0] @ views[1].T / 0.1
        own = torch.arange(len(x))
        loss = 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))
        return loss, accuracy(logits, own)

    def training_step(self, batch, batch_idx):
        loss, matched = self.loss(batch[0])
        self.log_dict({"nce": loss, "matched": matched})
        return loss

    def validation_step(self, batch, batch_idx):
        # the same views at every validation
        loss, matched = self.loss(batch[0], torch.Generator().manual_seed(batch_idx))
        self.log_dict({"val_loss": loss, "val_match_acc": matched}, batch_size=len(batch[0]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]


def contrastive():
    inputs, _ = images()
    return Contrastive(), *loaders(inputs.flatten(1), batch_size=64, val_batch_size=64)


# 20: batches of eight, accumulated to thirty-two


class Accumulated(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def step(self, batch, stage):
        x, y = batch
        logits = self.layers(x).squeeze(-1)
        loss = F.binary_cross_entropy_with_logits(logits, y.float())
        self.log(f"{stage}_loss", loss)
        self.log(f"{stage}_acc", ((logits > 0) == (y > 0)).float().mean())
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-3)


def accumulated():
    return Accumulated(), *loaders(*standardized("breast_cancer"), batch_size=8)


# 21: two optimizers by hand: an autoencoder, and a probe on its detached code


class ManualProbe(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64))
        self.probe = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        main, second = self.optimizers()
        code = self.encoder(x)
        recon = F.mse_loss(self.decoder(code), x)
        main.zero_grad()
        self.manual_backward(recon)
        main.step()
        probe = F.cross_entropy(self.probe(code.detach()), y)
        second.zero_grad()
        self.manual_backward(probe)
        second.step()
        self.log_dict({"recon_loss": recon, "probe_loss": probe})

    def validation_step(self, batch, batch_idx):
        x, y = batch
        code = self.encoder(x)
        logits = self.probe(code)
        self.log("val_recon_loss", F.mse_loss(self.decoder(code), x))
        self.log("val_probe_loss", F.cross_entropy(logits, y))
        self.log("val_probe_acc", accuracy(logits, y))

    def configure_optimizers(self):
        reconstructing = [*self.encoder.parameters(), *self.decoder.parameters()]
        return (
            torch.optim.Adam(reconstructing, lr=1e-3),
            torch.optim.AdamW(self.probe.parameters(), lr=1e-3, weight_decay=0.05),
        )


def manual_probe():
    inputs, labels = images()
    return ManualProbe(), *loaders(inputs.flatten(1), labels, batch_size=32)


# 22: an exponential average of the weights is what is validated


@functools.cache
def friedman(count=3000):
    x, y = sklearn.datasets.make_friedman1(count, noise=1.0, random_state=9)
    x, y = torch.as_tensor(x).float(), torch.as_tensor(y).float()
    return x * 2 - 1, y.unsqueeze(-1)


class Averaged(LightningModule):
    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )
        nn.init.constant_(self.student[-1].bias, 14.4)  # the mean of the targets
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self.student(batch[0]), batch[1])
        self.log("mse", loss)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.02)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self.teacher(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.student.parameters(), lr=2e-3, weight_decay=0.05)


def ema_teacher():
    return Averaged(), *loaders(*friedman(), batch_size=50, val_batch_size=250)


# 23: stopped when validation no longer improves


class Stopped(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1)
        )

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        self.log("training_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("validation_loss", F.mse_loss(self.net(batch[0]), batch[1]))

    def configure_callbacks(self):
        return [EarlyStopping("validation_loss", patience=6, min_delta=1e-3)]

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@functools.cache
def hills(count=3000):
    random = torch.Generator().manual_seed(61)
    x = torch.randn(count, 3, generator=random)
    y = torch.cos(1.5 * x[:, :1]) + torch.tanh(x[:, 1:2] * x[:, 2:])
    return x, y + 0.3 * torch.randn(count, 1, generator=random)


def early_stopping():
    return Stopped(), *loaders(*hills(), batch_size=32, val_batch_size=250)


# 24: targets in the hundreds of thousands, scaled back by a layer


class Rescale(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x):
        return x * self.std + self.mean


class Prices(LightningModule):
    def __init__(self, inputs, targets):
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(10, affine=False),
            nn.Linear(10, 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 1),
            Rescale(targets.mean(), targets.std()),
        )

    def training_step(self, batch, batch_idx):
        loss = F.l1_loss(self.net(batch[0]), batch[1])
        self.log("train_dollars", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_dollars", F.l1_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, self.trainer.max_epochs, 1.0)
        return [optimizer], [schedule]


def unscaled_prices():
    x, y = friedman()
    scales = torch.tensor([1, 10, 100, 1000, 0.1, 1, 5, 50, 500, 0.01])
    x, y = (x + 3) * scales, 150_000 + 12_000 * y
    return Prices(x, y[:2250]), *loaders(x, y, batch_size=50, val_batch_size=250)


PROGRAMS = [
    Program("eighth_warmup_cosine", warmup_cosine, {"max_epochs": 22}, metric="val_acc"),
    Program("eighth_onecycle_cnn", onecycle_cnn, {"max_epochs": 15}, metric="val_acc"),
    Program("eighth_zero_residual", zero_residual, {"max_epochs": 14}, metric="val_acc"),
    Program("eighth_plateau_huber", plateau_huber, {"max_epochs": 40}),
    Program("eighth_frozen_trunk", frozen_trunk, {"max_epochs": 20}, metric="val_acc"),
    Program("eighth_fine_tune", fine_tune, {"max_epochs": 12}, metric="val_acc"),
    Program("eighth_transformer_reverse", transformer_reverse, {"max_epochs": 12}),
    Program("eighth_batch_of_four", batch_of_four, {"max_epochs": 40}),
    Program("eighth_noisy_labels", noisy_labels, {"max_epochs": 20}),
    Program("eighth_weighted_rare", weighted_rare, {"max_epochs": 30}, metric="val_balanced_acc"),
    Program("eighth_heavy_dropout", heavy_dropout, {"max_epochs": 18}, metric="val_acc"),
    Program("eighth_augmented", augmented, {"max_epochs": 25}, metric="val_acc"),
    Program(
        "eighth_gru_pitch",
        gru_pitch,
        {"max_epochs": 25, "gradient_clip_val": 1.0},
        metric="val_mae",
    ),
    Program("eighth_lstm_tied", lstm_tied, {"max_epochs": 15, "gradient_clip_val": 1.0}),
    Program("eighth_rare_words", rare_words, {"max_epochs": 11}),
    Program("eighth_multilabel", multilabel, {"max_epochs": 20}),
    Program("eighth_tanh_autoencoder", tanh_autoencoder, {"max_epochs": 36}, metric="val_recon"),
    Program("eighth_vae_kl_warmup", vae_kl_warmup, {"max_epochs": 40}),
    Program("eighth_contrastive", contrastive, {"max_epochs": 40}),
    Program("eighth_accumulated", accumulated, {"max_epochs": 25, "accumulate_grad_batches": 4}),
    Program("eighth_manual_probe", manual_probe, {"max_epochs": 30}, metric="val_probe_acc"),
    Program("eighth_ema_teacher", ema_teacher, {"max_epochs": 40}),
    Program("eighth_early_stopping", early_stopping, {"max_epochs": 100}, metric="validation_loss"),
    Program("eighth_unscaled_prices", unscaled_prices, {"max_epochs": 40}, metric="val_dollars"),
]
