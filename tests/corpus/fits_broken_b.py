"""Whole fits that go badly by their networks, losses or data, each with its repaired twin."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn import datasets
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import bundled, images, loaders, pair, standardized


class Net(LightningModule):
    """Digits by whatever network it is given."""

    def __init__(self, net, lr=0.05, momentum=0.9, adam=False, parameters=None):
        super().__init__()
        self.net = net
        self.lr, self.momentum, self.adam = lr, momentum, adam
        self.trained = parameters or self.parameters

    def forward(self, x):
        return self.net(x)

    def _step(self, batch, name):
        x, y = batch
        out = self(x)
        loss = F.cross_entropy(out, y)
        accuracy = (out.argmax(-1) == y).float().mean()
        self.log_dict({f"{name}_loss": loss, f"{name}_acc": accuracy}, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val")

    def configure_optimizers(self):
        if self.adam:
            return torch.optim.Adam(self.trained(), lr=self.lr)
        return torch.optim.SGD(self.trained(), lr=self.lr, momentum=self.momentum)


def layers(sizes, act, init=None):
    net = nn.Sequential()
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        net.add_module(f"fc{i}", nn.Linear(a, b))
        if init:
            init(net[-1])
        if i < len(sizes) - 2:
            net.add_module(f"act{i}", act())
    return net


def weights(std, bias=None):
    def init(layer):
        nn.init.normal_(layer.weight, std=std)
        if bias is not None:
            nn.init.constant_(layer.bias, bias)

    return init


def for_(count, **settings):
    return {"max_epochs": count} | settings


def digits(net, **options):
    return Net(net, **options), *loaders(*standardized("digits"))


def hockey_stick(broken):
    return digits(layers([64, 128, 128, 10], nn.ReLU, weights(1.0) if broken else None), lr=1e-3,
                  adam=True)  # fmt: skip


def negative_biases(broken):
    net = layers([64, 64, 64, 10], nn.ReLU)
    if broken:
        for layer in (net.fc0, net.fc1):
            nn.init.constant_(layer.bias, -4.0)
    return digits(net, lr=0.02)


def killed(broken):
    """Pixels from 0 to 16 and a first step that throws most units off for good."""
    x, y = bundled("digits")
    net = layers([64, 48, 48, 10], nn.ReLU)
    return Net(net, lr=0.5 if broken else 0.003), *loaders(x, y)


def saturated_tanh(broken):
    net = layers([64, 100, 100, 100, 10], nn.Tanh, weights(1.5) if broken else None)
    return digits(net, lr=0.01)


def raw_sigmoid(broken):
    x, y = bundled("wine") if broken else standardized("wine")
    net = layers([13, 24, 24, 3], nn.Sigmoid)
    return Net(net, lr=1e-2, adam=True), *loaders(x, y, batch_size=16)


def deep_sigmoid(broken):
    sizes = [64, *[48] * 7, 10]
    if broken:
        return digits(layers(sizes, nn.Sigmoid), lr=0.02)
    return digits(layers(sizes, nn.ReLU, lambda fc: nn.init.kaiming_normal_(fc.weight)), lr=0.02)


def deep_tiny(broken):
    return digits(layers([64, *[64] * 5, 10], nn.ReLU, weights(0.01) if broken else None), lr=0.05)


class Recurrent(LightningModule):
    """A plain recurrence written as a loop: where was the greatest number of the series?"""

    def __init__(self, gain, lr, size=40):
        super().__init__()
        self.read = nn.Linear(1, size)
        self.turn = nn.Linear(size, size, bias=False)
        nn.init.orthogonal_(self.turn.weight, gain)
        self.out = nn.Linear(size, 2)
        self.lr = lr

    def forward(self, series):
        h = series.new_zeros(len(series), self.turn.in_features)
        for t in range(series.shape[1]):
            h = F.relu(self.read(series[:, t, None]) + self.turn(h))
        return self.out(h)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        scores = self(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


def recurrence(gain, lr):
    """Which half of the series holds the larger sum."""

    def make(broken):
        series = torch.randn(1200, 24, generator=torch.Generator().manual_seed(1))
        later = (series[:, 12:].sum(1) > series[:, :12].sum(1)).long()
        return Recurrent(gain if broken else 0.9, lr if broken else 3e-3), *loaders(series, later)

    return make


def few_images(broken):
    """Forty images, a fifth of them with a wrong label, against all of them."""
    x, y = standardized("digits")
    cut = 40 if broken else 1300
    rng = torch.Generator().manual_seed(5)
    y = torch.where(torch.rand(len(y), generator=rng) < 0.2,
                    torch.randint(0, 10, y.shape, generator=rng), y)  # fmt: skip
    train = DataLoader(TensorDataset(x[:cut], y[:cut]), 20, shuffle=True)
    val = DataLoader(TensorDataset(x[1300:], y[1300:]), 250)
    net = layers([64, 128, 128, 10], nn.ReLU)
    return Net(net, lr=1e-3, adam=True), train, val


class Progression(LightningModule):
    """The diabetes table with its target to scale, by a network of any size."""

    def __init__(self, width, dropout=0.0, decay=0.0):
        super().__init__()
        self.save_hyperparameters()
        self.fc1, self.fc2 = nn.Linear(10, width), nn.Linear(width, width)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(width, 1)

    def forward(self, x):
        x = self.drop(F.relu(self.fc1(x)))
        return self.head(self.drop(F.relu(self.fc2(x)))).flatten()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_mse", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=self.hparams.decay)


def large_for_a_table(broken):
    x, y = standardized("diabetes")
    model = Progression(256) if broken else Progression(16, dropout=0.1, decay=0.1)
    return model, *loaders(x, (y - y.mean()) / y.std(), batch_size=16)


class LastWords(LightningModule):
    """Learns every sentence of a small corpus by heart."""

    def __init__(self, vocabulary=30):
        super().__init__()
        self.table = nn.Embedding(vocabulary, 48)
        self.rnn = nn.LSTM(48, 96, batch_first=True)
        self.head = nn.Linear(96, vocabulary)

    def loss(self, tokens):
        out, _ = self.rnn(self.table(tokens[:, :-1]))
        return F.cross_entropy(self.head(out).flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        return self.loss(batch[0])

    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch[0])
        self.log_dict({"val_loss": loss, "val_perplexity": loss.exp()})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def sentences(broken):
    """Each word follows the last by a table of probabilities."""
    rng = torch.Generator().manual_seed(8)
    chances = torch.softmax(2 * torch.randn(30, 30, generator=rng), 1)
    count = 60 if broken else 1200
    words = torch.randint(0, 30, (count + 300, 1), generator=rng)
    for _ in range(11):
        words = torch.cat([words, torch.multinomial(chances[words[:, -1]], 1, generator=rng)], 1)
    train = DataLoader(TensorDataset(words[300:]), 20, shuffle=True)
    return LastWords(), train, DataLoader(TensorDataset(words[:300]), 100)


def plane(name, hidden, **options):
    def make(broken):
        x, y = getattr(datasets, f"make_{name}")(1200, noise=0.08, random_state=0)
        x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
        net = layers([2, 2] if broken else [2, *hidden, 2], nn.ReLU)
        return Net(net, **options), *loaders(x, y)

    return make


def checkerboard(broken):
    x = torch.rand(1600, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = nn.Linear(2, 2) if broken else layers([2, 32, 32, 2], nn.ReLU)
    return Net(net, lr=5e-3, adam=True), *loaders(x, y)


def narrow(broken):
    return digits(layers([64, 1 if broken else 32, 10], nn.Tanh), lr=5e-3, adam=True)


def random_labels(broken):
    x, y = images()
    if broken:
        y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(7))]
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                        nn.Linear(72, 10))  # fmt: skip
    return Net(net, lr=0.02), *loaders(x, y)


def shuffled_targets(broken):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 10)).astype("float32")
    y = (np.tanh(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2]).astype("float32")
    if broken:
        rng.shuffle(y)
    return Progression(32), *loaders(torch.from_numpy(x), torch.from_numpy(y))


class Empty(Net):
    """Reads a buffer of zeros that the loader should have filled."""

    def forward(self, x):
        return super().forward(x.new_zeros(x.shape))


def empty_buffer(broken):
    net = layers([64, 64, 10], nn.ReLU)
    return (Empty if broken else Net)(net, lr=0.05), *loaders(*standardized("digits"))


def trunk_left_out(broken):
    """The optimizer was given the head alone; the trunk is narrow and never learns."""
    net = layers([64, 32, 6, 10], nn.Tanh)
    return digits(net, lr=5e-3, adam=True, parameters=net.fc2.parameters if broken else None)


class Cut(Net):
    """Features through a ``detach`` that was put in for a plot and stayed."""

    def __init__(self, detach):
        super().__init__(nn.Linear(8, 10), lr=5e-3, adam=True)
        self.features = layers([64, 32, 8], nn.ReLU)
        self.detach = detach

    def forward(self, x):
        h = self.features(x)
        return self.net(F.relu(h.detach() if self.detach else h))


def cut(broken):
    return Cut(broken), *loaders(*standardized("digits"))


class Robust(LightningModule):
    """A small regression whose loss is an argument."""

    def __init__(self, criterion, lr):
        super().__init__()
        self.net = layers([5, 48, 48, 1], nn.ReLU)
        self.criterion, self.lr = criterion, lr

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self.net(batch[0])[:, 0], batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self.net(batch[0])[:, 0]
        self.log("val_loss", self.criterion(out, batch[1]))
        self.log("val_mae", F.l1_loss(out, batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def outliers(broken):
    """A sensor that says 200 in half of a per cent of the rows."""
    rng = torch.Generator().manual_seed(9)
    x = torch.randn(1600, 5, generator=rng)
    y = torch.sin(1.5 * x[:, 0]) + x[:, 1] + 0.1 * torch.randn(1600, generator=rng)
    y = y.masked_fill((torch.rand(1600, generator=rng) < 5e-3) & (torch.arange(1600) < 1200), 200.0)
    return Robust(F.mse_loss if broken else F.smooth_l1_loss, 0.01), *loaders(x, y)


def other_sensor(broken):
    """Validation images come without the scaling that the training images had."""
    train, _ = loaders(*standardized("digits"))
    _, val = loaders(*(bundled("digits") if broken else standardized("digits")))
    return Net(layers([64, 64, 10], nn.ReLU), lr=0.02), train, val


def sorted_split(broken):
    """Trained on the small digits, validated on the large ones."""
    x, y = standardized("digits")
    if broken:
        order = y.argsort(stable=True)
        x, y = x[order], y[order]
    return Net(layers([64, 48, 10], nn.ReLU), lr=2e-3, adam=True), *loaders(x, y)


class ByHand(LightningModule):
    """Binary cross entropy from its formula."""

    def __init__(self, by_hand):
        super().__init__()
        self.net = layers([30, 64, 64, 1], nn.ReLU)
        self.by_hand = by_hand

    def loss(self, batch):
        x, y = batch
        out, y = self.net(x).flatten(), y.float()
        if not self.by_hand:
            return F.binary_cross_entropy_with_logits(out, y)
        p = torch.sigmoid(out)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.1)


def log_of_zero(broken):
    return ByHand(broken), *loaders(*standardized("breast_cancer"))


class Twins(LightningModule):
    """Draws pairs of one class together; the root of zero has no slope."""

    def __init__(self, epsilon):
        super().__init__()
        self.embed = layers([64, 48, 4], nn.ReLU)
        self.epsilon = epsilon

    def loss(self, batch):
        x, y = batch
        z, half = self.embed(x), len(x) // 2
        gap = (z[:half] - z[half : 2 * half]).square().sum(1)
        same = (y[:half] == y[half : 2 * half]).float()
        distance = torch.sqrt(gap + self.epsilon)
        return (same * distance + (1 - same) * F.relu(2 - distance)).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


def root_of_zero(broken):
    """Some images stand in the table more than once, and sooner or later meet in a pair."""
    x, y = standardized("digits")
    copies = torch.arange(len(x))
    copies[:120] = 0
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    x, y = x[copies][order], y[copies][order]
    return Twins(0.0 if broken else 1e-6), *loaders(x, y)


class Amplifier(nn.Module):
    """A learned gain, kept as its logarithm times a hundred."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.log_gain = nn.Parameter(torch.zeros(48))

    def forward(self, x):
        return x * torch.exp(self.scale * self.log_gain)


def amplifier(broken):
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), Amplifier(30.0 if broken else 1.0),
                        nn.Linear(48, 10))  # fmt: skip
    return digits(net, lr=0.02)


def heavy_dropout(broken):
    p = 0.95 if broken else 0.2
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 64), nn.ReLU(),
                        nn.Dropout(p), nn.Linear(64, 10))  # fmt: skip
    return digits(net, lr=1e-3, adam=True)


class Score(LightningModule):
    """An autoencoder of standardized images behind a squashing output."""

    def __init__(self, squash):
        super().__init__()
        self.net = nn.Sequential(*layers([64, 48, 24, 48, 64], nn.ReLU), squash)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self.net(batch[0]), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 5e-3)


def squashed(broken):
    x, _ = bundled("digits")
    x = (x - x.mean()) * 3
    return Score(nn.Tanh() if broken else nn.Identity()), *loaders(x)


BAD_SCALE = ("bad_init_scale", "loss_not_at_chance")
NO_SIGNAL = ("no_learning", "underfitting", "label_mismatch")
TORN = ("lr_too_high", "loss_diverging", "update_ratio_high", "non_finite", "exploding_gradients")
STILL = ("frozen_params", "params_not_in_optimizer", "no_grad_flow", "weights_not_updating",
         "update_ratio_low")  # fmt: skip
FAINT = ("vanishing_gradients", "bad_init_scale", "no_learning", "saturated_activations",
         "underfitting")  # fmt: skip
TWO_WORLDS = ("train_val_mismatch", "overfitting")
PAIRS = [
    pair("fit_hockey_stick", hockey_stick, *BAD_SCALE, trainer=for_(6)),
    pair("fit_negative_biases", negative_biases, "dead_relu", "no_learning", "bad_init_scale",
         metric="val_acc", trainer=for_(8, log_every_n_steps=10)),
    pair("fit_killed_relus", killed, "dead_relu", "unnormalized_input", "no_learning", *TORN,
         metric="val_acc", trainer=for_(8)),
    pair("fit_saturated_tanh", saturated_tanh, "saturated_activations", *BAD_SCALE,
         "vanishing_gradients", metric="val_acc", trainer=for_(8, log_every_n_steps=20)),
    pair("fit_raw_sigmoid", raw_sigmoid, "saturated_activations", "unnormalized_input",
         "no_learning", "underfitting", trainer=for_(40)),
    pair("fit_deep_sigmoid", deep_sigmoid, *FAINT, metric="val_acc", trainer=for_(10)),
    pair("fit_deep_tiny_init", deep_tiny, *FAINT, metric="val_acc", trainer=for_(8)),
    pair("fit_exploding_rnn", recurrence(2.5, 3e-3), *TORN, *BAD_SCALE, "no_learning",
         "dead_relu", metric="val_acc", trainer=for_(15)),
    pair("fit_rnn_rate", recurrence(0.9, 0.2), *TORN, "dead_relu", "no_learning",
         "loss_oscillation", metric="val_acc", trainer=for_(15, log_every_n_steps=10)),
    pair("fit_forty_images", few_images, "overfitting", trainer=for_(120, log_every_n_steps=2),
         repaired=for_(5)),
    pair("fit_large_for_a_table", large_for_a_table, "overfitting", metric="val_mse",
         trainer=for_(50)),
    pair("fit_sixty_sentences", sentences, "overfitting", trainer=for_(120, log_every_n_steps=3),
         repaired=for_(8)),
    pair("fit_narrow_circles", plane("circles", (24, 24), lr=1e-2, adam=True),
         "underfitting", "no_learning", "missing_nonlinearity", metric="val_acc", trainer=for_(16)),
    pair("fit_linear_xor", checkerboard, "underfitting", "no_learning", "missing_nonlinearity",
         metric="val_acc", trainer=for_(10)),
    pair("fit_one_unit", narrow, "underfitting", "saturated_activations", metric="val_acc",
         trainer=for_(20)),
    pair("fit_random_labels", random_labels, *NO_SIGNAL, "overfitting", trainer=for_(12)),
    pair("fit_shuffled_targets", shuffled_targets, *NO_SIGNAL, "overfitting", metric="val_mse",
         trainer=for_(12)),
    pair("fit_empty_buffer", empty_buffer, *NO_SIGNAL, "constant_input", "input_ignored",
         "no_grad_flow", "weights_not_updating", "dead_relu", metric="val_acc", trainer=for_(6)),
    pair("fit_trunk_left_out", trunk_left_out, *STILL, metric="val_acc", trainer=for_(8)),
    pair("fit_cut_features", cut, *STILL, metric="val_acc", trainer=for_(8)),
    pair("fit_outliers", outliers, *TORN, "loss_oscillation", "batch_noise", "dead_relu",
         "train_val_mismatch", metric="val_mae", trainer=for_(12)),
    pair("fit_other_sensor", other_sensor, *TWO_WORLDS, trainer=for_(8)),
    pair("fit_sorted_split", sorted_split, *TWO_WORLDS, trainer=for_(10)),
    pair("fit_log_of_zero", log_of_zero, "non_finite", trainer=for_(40), repaired=for_(8)),
    pair("fit_root_of_zero", root_of_zero, "non_finite", trainer=for_(8, log_every_n_steps=10)),
    pair("fit_amplifier", amplifier, *TORN, "no_learning", "dead_relu", "loss_oscillation",
         "no_grad_flow", metric="val_acc", trainer=for_(6)),
    pair("fit_dropout_0.95", heavy_dropout, "dropout_too_high", "underfitting", metric="val_acc",
         trainer=for_(10)),
    pair("fit_squashed_output", squashed, "saturated_activations", "output_range_mismatch",
         "underfitting", metric="val_mse", trainer=for_(12)),
]  # fmt: skip
