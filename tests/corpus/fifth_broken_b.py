"""Whole fits with a fault in their dynamics and their repaired twins, second blind writer."""

import functools
import math

import sklearn.datasets
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.program import bundled, images, loaders, pair


def rng(seed):
    return torch.Generator().manual_seed(seed)


class WarmedDigits(LightningModule):
    """A small CNN under SGD whose rate climbs over the first hundred and fifty steps."""

    def __init__(self, lr=0.1, warmup_steps=150, interval="step"):
        super().__init__()
        self.lr, self.warmup_steps, self.interval = lr, warmup_steps, interval
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 4, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        ramp = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / self.warmup_steps)
        )
        return [optimizer], [{"scheduler": ramp, "interval": self.interval}]


def warmed_digits(broken):
    return WarmedDigits(interval="epoch" if broken else "step"), *loaders(*images())


class PitchRegressor(LightningModule):
    """The pitch of a noisy tone by 1d convolutions; the rate drops on a plateau."""

    def __init__(self, mode):
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            *(nn.Conv1d(1, 16, 7, stride=2, padding=3), nn.BatchNorm1d(16), nn.ReLU()),
            *(nn.Conv1d(16, 32, 5, stride=2, padding=2), nn.BatchNorm1d(32), nn.ReLU()),
            *(nn.Conv1d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 8, 1)),
        )
        self.criterion = nn.SmoothL1Loss()

    def training_step(self, batch, batch_idx):
        wave, pitch = batch
        loss = self.criterion(self.features(wave).squeeze(-1), pitch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        wave, pitch = batch
        self.log("val_loss", self.criterion(self.features(wave).squeeze(-1), pitch))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode=self.hparams.mode, factor=0.2, patience=1
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
        }


def pitch(broken):
    """A plateau of something to be maximised, while the loss falls."""
    frequency = 1 + 7 * torch.rand(1600, 1, generator=rng(1))
    phase = 2 * math.pi * torch.rand(1600, 1, generator=rng(2))
    wave = torch.sin(2 * math.pi * frequency * torch.linspace(0, 1, 64) + phase)
    wave = wave + 0.3 * torch.randn(wave.shape, generator=rng(3))
    target = (frequency.squeeze(1) - 4.5) / 2
    return PitchRegressor("max" if broken else "min"), *loaders(wave[:, None], target)


class Friedman(LightningModule):
    """Raw targets around fourteen, with the optimizer of an image recipe."""

    def __init__(self, lr, hidden=64):
        super().__init__()
        self.lr = lr
        self.hidden1, self.hidden2 = nn.Linear(10, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.out(F.relu(self.hidden2(F.relu(self.hidden1(x))))).squeeze(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        error = F.mse_loss(self(x), y)
        self.log_dict({"val_loss": error, "val_r2": 1 - error / y.var()})

    def configure_optimizers(self):
        options = {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, **options)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)]


def friedman(broken):
    x, y = sklearn.datasets.make_friedman1(1200, noise=0.5, random_state=4)
    data = torch.tensor(2 * x - 1).float(), torch.tensor(y).float()
    return Friedman(lr=0.1 if broken else 2e-3), *loaders(*data)


class WineGrower(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(13, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
        )

    def step(self, batch, stage):
        logits = self.net(batch["features"])
        loss = F.cross_entropy(logits, batch["cultivar"])
        accuracy = (logits.argmax(-1) == batch["cultivar"]).float().mean()
        size = len(logits)
        self.log_dict({f"{stage}_loss": loss, f"{stage}_acc": accuracy}, batch_size=size)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def wine(broken):
    """The scaled columns are computed and then left lying."""
    raw, cultivar = bundled("wine")
    cut = len(raw) * 3 // 4
    scaled = (raw - raw[:cut].mean(0)) / raw[:cut].std(0)
    columns = raw if broken else scaled
    rows = [{"features": x, "cultivar": y} for x, y in zip(columns, cultivar, strict=True)]
    train = torch.utils.data.DataLoader(rows[:cut], batch_size=16, shuffle=True)
    return WineGrower(), train, torch.utils.data.DataLoader(rows[cut:], batch_size=64)


class Motifs(LightningModule):
    """A transformer that tells which of four motifs a string of tokens contains."""

    def __init__(self, betas, vocabulary=12, width=32, length=20):
        super().__init__()
        self.betas = betas
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 4)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, ids):
        return self.head(self.encoder(self.tokens(ids) + self.positions).mean(1))

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.criterion(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3, betas=self.betas)


def motifs(broken):
    """The two betas in the wrong order."""
    ids = torch.randint(0, 8, (1280, 20), generator=rng(5))
    kind = torch.randint(0, 4, (1280,), generator=rng(6))
    start = torch.randint(0, 17, (1280,), generator=rng(7))
    motif = torch.tensor([[8, 1, 9], [8, 2, 10], [11, 1, 9], [11, 2, 10]])
    for offset in range(3):
        ids[torch.arange(1280), start + offset] = motif[kind, offset]
    betas = (0.999, 0.9) if broken else (0.9, 0.999)
    return Motifs(betas), *loaders(ids, kind)


class Tags(LightningModule):
    """Several tags for one record; the likelihood may be written by hand."""

    def __init__(self, by_hand):
        super().__init__()
        self.by_hand = by_hand
        self.body = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.tags = nn.Linear(64, 6)

    def loss(self, batch):
        record, tags = batch
        logits = self.tags(self.body(record))
        if not self.by_hand:
            return F.binary_cross_entropy_with_logits(logits, tags)
        p = torch.sigmoid(logits)
        return -(tags * torch.log(p) + (1 - tags) * torch.log(1 - p)).mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=12, gamma=0.3)]


def tags(broken):
    record = torch.randn(1600, 24, generator=rng(8))
    amount = torch.empty(1600, 1).exponential_(generator=rng(9)) + 0.3
    record = record * amount
    labels = (record @ torch.randn(24, 6, generator=rng(10)) > 0.5).float()
    return Tags(by_hand=broken), *loaders(record, labels, batch_size=50)


class DepthTagger(LightningModule):
    """How deep every bracket lies, token by token."""

    def __init__(self, forget):
        super().__init__()
        self.forget = forget
        self.embed = nn.Embedding(3, 8)
        self.gru = nn.GRU(8, 32, batch_first=True)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, tokens):
        return self.head(self.gru(self.embed(tokens))[0])

    def training_step(self, batch, batch_idx):
        tokens, depth = batch
        loss = F.cross_entropy(self(tokens).transpose(1, 2), depth)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        tokens, depth = batch
        logits = self(tokens)
        self.log("val_loss", F.cross_entropy(logits.transpose(1, 2), depth))
        self.log("val_acc", (logits.argmax(-1) == depth).float().mean())

    def configure_optimizers(self):
        groups = [
            {"params": self.embed.parameters(), "lr": 1e-2},
            {"params": self.head.parameters(), "weight_decay": 1e-4},
        ]
        if not self.forget:
            groups.append({"params": self.gru.parameters()})
        return torch.optim.AdamW(groups, lr=4e-3, weight_decay=0.0)


def depth_tagger(broken):
    tokens = torch.randint(0, 3, (1200, 24), generator=rng(11))
    move = torch.tensor([1, -1, 0])
    depth, level = [], torch.zeros(1200, dtype=torch.long)
    for t in range(24):
        level = (level + move[tokens[:, t]]).clamp(0, 5)
        depth.append(level)
    return DepthTagger(forget=broken), *loaders(tokens, torch.stack(depth, 1))


@functools.cache
def pretrained(low):
    """The weights of a trunk that has learnt to read the first digits."""
    x, y = images()
    x, y = x[y < low].flatten(1), y[y < low]
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(11)
        trunk, head = body(), nn.Linear(32, low)
        optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=3e-3)
        for start in range(0, 100 * 64, 64):
            rows = torch.arange(start, start + 64) % len(x)
            optimizer.zero_grad()
            F.cross_entropy(head(trunk(x[rows])), y[rows]).backward()
            optimizer.step()
    return trunk.state_dict(), head.state_dict()


def body():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())


class Thaw(LightningModule):
    """A new head on a pretrained trunk, which thaws after three epochs."""

    def __init__(self, attribute, thaw_at=3):
        super().__init__()
        self.attribute, self.thaw_at = attribute, thaw_at
        self.trunk = body()
        self.trunk.load_state_dict(pretrained(5)[0])
        for parameter in self.trunk.parameters():
            parameter.requires_grad = False
        self.head = nn.Linear(32, 5)

    def on_train_epoch_start(self):
        if self.current_epoch == self.thaw_at:
            for parameter in self.trunk.parameters():
                setattr(parameter, self.attribute, True)

    def forward(self, x):
        return self.head(self.trunk(x.flatten(1)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y, label_smoothing=0.02)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        groups = [
            {"params": self.trunk.parameters(), "lr": 1e-3},
            {"params": self.head.parameters(), "lr": 4e-3},
        ]
        return torch.optim.Adam(groups)


def thaw(broken):
    """``parameter.require_grad = True`` sets an attribute that nobody reads."""
    x, y = images()
    x, y = x[y >= 5], y[y >= 5] - 5
    return Thaw("require_grad" if broken else "requires_grad"), *loaders(x, y)


class LowRank(nn.Module):
    """A frozen layer and a trainable correction of low rank."""

    def __init__(self, base, zero_both, rank=6):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.zeros(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        if not zero_both:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x):
        return self.base(x) + 2 * (x @ self.down.T @ self.up.T)


class Adapted(LightningModule):
    """A reader of digits, adapted to digits that lie on their side."""

    def __init__(self, zero_both):
        super().__init__()
        trunk, head = body(), nn.Linear(32, 10)
        trunk.load_state_dict(pretrained(10)[0])
        head.load_state_dict(pretrained(10)[1])
        self.net = nn.Sequential(
            *(LowRank(trunk[0], zero_both), nn.ReLU()),
            *(LowRank(trunk[2], zero_both), nn.ReLU(), LowRank(head, zero_both)),
        )

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0].mT.flatten(1)), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0].mT.flatten(1))
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=3e-3)


def adapted(broken):
    return Adapted(zero_both=broken), *loaders(*images())


def fitted(name, make, epochs, *codes, **settings):
    return pair(f"fifth_{name}", make, *codes, trainer={"max_epochs": epochs}, **settings)


PAIRS = [
    fitted(
        *("digits_warmup_by_epoch", warmed_digits, 12),
        *("lr_too_low", "update_ratio_low", "underfitting"),
    ),
    fitted("pitch_plateau_of_max", pitch, 14, "lr_decayed_too_fast", "lr_too_low"),
    fitted(
        *("friedman_image_recipe", friedman, 15),
        *("lr_too_high", "loss_diverging", "non_finite", "exploding_gradients"),
        metric="val_r2",
    ),
    fitted("wine_scaler_unused", wine, 35, "unnormalized_input"),
    fitted("motifs_betas_swapped", motifs, 14, "momentum_too_high", "loss_oscillation"),
    fitted("tags_log_by_hand", tags, 20, "non_finite"),
    fitted(
        *("depth_tagger_without_gru", depth_tagger, 14),
        *("params_not_in_optimizer", "weights_not_updating", "frozen_params"),
    ),
    fitted(
        *("thaw_with_typo", thaw, 20, "frozen_params", "weights_not_updating", "underfitting"),
    ),
    fitted(
        *("adapter_both_factors", adapted, 10, "zero_init", "no_learning"),
        *("weights_not_updating", "vanishing_gradients"),
    ),
]
