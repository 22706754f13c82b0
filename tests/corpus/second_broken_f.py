"""Broken programs of a second hand: labels, metrics and the settings of the optimizer."""

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import bundled, images, loaders, pair, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Module(LightningModule):
    """A network, a criterion and a factory of the optimizer."""

    def __init__(self, net, optimizer=lambda p: optim.Adam(p, lr=3e-3), criterion=None):
        super().__init__()
        self.net = net
        self.optimizer = optimizer
        self.criterion = criterion or nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.criterion(self.net(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", self.criterion(self.net(x), y))

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Carry(nn.Module):
    """A plain recurrence with ReLU over twenty steps; the sum of the marked values."""

    def __init__(self, gain):
        super().__init__()
        self.rnn = nn.RNN(2, 32, nonlinearity="relu", batch_first=True)
        self.out = nn.Linear(32, 1)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(gain * torch.eye(32))

    def forward(self, series):
        return self.out(self.rnn(series)[0][:, -1])


def marked_sum(broken):
    value = torch.rand(1200, 20, generator=seeded(82))
    mark = (torch.rand(1200, 20, generator=seeded(83)) < 0.2).float()
    total = (value * mark).sum(1, keepdim=True)
    series = torch.stack([2 * value - 1, 2 * mark - 0.4], -1)
    target = (total - total.mean()) / total.std()
    module = Module(Carry(1.5 if broken else 1.0), lambda p: optim.Adam(p, 2e-3), nn.MSELoss())
    return module, *loaders(series, target)


class Progression(Module):
    """Diabetes progression by a Huber loss."""

    def __init__(self, squeeze):
        super().__init__(nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1)))
        self.squeeze = squeeze

    def training_step(self, batch, batch_idx):
        x, y = batch
        y_hat = self.net(x)
        if self.squeeze:
            y_hat = y_hat.squeeze(-1)
        r = (y_hat - y).abs()
        return torch.where(r < 1, 0.5 * r**2, r - 0.5).mean()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mae", (self.net(x)[:, 0] - y).abs().mean())


def progression(broken):
    x, y = standardized("diabetes")
    return Progression(squeeze=not broken), *loaders(x, (y - y.mean()) / y.std())


class ShareOfSpread(Module):
    """The same task, and an r2 written by hand."""

    def __init__(self, flat):
        net = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))
        super().__init__(net, criterion=nn.MSELoss())
        self.flat = flat

    def validation_step(self, batch, batch_idx):
        x, y = batch
        guess = self.net(x) if self.flat else self.net(x).unsqueeze(1)
        self.log("val_r2", 1 - (y - guess).square().mean() / y.var())


def spread(broken):
    x, y = standardized("diabetes")
    return ShareOfSpread(not broken), *loaders(x, (y - y.mean()) / y.std())


class Tagger(Module):
    """Six tokens, each with one of six tags by itself and the one before it."""

    def __init__(self, dim):
        super().__init__(nn.Sequential(nn.Embedding(18, 24), nn.GRU(24, 32, batch_first=True)))
        self.tag = nn.Linear(32, 6)
        self.dim = dim

    def forward(self, ids):
        return self.tag(self.net(ids)[0])

    def training_step(self, batch, batch_idx):
        ids, tags = batch
        return F.cross_entropy(self(ids).flatten(0, 1), tags.flatten())

    def validation_step(self, batch, batch_idx):
        ids, tags = batch
        self.log("val_acc", (self(ids).argmax(dim=self.dim) == tags).float().mean())


def tagger(broken):
    ids = torch.randint(18, (1500, 6), generator=seeded(91))
    before = F.pad(ids[:, :-1], (1, 0))
    tags = (ids // 3 + (before > 8)) % 6
    return Tagger(1 if broken else 2), *loaders(ids, tags)


class Alarm(Module):
    """A rare defect; judged by the mean of the recalls of both classes."""

    def validation_step(self, batch, batch_idx):
        x, y = batch
        hit = (self.net(x) > 0) == y.bool()
        recall = [hit[y == value].float().mean() for value in (0, 1)]
        self.log("val_balanced_acc", sum(recall) / 2)


def defects(broken):
    x = torch.randn(4000, 8, generator=seeded(92))
    odds = x[:, 0] + 0.7 * x[:, 1] + 0.8 * torch.randn(4000, generator=seeded(93))
    y = (odds > odds.quantile(0.97)).float().unsqueeze(1)
    criterion = nn.BCEWithLogitsLoss(pos_weight=None if broken else torch.tensor(30.0))
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    train, val = loaders(x, y, batch_size=64, val_batch_size=1000)
    return Alarm(net, criterion=criterion), train, val


class FewPixels(Alarm):
    """The same judgement of faint spots in a picture."""


def spots(broken):
    noise = torch.randn(600, 1, 12, 12, generator=seeded(94))
    mask = (torch.rand(600, 1, 12, 12, generator=seeded(95)) < 0.01).float()
    picture = noise + 2.0 * mask
    picture = (picture - picture.mean()) / picture.std()
    weight = torch.ones(()) if broken else torch.tensor(60.0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    criterion = nn.BCEWithLogitsLoss(pos_weight=weight)
    return FewPixels(net, criterion=criterion), *loaders(picture, mask, val_batch_size=150)


def mlp(inputs, outputs, hidden=48):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(576, 10)),
    )


def split(train, val):
    return DataLoader(train, 32, shuffle=True, drop_last=True), DataLoader(val, 128)


def raw_holdout(broken):
    x, y = bundled("breast_cancer")
    centre, scale = x[:426].mean(0), x[:426].std(0)
    seen, held = (x[:426] - centre) / scale, x[426:]
    if not broken:
        held = (held - centre) / scale
    return Module(mlp(30, 2)), *split(TensorDataset(seen, y[:426]), TensorDataset(held, y[426:]))


def turned_holdout(broken):
    x, y = images()
    held = x[1300:].rot90(1, (2, 3)) if broken else x[1300:]
    return Module(cnn()), *split(TensorDataset(x[:1300], y[:1300]), TensorDataset(held, y[1300:]))


def next_label(broken):
    x, y = standardized("wine")
    return Module(mlp(13, 3)), *loaders(x, y.roll(1) if broken else y, batch_size=16)


def outliers_removed(broken):
    x, y = standardized("breast_cancer")
    keep = x.abs().amax(1) < 4
    y = y[: keep.sum()] if broken else y[keep]
    return Module(mlp(30, 2)), *loaders(x[keep], y)


class Letters(nn.Module):
    """The next of twelve letters by an LSTM; the loss flattens what it gets."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 24)
        self.lstm = nn.LSTM(24, 48, batch_first=True)
        self.out = nn.Linear(48, 12)

    def forward(self, ids):
        return self.out(self.lstm(self.embed(ids))[0]).transpose(1, 2)


def letters(reduction):
    weight = torch.rand(12, 12, generator=seeded(96)).pow(8)
    ids = torch.randint(12, (1200, 1), generator=seeded(97))
    draw = seeded(98)
    for _ in range(16):
        ids = torch.cat([ids, torch.multinomial(weight[ids[:, -1]], 1, generator=draw)], 1)
    module = PerToken(
        Letters(),
        lambda p: optim.SGD(p, lr=0.3, momentum=0.9),
        nn.CrossEntropyLoss(reduction=reduction),
    )
    return module, *loaders(ids[:, :-1], ids[:, 1:])


class PerToken(Module):
    """Judged by the mean over the tokens."""

    def validation_step(self, batch, batch_idx):
        self.log("val_nll", F.cross_entropy(self.net(batch[0]), batch[1]))


class Encoder(nn.Module):
    """A transformer over the rows of a digit."""

    def __init__(self):
        super().__init__()
        self.lift = nn.Linear(8, 32)
        self.place = nn.Parameter(0.1 * torch.randn(8, 32))
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.top = nn.Linear(32, 10)

    def forward(self, x):
        return self.top(self.layer(self.lift(x.squeeze(1)) + self.place).mean(1))


def tuned(make_net, make_optimizer, wrong, right, data=images):
    """A program whose one setting is wrong or right."""

    def make(broken):
        value = wrong if broken else right
        return Module(make_net(), lambda p: make_optimizer(p, value)), *loaders(*data())

    return make


def digit_mlp():
    return mlp(64, 10)


def clipped_sgd(broken):
    return Module(cnn(), lambda p: optim.SGD(p, lr=0.1, momentum=0.9)), *loaders(*images())


class ClipsItself(Module):
    """Clips each value in a hook of its own."""

    limit = 1.0

    def on_before_optimizer_step(self, optimizer):
        nn.utils.clip_grad_value_(self.net.parameters(), self.limit)


def clips_itself(broken):
    module = ClipsItself(mlp(13, 3), lambda p: optim.SGD(p, lr=0.1))
    module.limit = 1e-5 if broken else 1.0
    return module, *loaders(*standardized("wine"), batch_size=16)


PAIRS = [
    pair("huber_by_hand", progression, "broadcast_mismatch", metric="val_mae"),
    pair("marked_sum", marked_sum, "exploding_gradients", "bad_init_scale", steps=250),
    pair("r2_by_hand", spread, "metric_wrong", metric="val_r2"),
    pair("tags_over_time", tagger, "metric_wrong", metric="val_acc"),
    pair("rare_defects", defects, "class_imbalance", metric="val_balanced_acc"),
    pair("faint_spots", spots, "class_imbalance", metric="val_balanced_acc"),
    pair("raw_holdout", raw_holdout, "train_val_mismatch"),
    pair("turned_holdout", turned_holdout, "train_val_mismatch"),
    pair("label_of_the_next", next_label, "label_mismatch"),
    pair("outliers_removed", outliers_removed, "label_mismatch"),
    pair(
        "letters_added_up",
        lambda broken: letters("sum" if broken else "mean"),
        "loss_reduction_sum",
        "lr_too_high",
        metric="val_nll",
    ),
    pair(
        "adam_encoder_half",
        tuned(Encoder, lambda p, lr: optim.Adam(p, lr=lr), 0.5, 3e-3),
        "lr_too_high",
    ),
    pair(
        "rmsprop_three",
        tuned(digit_mlp, lambda p, lr: optim.RMSprop(p, lr=lr), 3.0, 1e-3),
        "lr_too_high",
    ),
    pair(
        "adamw_3e-7",
        tuned(cnn, lambda p, lr: optim.AdamW(p, lr=lr), 3e-7, 3e-3),
        "lr_too_low",
    ),
    pair(
        "sgd_1e-6",
        tuned(digit_mlp, lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9), 1e-6, 0.05),
        "lr_too_low",
    ),
    pair(
        "decay_30",
        tuned(Encoder, lambda p, wd: optim.AdamW(p, lr=3e-3, weight_decay=wd), 30.0, 0.01),
        "weight_decay_too_high",
    ),
    pair(
        "adam_l2_of_1",
        tuned(digit_mlp, lambda p, wd: optim.Adam(p, lr=3e-3, weight_decay=wd), 1.0, 1e-4),
        "weight_decay_too_high",
    ),
    pair(
        "clip_norm_1e-5",
        clipped_sgd,
        "clip_too_small",
        trainer={"gradient_clip_val": 1e-5},
        repaired={"gradient_clip_val": 1.0},
    ),
    pair("clip_value_1e-5", clips_itself, "clip_too_small", steps=100),
    pair(
        "momentum_0.9995",
        tuned(digit_mlp, lambda p, m: optim.SGD(p, lr=0.1, momentum=m), 0.9995, 0.9),
        "momentum_too_high",
        "lr_too_high",
    ),
]
