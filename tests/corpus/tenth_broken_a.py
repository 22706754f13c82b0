"""Eighteen programs whose training goes badly, each with a twin in which the one thing is right."""

import functools
import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn.datasets import make_classification, make_friedman1
from torch import nn, optim

from .program import images, loaders, pair, standardized


def epochs(n, **more):
    """The usual arguments of a run with a validation after every epoch."""
    return {"max_epochs": n, "check_val_every_n_epoch": 1, **more}


def rng(seed):
    return torch.Generator().manual_seed(seed)


class Classifier(LightningModule):
    key = "{stage}_{what}"

    def shared_step(self, batch, stage):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log(self.key.format(stage=stage, what="loss"), loss)
        accuracy = (logits.argmax(1) == y).float().mean()
        self.log(self.key.format(stage=stage, what="acc"), accuracy, prog_bar=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.shared_step(batch, "val")


class LastEvent(Classifier):
    def __init__(self, lr):
        super().__init__()
        self.embed, self.gru = nn.Embedding(10, 16), nn.GRU(16, 48, batch_first=True)
        self.out, self.lr = nn.Linear(48, 4), lr

    def forward(self, x):
        return self.out(self.gru(self.embed(x))[0][:, -1])

    def configure_optimizers(self):
        return optim.Adagrad(self.parameters(), lr=self.lr)


def last_event(broken, n=1600, length=14):
    """Which of four kinds of events came last in a log of ten kinds?"""
    events = torch.randint(0, 10, (n, length), generator=rng(1))
    events[:, 0] = torch.randint(0, 4, (n,), generator=rng(2))
    last = torch.where(events < 4, torch.arange(length), -1).argmax(1)
    return LastEvent(2e-4 if broken else 0.05), *loaders(events, events[torch.arange(n), last])


class DigitNet(Classifier):
    def __init__(self, make_optimizer, reuse=False):
        super().__init__()
        self.make_optimizer = make_optimizer
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Linear(128, 10)
        self.backbone.requires_grad_(not reuse)

    def forward(self, x):
        return self.classifier(self.backbone(x))

    def configure_optimizers(self):
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad])


def digit_net(make_optimizer, reuse=False):
    return DigitNet(make_optimizer, reuse), *loaders(*images())


class Sorter(Classifier):
    key = "{stage}/{what}"

    def __init__(self, learning_rate, dim=32):
        super().__init__()
        self.save_hyperparameters()
        self.tok, self.pos = nn.Embedding(12, dim), nn.Parameter(torch.randn(8, dim) * 0.1)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 3), nn.Linear(dim, 12)

    def forward(self, x):
        return self.head(self.encoder(self.tok(x) + self.pos)).transpose(1, 2)

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


def sorting(broken):
    data = torch.randint(0, 12, (3600, 8), generator=rng(5))
    data = loaders(data, data.sort(1).values, batch_size=64)
    return Sorter(3e-2 if broken else 1e-3), *data


# any network and loss, with the losses of whole epochs in the log
class Features(LightningModule):
    def __init__(self, net, loss, optimizer):
        super().__init__()
        self.net, self.loss, self.optimizer = net, loss, optimizer

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.net(batch[0]), batch[-1])
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self.net(batch[0])
        self.log("val/loss", self.loss(out, batch[-1]))
        if batch[-1].dtype == torch.long:
            self.log("val/acc", (out.argmax(1) == batch[-1]).float().mean())

    def configure_optimizers(self):
        return self.optimizer(self.net.parameters())


def waveforms(broken, n=1500, length=64, noise=0.35):
    """A convolution over time that tells sines, squares, saws and triangles apart."""
    g = rng(7)
    kind = torch.randint(0, 4, (n,), generator=g)
    freq = 2 + 3 * torch.rand(n, 1, generator=g)
    phase = (freq * torch.linspace(0, 1, length) + torch.rand(n, 1, generator=g)) % 1
    sine = torch.sin(2 * math.pi * phase)
    forms = torch.stack([sine, sine.sign(), 2 * phase - 1, 4 * (phase - 0.5).abs() - 1])
    x = forms[kind, torch.arange(n)] + noise * torch.randn(n, length, generator=g)
    net = nn.Sequential(
        nn.Conv1d(1, 24, 7, padding=3), nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(24, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip

    def adamw(params):
        opt = optim.AdamW(params, lr=3e-3)
        sched = optim.lr_scheduler.ExponentialLR(opt, gamma=0.9)
        return [opt], [{"scheduler": sched, "interval": "step" if broken else "epoch"}]

    return Features(net, nn.CrossEntropyLoss(), adamw), *loaders(x.unsqueeze(1), kind)


def mlp(act, *sizes, dropout=0.0):
    layers = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b), act(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


def deep_digits(broken):
    net = mlp(nn.Sigmoid if broken else nn.Tanh, *[64] * 7, 10)
    sgd = functools.partial(optim.SGD, lr=0.03, momentum=0.9)
    return Features(net, nn.CrossEntropyLoss(), sgd), *loaders(*images())


def friedman(broken):
    x, y = make_friedman1(2000, 10, noise=0.5, random_state=4)
    x, y = torch.tensor(x).float() * 2 - 1, torch.tensor(y).float().view(-1, 1)
    net = mlp(nn.SiLU, 10, 64, 64, 1, dropout=0.8 if broken else 0.0)
    adamw = functools.partial(optim.AdamW, lr=3e-3)
    return Features(net, nn.MSELoss(), adamw), *loaders(x, (y - y.mean()) / y.std(), batch_size=64)


def segments(broken):
    """Four overlapping groups of customers, five per cent of them wrongly labelled."""
    shape = {"n_informative": 8, "n_redundant": 4, "n_classes": 4, "class_sep": 1.8}
    x, y = make_classification(1600, 20, flip_y=0.05, random_state=6, **shape)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0)).float(), torch.tensor(y)
    sgd = functools.partial(optim.SGD, lr=0.08, momentum=0.9)
    data = loaders(x, y, batch_size=4 if broken else 32)
    return Features(mlp(nn.Tanh, 20, 48, 4), nn.CrossEntropyLoss(), sgd), *data


def digit_codes(broken):
    x = images()[0].flatten(1)
    net = nn.Sequential(mlp(nn.ELU, 64, 128, 16), mlp(nn.ELU, 16, 128, 64))
    adam = functools.partial(optim.Adam, lr=1e-3, weight_decay=0.05 if broken else 0.0)
    return Features(net, nn.MSELoss(), adam), *loaders(x, x)


def progression(broken):
    x, y = standardized("diabetes")
    y = ((y - y.mean()) / y.std()).view(-1, 1)
    adam = functools.partial(optim.Adam, lr=5e-4)
    return Features(mlp(nn.ReLU, 10, 256, 256, 1), nn.MSELoss(), adam), *loaders(x, y)


class Objective(LightningModule):
    """A model that says itself what its loss is."""

    label = "loss"

    def training_step(self, batch, batch_idx):
        value = self.objective(*batch)
        self.log(f"train_{self.label}", value, batch_size=len(batch[0]))
        return value

    def validation_step(self, batch, batch_idx):
        self.log(f"val_{self.label}", self.objective(*batch), batch_size=len(batch[0]))


class NeuralCF(Objective):
    label = "mse"

    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.user, self.item = nn.Embedding(120, 16), nn.Embedding(80, 16)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)
        self.mlp = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 1))

    def objective(self, u, i, r):
        u, i = self.user(u), self.item(i)
        return F.mse_loss(self.mlp(torch.cat([u, i, u * i], 1)).squeeze(1), r)

    def configure_optimizers(self):
        opt = optim.Adam(self.parameters(), lr=5e-3)
        sched = optim.lr_scheduler.ReduceLROnPlateau(opt, self.mode, factor=0.2, patience=1)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "monitor": "val_mse"}}


class Factors(Objective):
    def __init__(self, scale, dim=16):
        super().__init__()
        self.user, self.item = nn.Embedding(120, dim), nn.Embedding(80, dim)
        self.user_bias, self.item_bias = nn.Embedding(120, 1), nn.Embedding(80, 1)
        for table in (self.user, self.item, self.user_bias, self.item_bias):
            nn.init.normal_(table.weight, std=scale)

    def objective(self, u, i, r):
        dot = (self.user(u) * self.item(i)).sum(1, keepdim=True)
        return F.mse_loss((dot + self.user_bias(u) + self.item_bias(i)).squeeze(1), r)

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=5e-3)


def ratings(n=12000, users=120, items=80):
    g = rng(11)
    u = torch.randint(0, users, (n,), generator=g)
    i = torch.randint(0, items, (n,), generator=g)
    p, q = torch.randn(users, 3, generator=g), torch.randn(items, 3, generator=g)
    bias = torch.randn(users, generator=g)[u] * 0.4 + torch.randn(items, generator=g)[i] * 0.4
    r = (p[u] * q[i]).sum(1) * 0.5 + bias + 0.3 * torch.randn(n, generator=g)
    return loaders(u, i, r, batch_size=128)


def letters(n, length, symbols=12):
    g = rng(17)
    table = torch.softmax(2 * torch.randn(symbols, symbols, symbols, generator=g), -1)
    text = [torch.randint(0, symbols, (n,), generator=g) for _ in range(2)]
    for _ in range(length - 2):
        text.append(torch.multinomial(table[text[-2], text[-1]], 1, generator=g).squeeze(1))
    return loaders(torch.stack(text, 1), batch_size=64)


class CharLSTM(Objective):
    label = "nll"

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(12, 24), nn.LSTM(24, 64, batch_first=True)
        self.decode = nn.Linear(64, 12)

    def objective(self, text):
        logits = self.decode(self.lstm(self.embed(text[:, :-1]))[0])
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), 5e-3)


# two letters of context, as in the lecture
class CharMLP(Objective):
    def __init__(self, gain):
        super().__init__()
        self.C = nn.Parameter(torch.randn(12, 10))
        self.W1 = nn.Parameter(torch.randn(20, 200) * gain[0])
        self.W2 = nn.Parameter(torch.randn(200, 12) * gain[1])
        self.b1, self.b2 = nn.Parameter(torch.zeros(200)), nn.Parameter(torch.zeros(12))

    def objective(self, x):
        hidden = torch.tanh(self.C[x[:, :2]].flatten(1) @ self.W1 + self.b1)
        return F.cross_entropy(hidden @ self.W2 + self.b2, x[:, 2])

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.1)


class GraphNet(Objective):
    def __init__(self, light):
        super().__init__()
        self.light = light
        self.own = nn.ModuleList(nn.Linear(a, 48) for a in (3, 48))
        self.near = nn.ModuleList(nn.Linear(a, 48) for a in (3, 48))
        self.readout = nn.Linear(48, 1)

    def objective(self, x, adj, y):
        for own, near in zip(self.own, self.near, strict=True):
            x = torch.relu(own(x) + adj @ near(x))
        return F.mse_loss(self.readout(x.mean(1)).squeeze(1), y)

    def configure_optimizers(self):
        what = self.readout if self.light else self
        return optim.AdamW(what.parameters(), lr=3e-3)


def molecules(broken, n=1200, nodes=10):
    g = rng(19)
    adj = (torch.rand(n, nodes, nodes, generator=g) < 0.3).float().triu(1)
    adj = adj + adj.mT
    x = F.one_hot(torch.randint(0, 3, (n, nodes), generator=g), 3).float()
    near = adj @ x
    y = ((near[..., 0] > near[..., 1]).float() * (x[..., 2] + 0.5)).sum(1)
    return GraphNet(broken), *loaders(x, adj, (y - y.mean()) / y.std())


# the sum of the two marked numbers of a sequence
class Adding(Objective):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.RNN(2, 64, nonlinearity="relu", batch_first=True), nn.Linear(64, 1)
        nn.init.eye_(self.rnn.weight_hh_l0)

    def objective(self, x, y):
        return F.mse_loss(self.out(self.rnn(x)[0][:, -1]).squeeze(1), y)

    def configure_optimizers(self):
        opt = optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        return [opt], [optim.lr_scheduler.CosineAnnealingLR(opt, 30)]


def adding(broken, n=2400, length=14):
    g = rng(23)
    values, marks = torch.rand(n, length, generator=g), torch.zeros(n, length)
    marks.scatter_(1, torch.rand(n, length, generator=g).topk(2).indices, 1.0)
    return Adding(), *loaders(torch.stack([values, marks], -1), (values * marks).sum(1))


# two noisy views of a digit are to be nearer to each other than to other digits
class Views(Objective):
    def __init__(self):
        super().__init__()
        hidden = [nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU()]
        self.encoder = nn.Sequential(*hidden, nn.Linear(128, 32))

    def objective(self, left, right):
        left, right = (F.normalize(self.encoder(v), dim=1) for v in (left, right))
        sim, target = left @ right.T / 0.1, torch.arange(len(left))
        if not self.training:
            self.log("val_acc", (sim.argmax(1) == target).float().mean())
        return (F.cross_entropy(sim, target) + F.cross_entropy(sim.T, target)) / 2

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def views(_):
    x, g = images()[0].flatten(1), rng(29)
    two = [x + 0.4 * torch.randn(x.shape, generator=g) for _ in range(2)]
    return Views(), *loaders(*two, batch_size=64, val_batch_size=64)


# segmentation of noisy discs
class TinyUNet(Objective):
    def __init__(self, momentum):
        super().__init__()
        self.momentum = momentum
        self.down, self.mid = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.up, self.final = nn.Conv2d(36, 12, 3, padding=1), nn.Conv2d(12, 1, 1)

    def objective(self, image, mask):
        a = F.relu(self.down(image))
        b = F.interpolate(F.relu(self.mid(F.max_pool2d(a, 2))), scale_factor=2.0)
        out = self.final(F.relu(self.up(torch.cat([a, b], 1))))
        hit, disc = out > 0, mask > 0.5
        if not self.training:
            self.log("val_iou", (hit & disc).sum() / (hit | disc).sum().clamp_min(1))
        return F.binary_cross_entropy_with_logits(out, mask)

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.1, momentum=self.momentum)


def segmentation(broken, n=480, size=16):
    g = rng(13)
    axis = torch.arange(size).float()
    cx, cy = (4 + 8 * torch.rand(2, n, 1, 1, generator=g)).unbind()
    radius = 2 + 2.5 * torch.rand(n, 1, 1, generator=g)
    mask = ((axis - cx) ** 2 + (axis.view(-1, 1) - cy) ** 2 < radius**2).float()
    image = mask * 1.5 + torch.randn(n, size, size, generator=g) * 0.7 - 0.2
    data = loaders(image.unsqueeze(1), mask.unsqueeze(1), batch_size=16)
    return TinyUNet(0.998 if broken else 0.9), *data


PAIRS = [
    pair("tenth_last_event_gru", last_event, "lr_too_low", "update_ratio_low",
         trainer=epochs(25), metric="val_acc"),
    pair("tenth_digits_sgd_cnn",
         lambda broken: digit_net(lambda p: optim.SGD(p, 0.5 if broken else 0.05, momentum=0.9)),
         "lr_too_high", "update_ratio_high", "dead_relu", "no_learning",
         trainer=epochs(20), metric="val_acc"),
    pair("tenth_digits_finetune",
         lambda broken: digit_net(lambda p: optim.NAdam(p, 2e-3), reuse=broken),
         "frozen_params", "weights_not_updating", "noisy_filters",
         trainer=epochs(20), metric="val_acc"),
    pair("tenth_sorting_transformer", sorting, "lr_too_high", "update_ratio_high",
         trainer=epochs(14), metric="val/acc"),
    pair("tenth_waveforms_conv1d", waveforms, "lr_decayed_too_fast",
         trainer=epochs(20), metric="val/acc"),
    pair("tenth_deep_digits_mlp", deep_digits, "vanishing_gradients", "no_learning",
         trainer=epochs(25), metric="val/acc"),
    pair("tenth_friedman_mlp", friedman, "dropout_too_high", "underfitting",
         trainer=epochs(40), metric="val/loss"),
    pair("tenth_segments_mlp", segments, "batch_noise", "lr_too_high", "loss_oscillation",
         trainer=epochs(10), metric="val/acc"),
    pair("tenth_digit_codes", digit_codes, "weight_decay_too_high",
         trainer=epochs(40), metric="val/loss"),
    pair("tenth_progression_mlp", progression, "overfitting",
         trainer=epochs(150), repaired=epochs(8), metric="val/loss"),
    pair("tenth_neural_cf", lambda broken: (NeuralCF("max" if broken else "min"), *ratings()),
         "lr_decayed_too_fast", trainer=epochs(20), metric="val_mse"),
    pair("tenth_factorization", lambda broken: (Factors(1.0 if broken else 0.1), *ratings()),
         "bad_init_scale", "loss_not_at_chance", "overfitting", trainer=epochs(16)),
    pair("tenth_char_lstm", lambda broken: (CharLSTM(), *letters(3200, 20)), "underfitting",
         trainer=epochs(2), repaired=epochs(16), metric="val_nll"),
    pair("tenth_char_mlp",
         lambda broken: (CharMLP((1.0, 1.0) if broken else (0.3, 0.05)), *letters(8000, 3)),
         "loss_not_at_chance", "bad_init_scale", "saturated_activations", trainer=epochs(20)),
    pair("tenth_molecules_gnn", molecules, "params_not_in_optimizer", "weights_not_updating",
         trainer=epochs(40)),
    pair("tenth_adding_rnn", adding, "exploding_gradients", "loss_spikes", "lr_too_high",
         "dead_relu", "no_learning", trainer=epochs(30),
         repaired=epochs(30, gradient_clip_val=0.5)),
    pair("tenth_views_contrastive", views, "clip_too_small", "update_ratio_low", metric="val_acc",
         trainer=epochs(30, gradient_clip_val=1e-3), repaired=epochs(30, gradient_clip_val=1.0)),
    pair("tenth_segmentation_unet", segmentation, "momentum_too_high", "lr_too_high",
         "loss_oscillation", "loss_diverging", trainer=epochs(25), metric="val_iou"),
]  # fmt: skip
