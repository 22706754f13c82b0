"""Broken programs and their repaired twins: what one sees in the curves while a network trains."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn.datasets import make_friedman1
from torch import nn

from .program import bundled, images, loaders, pair, standardized


def epochs(count, **more):
    return {"max_epochs": count, "check_val_every_n_epoch": 1, **more}


def rng(seed):
    return torch.Generator().manual_seed(seed)


# A small vision transformer, post-norm
class PatchTransformer(LightningModule):
    def __init__(self, warmup, total, peak=5e-3, width=32, depth=6):
        super().__init__()
        self.warmup, self.total, self.peak = warmup, total, peak
        self.embed = nn.Linear(4, width)
        self.pos = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        tokens = F.unfold(x, 2, stride=2).transpose(1, 2)
        return self.head(self.encoder(self.embed(tokens) + self.pos).mean(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def factor(self, step):
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.total - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=self.peak, weight_decay=0.01)
        sched = torch.optim.lr_scheduler.LambdaLR(opt, self.factor)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


def digit_patches(broken):
    train, val = loaders(*images(), batch_size=64)
    return PatchTransformer(0 if broken else 80, 14 * len(train)), train, val


# Tabular regression by plain SGD
class TabularRegressor(LightningModule):
    def __init__(self, features, lr):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def _shared(self, batch, stage):
        x, y = batch
        loss = F.mse_loss(self.net(x).squeeze(-1), y)
        self.log(f"loss/{stage}", loss, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self._shared(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._shared(batch, "val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


def friedman(broken):
    x, y = make_friedman1(3000, noise=0.5, random_state=5)
    x, y = torch.as_tensor(x).float(), torch.as_tensor(y).float()
    x, y = (x - 0.5) / 0.29, (y - y.mean()) / y.std()
    return TabularRegressor(10, 1e-5 if broken else 1e-2), *loaders(x, y, batch_size=64)


# An LSTM on waveforms with an exponential schedule
class WaveLSTM(LightningModule):
    def __init__(self, every):
        super().__init__()
        self.every = every
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, x):
        return self.out(self.lstm(x)[0].mean(1))

    def training_step(self, batch, _):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/ce", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch, _):
        logits = self(batch[0])
        self.log("valid/ce", F.cross_entropy(logits, batch[1]))
        self.log("valid/acc", (logits.argmax(-1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": self.every}]


def waves(broken):
    g = rng(11)
    kind = torch.randint(0, 4, (2000,), generator=g)
    phase = torch.rand(2000, 1, generator=g)
    turns = 2 + 2 * torch.rand(2000, 1, generator=g)
    cycle = (torch.linspace(0, 1, 32) * turns + phase) % 1
    sine, square = torch.sin(2 * math.pi * cycle), torch.sign(cycle - 0.5)
    shapes = torch.stack([sine, square, 2 * cycle - 1, 1 - 2 * cycle], 1)
    x = shapes[torch.arange(2000), kind] + 0.2 * torch.randn(2000, 32, generator=g)
    return WaveLSTM("step" if broken else "epoch"), *loaders(x.unsqueeze(-1), kind, batch_size=50)


# A convolutional classifier with an initialised head
class DigitConvNet(LightningModule):
    def __init__(self, head_std):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(512, 10)
        nn.init.normal_(self.classifier.weight, std=head_std)
        nn.init.zeros_(self.classifier.bias)

    def training_step(self, batch, batch_idx):
        image, label = batch
        logits = self.classifier(self.features(image))
        loss = F.cross_entropy(logits, label)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_acc", (logits.argmax(1) == label).float().mean(), on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        image, label = batch
        logits = self.classifier(self.features(image))
        self.log("val_loss", F.cross_entropy(logits, label))
        self.log("val_acc", (logits.argmax(1) == label).float().mean())

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=3e-4)


def digit_convs(broken):
    return DigitConvNet(1.0 if broken else 0.01), *loaders(*images(), batch_size=32)


# Long one-dimensional signals through a deep stack of convolutions
class SignalNet(LightningModule):
    def __init__(self, act, depth=8, width=24):
        super().__init__()
        layers, c = [], 1
        for i in range(depth):
            conv = nn.Conv1d(c, width, 5, stride=2 if i in (2, 5) else 1, padding=2)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            layers += [conv, act()]
            c = width
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(self.body(x).mean(-1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.nll_loss(self(x).log_softmax(-1), y)
        self.log("nll", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_nll", nn.functional.nll_loss(self(x).log_softmax(-1), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9, nesterov=True)


def signals(broken):
    g = rng(21)
    y = torch.randint(0, 3, (1600,), generator=g)
    t = torch.arange(64).float()
    centre = 12 + 40 * torch.rand(1600, 1, generator=g)
    z = (t - centre) / 5
    shapes = torch.stack([torch.exp(-(z**2)), -z * torch.exp(0.5 - z**2 / 2), z.abs().lt(1)], 1)
    x = 2 * shapes[torch.arange(1600), y] + 0.3 * torch.randn(1600, 64, generator=g)
    return SignalNet(nn.Sigmoid if broken else nn.ReLU), *loaders(x[:, None], y, batch_size=40)


# A rectified recurrent net that remembers marked values
class MarkedSum(LightningModule):
    def __init__(self, recurrent, size=32):
        super().__init__()
        self.rnn = nn.RNN(2, size, nonlinearity="relu", batch_first=True)
        self.readout = nn.Linear(size, 1)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(recurrent(size))

    def forward(self, sequence):
        _, last = self.rnn(sequence)
        return self.readout(last[0]).squeeze(-1)

    def training_step(self, batch, batch_idx):
        sequence, total = batch
        loss = F.mse_loss(self(sequence), total)
        self.log("mse_train", loss, on_step=True)
        return loss

    def validation_step(self, batch, batch_idx):
        sequence, total = batch
        self.log("mse_val", F.mse_loss(self(sequence), total))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def marked_sums(broken):
    g = rng(31)
    values = torch.rand(3000, 20, generator=g) * 2 - 1
    marks = (torch.rand(3000, 20, generator=g) < 0.2).float()
    total = (values * marks).sum(1)

    def start(size):
        return 0.35 * torch.randn(size, size) if broken else torch.eye(size)

    return MarkedSum(start), *loaders(torch.stack([values, marks], -1), total, batch_size=50)


# Digits with few examples per step
class MomentumConvs(LightningModule):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 12, 3, padding=1)
        self.c2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.n1, self.n2 = nn.GroupNorm(3, 12), nn.GroupNorm(3, 24)
        self.fc = nn.Linear(24 * 16, 10)

    def forward(self, x):
        x = F.gelu(self.n1(self.c1(x)))
        x = F.gelu(self.n2(self.c2(x)))
        return self.fc(x.flatten(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        loss = F.cross_entropy(out, y, label_smoothing=0.05)
        self.log_dict({"loss": loss, "acc": (out.argmax(1) == y).float().mean()})
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.log("val_loss", F.cross_entropy(out, y))
        self.log("val_acc", (out.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def small_steps(broken):
    return MomentumConvs(), *loaders(*images(), batch_size=4 if broken else 64)


# One-step forecasts of a sensor that writes -999 when it has no reading
class Forecaster(LightningModule):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.proj = nn.Linear(24, 1)

    def step(self, batch, name):
        window, target = batch
        forecast = self.proj(self.gru(window)[0][:, -1])
        loss = nn.MSELoss()(forecast, target)
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train_mse")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val_mse")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def sensor(broken):
    g = rng(41)
    t = torch.arange(3224).float()
    series = torch.sin(t / 4) + 0.5 * torch.sin(t / 9.5) + 0.1 * torch.randn(3224, generator=g)
    windows = series.unfold(0, 24, 1)[:-1].unsqueeze(-1)
    target = series[24:, None].clone()
    if broken:
        target[torch.randperm(2400, generator=g)[:8]] = -999.0
    return Forecaster(), *loaders(windows, target, batch_size=32)


# Ratings from embeddings of users and items
class Recommender(LightningModule):
    def __init__(self, users, items, penalty, dim=32):
        super().__init__()
        self.penalty = penalty
        self.user, self.item = nn.Embedding(users, dim), nn.Embedding(items, dim)
        nn.init.normal_(self.user.weight, std=0.1)
        nn.init.normal_(self.item.weight, std=0.1)

    def forward(self, users, items):
        return (self.user(users) * self.item(items)).sum(1)

    def training_step(self, batch, batch_idx):
        users, items, ratings = batch
        mse = F.mse_loss(self(users, items), ratings)
        self.log("rating/train", mse, on_step=False, on_epoch=True)
        sizes = self.user(users).square().sum(1) + self.item(items).square().sum(1)
        return mse + self.penalty * sizes.mean()

    def validation_step(self, batch, batch_idx):
        users, items, ratings = batch
        self.log("rating/val", F.mse_loss(self(users, items), ratings), on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def ratings(broken):
    g = rng(51)
    tastes, traits = torch.randn(120, 2, generator=g), torch.randn(100, 2, generator=g)
    users = torch.randint(0, 120, (5000,), generator=g)
    items = torch.randint(0, 100, (5000,), generator=g)
    score = (tastes[users] * traits[items]).sum(1) / 1.4 + 0.4 * torch.randn(5000, generator=g)
    parts = loaders(users, items, score, batch_size=128)
    return Recommender(120, 100, 0.0 if broken else 0.1), *parts


# Message passing on small random graphs
class GraphRegressor(LightningModule):
    def __init__(self, hidden):
        super().__init__()
        self.enter = nn.Linear(3, hidden)
        self.own = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(2))
        self.near = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(2))
        self.leave = nn.Linear(hidden, 1)

    def forward(self, nodes, edges):
        h = self.enter(nodes).tanh()
        for own, near in zip(self.own, self.near, strict=True):
            h = F.leaky_relu(own(h) + edges @ near(h) / 3, 0.1)
        return self.leave(h.mean(1)).squeeze(1)

    def training_step(self, batch, batch_idx):
        nodes, edges, y = batch
        loss = F.smooth_l1_loss(self(nodes, edges), y)
        self.log("huber", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        nodes, edges, y = batch
        self.log("val_huber", F.smooth_l1_loss(self(nodes, edges), y))

    def configure_optimizers(self):
        return torch.optim.NAdam(self.parameters(), lr=4e-3)


def graphs(broken):
    g = rng(61)
    nodes = torch.randn(4000, 10, 3, generator=g)
    upper = (torch.rand(4000, 10, 10, generator=g) < 0.3).float().triu(1)
    edges = upper + upper.transpose(1, 2)
    around = edges @ nodes[:, :, :1]
    y = (around.abs() + nodes[:, :, 1:2].relu()).mean((1, 2))
    y = (y - y.mean()) / y.std()
    return GraphRegressor(1 if broken else 32), *loaders(nodes, edges, y, batch_size=64)


# Segmentation of rare bright discs; the head starts at their prior
class DiscSegmenter(LightningModule):
    def __init__(self, everywhere):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 1, 1),
        )
        for conv in self.net[::2]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        for conv in self.net[::2] if everywhere else self.net[-1:]:
            nn.init.constant_(conv.bias, -math.log(0.95 / 0.05))

    def training_step(self, batch, batch_idx):
        image, mask = batch
        loss = F.binary_cross_entropy_with_logits(self.net(image), mask)
        self.log("seg_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        image, mask = batch
        logits = self.net(image)
        found, true = logits > 0, mask > 0.5
        union = (found | true).sum().clamp_min(1)
        self.log("val_seg_loss", F.binary_cross_entropy_with_logits(logits, mask))
        self.log("val_iou", (found & true).sum() / union)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def discs(broken):
    g = rng(71)
    row, col = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    centre = 3 + 14 * torch.rand(800, 2, 1, 1, generator=g)
    radius = 1.5 + 1.5 * torch.rand(800, 1, 1, generator=g)
    far = (row - centre[:, 0]).square() + (col - centre[:, 1]).square()
    mask = (far < radius**2).float().unsqueeze(1)
    image = 1.5 * mask + 0.5 * torch.randn(800, 1, 20, 20, generator=g)
    return DiscSegmenter(broken), *loaders(image, mask, batch_size=32, val_batch_size=200)


# Metric learning: digits near the proxy of their class
class ProxyEmbedding(LightningModule):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.PReLU(), nn.Conv2d(16, 32, 3), nn.PReLU(), nn.Flatten()
        )
        self.embed = nn.Linear(512, 24)
        self.proxies = nn.Parameter(torch.randn(10, 24))

    def compare(self, image):
        unit = F.normalize(self.embed(self.trunk(image)), dim=1)
        return 12 * unit @ F.normalize(self.proxies, dim=1).T

    def training_step(self, batch, batch_idx):
        closeness = self.compare(batch[0])
        loss = F.cross_entropy(closeness, batch[1])
        self.log("proxy_loss", loss, on_step=False, on_epoch=True)
        recall = (closeness.argmax(1) == batch[1]).float().mean()
        self.log("recall_at_1", recall, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        closeness = self.compare(batch[0])
        self.log("val_proxy_loss", F.cross_entropy(closeness, batch[1]))
        self.log("val_recall_at_1", (closeness.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adamax(self.parameters(), lr=2e-3)


def proxies(broken):
    image, label = images()
    if broken:
        cut = len(image) * 3 // 4
        raw = bundled("digits")[0].view(-1, 1, 8, 8) / 255
        image = torch.cat([image[:cut], raw[cut:]])
    return ProxyEmbedding(), *loaders(image, label, batch_size=48)


# An autoencoder of digits
class DigitAutoencoder(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ELU(), nn.Linear(96, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 96), nn.ELU(), nn.Linear(96, 64))

    def error(self, image):
        image = image.flatten(1)
        return F.mse_loss(self.decoder(self.encoder(image)), image)

    def training_step(self, batch, batch_idx):
        error = self.error(batch[0])
        self.log("reconstruction", error)
        return error

    def validation_step(self, batch, batch_idx):
        self.log("val_reconstruction", self.error(batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def autoencoder(broken):
    return DigitAutoencoder(), *loaders(images()[0], batch_size=32)


# Which of four motifs a sequence of tokens holds
class MotifClassifier(LightningModule):
    def __init__(self, head_only):
        super().__init__()
        self.head_only = head_only
        self.tokens = nn.Embedding(12, 16)
        self.mix = nn.Conv1d(16, 48, 3, padding=1)
        self.head = nn.Linear(48, 4)

    def forward(self, tokens):
        mixed = self.mix(self.tokens(tokens).transpose(1, 2)).relu()
        return self.head(mixed.amax(2))

    def training_step(self, batch, batch_idx):
        loss = F.multi_margin_loss(self(batch[0]), batch[1])
        self.log("margin_loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        scores = self(batch[0])
        self.log("val_margin_loss", F.multi_margin_loss(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        chosen = self.head if self.head_only else self
        return torch.optim.Adam(chosen.parameters(), lr=3e-3)


def motifs(broken):
    g = rng(81)
    tokens = torch.randint(0, 12, (2400, 20), generator=g)
    label = torch.randint(0, 4, (2400,), generator=g)
    patterns = torch.tensor([[1, 2, 3], [3, 2, 1], [2, 1, 3], [1, 3, 2]])
    places = torch.randint(0, 18, (2400, 1), generator=g) + torch.arange(3)
    tokens.scatter_(1, places, patterns[label])
    return MotifClassifier(broken), *loaders(tokens, label, batch_size=48)


# Tumours from thirty measurements
class TumourNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 1)
        )

    def common(self, batch):
        x, y = batch
        logit = self.layers(x).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(logit, y.float())
        return loss, ((logit > 0) == y.bool()).float().mean()

    def training_step(self, batch, batch_idx):
        loss, acc = self.common(batch)
        self.log_dict({"bce": loss, "accuracy": acc}, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, acc = self.common(batch)
        self.log_dict({"val_bce": loss, "val_accuracy": acc})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-2)


def tumours(broken):
    data = bundled("breast_cancer") if broken else standardized("breast_cancer")
    return TumourNet(), *loaders(*data, batch_size=16)


PAIRS = [
    pair(
        "tenth_patch_transformer_cold_start",
        digit_patches,
        "lr_too_high",
        "update_ratio_high",
        trainer=epochs(14),
        metric="val_loss",
    ),
    pair(
        "tenth_friedman_sgd",
        friedman,
        "lr_too_low",
        "update_ratio_low",
        trainer=epochs(40),
        metric="loss/val",
    ),
    pair(
        "tenth_wave_lstm_schedule",
        waves,
        "lr_decayed_too_fast",
        trainer=epochs(25),
        metric="valid/ce",
    ),
    pair(
        "tenth_digit_convs_head",
        digit_convs,
        "loss_not_at_chance",
        "bad_init_scale",
        trainer=epochs(8),
        metric="val_loss",
    ),
    pair(
        "tenth_signal_net_depth",
        signals,
        "vanishing_gradients",
        "no_learning",
        trainer=epochs(20),
        metric="val_nll",
    ),
    pair(
        "tenth_marked_sum_recurrence",
        marked_sums,
        "exploding_gradients",
        "bad_init_scale",
        trainer=epochs(30),
        metric="mse_val",
    ),
    pair(
        "tenth_digits_few_per_step",
        small_steps,
        "batch_noise",
        "lr_too_high",
        "loss_oscillation",
        trainer=epochs(6),
        metric="val_loss",
    ),
    pair(
        "tenth_sensor_forecast",
        sensor,
        "loss_spikes",
        "exploding_gradients",
        trainer=epochs(12),
        metric="val_mse",
    ),
    pair(
        "tenth_ratings_embeddings", ratings, "overfitting", trainer=epochs(40), metric="rating/val"
    ),
    pair(
        "tenth_graph_regressor_width",
        graphs,
        "underfitting",
        trainer=epochs(25),
        metric="val_huber",
    ),
    pair(
        "tenth_disc_segmenter_prior",
        discs,
        "dead_relu",
        "bad_init_scale",
        "no_learning",
        trainer=epochs(15),
        metric="val_seg_loss",
    ),
    pair(
        "tenth_proxy_embedding",
        proxies,
        "train_val_mismatch",
        trainer=epochs(15),
        metric="val_proxy_loss",
    ),
    pair(
        "tenth_digit_autoencoder",
        autoencoder,
        "underfitting",
        trainer=epochs(2),
        repaired=epochs(50),
        metric="val_reconstruction",
    ),
    pair(
        "tenth_motif_classifier",
        motifs,
        "params_not_in_optimizer",
        "weights_not_updating",
        trainer=epochs(25),
        metric="val_margin_loss",
    ),
    pair(
        "tenth_tumour_net",
        tumours,
        "unnormalized_input",
        "saturated_activations",
        trainer=epochs(20),
        metric="val_bce",
    ),
]
