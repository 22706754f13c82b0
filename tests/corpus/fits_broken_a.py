"""Whole fits that go badly by their settings, each with its repaired twin."""

import itertools

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
)

from tests.corpus.program import images, loaders, pair, standardized


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Classifier(LightningModule):
    """Cross entropy; ``configure`` gets the parameters and returns what Lightning wants."""

    def __init__(self, net, configure):
        super().__init__()
        self.net = net
        self.configure = configure

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return self.configure(self.parameters())


class Regressor(LightningModule):
    """Mean squared error of one number; logs as ``loss/...``."""

    def __init__(self, net, configure):
        super().__init__()
        self.model = net
        self.configure = configure

    def forward(self, x):
        return self.model(x).squeeze(-1)

    def training_step(self, batch, _):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("loss/train", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.configure(self.parameters())


def sgd(lr, **settings):
    return lambda params: torch.optim.SGD(params, lr, **settings)


def adam(lr, **settings):
    return lambda params: torch.optim.Adam(params, lr, **settings)


def scheduled(optimizer, schedule, interval="step"):
    def configure(params):
        made = optimizer(params)
        return [made], [{"scheduler": schedule(made), "interval": interval}]

    return configure


def cnn(width=12):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def mlp(*widths, act=nn.ReLU):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def epochs(count, **settings):
    return {"max_epochs": count} | settings


def on_images(wrong, right, net=cnn, **settings):
    """The digits' CNN with one or the other way to configure its optimizer."""
    return lambda broken: (
        Classifier(net(), wrong if broken else right),
        *loaders(*images(), **settings),
    )


def on_digits(wrong, right, *hidden, **settings):
    return lambda broken: (
        Classifier(mlp(64, *hidden, 10), wrong if broken else right),
        *loaders(*standardized("digits"), **settings),
    )


def on_cancer(wrong, right):
    return lambda broken: (
        Classifier(mlp(30, 24, 2), wrong if broken else right),
        *loaders(*standardized("breast_cancer")),
    )


def surface(count=1600, noise=0.1, features=6, seed=3):
    """A smooth function of a few of the columns."""
    rng = generator(seed)
    x = torch.randn(count, features, generator=rng)
    y = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3]
    return x, y + noise * torch.randn(count, generator=rng)


def on_surface(wrong, right, width=48, **settings):
    return lambda broken: (
        Regressor(mlp(6, width, width, 1), wrong if broken else right),
        *loaders(*surface(), **settings),
    )


def progression(broken):
    """The raw targets, about 150 with a deviation of 77, and a step that is too long for them."""
    x, y = standardized("diabetes")
    return Regressor(mlp(10, 32, 1), sgd(0.03 if broken else 3e-4)), *loaders(x, y)


def ratings(broken):
    """Counts words: a large bag of them, a large rate."""
    rng = generator(6)
    words = torch.poisson(torch.full((1200, 40), 3.0), generator=rng)
    y = words @ torch.randn(40, generator=rng) * 0.2
    return Regressor(mlp(40, 64, 1), sgd(1e-1 if broken else 1e-3)), *loaders(words, y)


class Glued(LightningModule):
    """A small transformer over four pixel rows at a time."""

    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.randn(8, 32) * 0.02)
        block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.mix = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, image):
        return self.head(self.mix(self.embed(image[:, 0]) + self.place).mean(1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        scores = self(batch[0])
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_acc", (scores.argmax(-1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class Echo(LightningModule):
    """The sum of the marked numbers of a series, read by a GRU."""

    def __init__(self, optimizer):
        super().__init__()
        self.rnn = nn.GRU(2, 24, batch_first=True)
        self.out = nn.Linear(24, 1)
        self.optimizer = optimizer

    def loss(self, batch):
        series, total = batch
        _, last = self.rnn(series)
        return F.mse_loss(self.out(last[0])[:, 0], total)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", self.loss(batch))

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def echo(wrong, right):
    rng = generator(4)
    values = torch.rand(1600, 10, generator=rng)
    marks = (torch.rand(1600, 10, generator=rng) < 0.3).float()
    total = (values * marks).sum(1)
    return lambda broken: (
        Echo(wrong if broken else right),
        *loaders(torch.stack([values, marks], 2), total),
    )


def head_rate(lr):
    def configure(params):
        params = list(params)
        return torch.optim.SGD(
            [{"params": params[:-2]}, {"params": params[-2:], "lr": lr}], lr=0.05, momentum=0.9
        )

    return configure


def grows(optimizer):
    return LambdaLR(optimizer, lambda step: 1.012**step)


def shrinks(optimizer):
    return LambdaLR(optimizer, lambda step: 0.998**step)


def slow_warmup(optimizer):
    return LinearLR(optimizer, 1e-5, 1.0, total_iters=20000)


def short_warmup(optimizer):
    return LinearLR(optimizer, 1e-2, 1.0, total_iters=40)


TOO_LOW = ("lr_too_low", "update_ratio_low", "underfitting")
TOO_HIGH = ("lr_too_high", "update_ratio_high", "loss_oscillation", "loss_diverging", "no_learning")
BLOWN_UP = (*TOO_HIGH, "non_finite", "exploding_gradients")
CNN_LR = on_images(sgd(1e-4), sgd(0.1))
CNN_SGD = on_images(sgd(0.02, momentum=0.9), sgd(0.02, momentum=0.9))
PAIRS = [
    pair("fit_sgd_1e-4", CNN_LR, *TOO_LOW, "no_learning", metric="val_acc", trainer=epochs(8)),
    pair("fit_adam_1e-6", on_cancer(adam(1e-6), adam(3e-3)), *TOO_LOW, "no_learning",
         trainer=epochs(12, log_every_n_steps=5)),
    pair("fit_adam_2e-5_cnn", on_images(adam(2e-5), adam(3e-3)), *TOO_LOW, metric="val_acc",
         trainer=epochs(6)),
    pair("fit_sgd_low_gru", echo(sgd(1e-3), sgd(0.05, momentum=0.9)), *TOO_LOW, "no_learning",
         metric="val_mse", trainer=epochs(8)),
    pair("fit_sgd_low_surface", on_surface(sgd(5e-4), sgd(0.02, momentum=0.9)), *TOO_LOW,
         "no_learning", metric="val_mse", trainer=epochs(10, log_every_n_steps=10)),
    pair("fit_adam_eps_1", on_digits(adam(1e-3, eps=1.0), adam(1e-3), 64, 64), *TOO_LOW,
         metric="val_acc", trainer=epochs(8)),
    pair("fit_sgd_high_cnn", on_images(sgd(1.5, momentum=0.9), sgd(0.05, momentum=0.9)), *BLOWN_UP,
         "dead_relu", metric="val_acc", trainer=epochs(6)),
    pair("fit_adam_0.3", on_digits(adam(0.3), adam(3e-3), 64, 32), *TOO_HIGH, "dead_relu",
         metric="val_acc", trainer=epochs(8, log_every_n_steps=10)),
    pair("fit_adam_high_surface", on_surface(adam(0.3), adam(3e-3)), *TOO_HIGH, "dead_relu",
         metric="val_mse", trainer=epochs(8)),
    pair("fit_transformer_0.05", lambda b: (Glued(0.05 if b else 2e-3), *loaders(*images())),
         *TOO_HIGH, "saturated_activations", "dead_relu", metric="val_acc", trainer=epochs(10)),
    pair("fit_raw_to_nan", progression, *BLOWN_UP, metric="val_mse",
         trainer=epochs(30, log_every_n_steps=10)),
    pair("fit_counts_high", ratings, *BLOWN_UP, "unnormalized_input", "dead_relu",
         metric="val_mse", trainer=epochs(30)),
    pair("fit_rate_grows", on_images(scheduled(sgd(0.02, momentum=0.9), grows),
                                     scheduled(sgd(0.02, momentum=0.9), shrinks)),
         *BLOWN_UP, "dead_relu", metric="val_acc", trainer=epochs(10)),
    pair("fit_momentum_0.999", on_images(sgd(0.05, momentum=0.999), sgd(0.05, momentum=0.9)),
         *BLOWN_UP, "momentum_too_high", "dead_relu", metric="val_acc", trainer=epochs(6)),
    pair("fit_momentum_surface", on_surface(sgd(0.05, momentum=0.995), sgd(0.05, momentum=0.9)),
         *BLOWN_UP, "momentum_too_high", "dead_relu", metric="val_mse",
         trainer=epochs(8, log_every_n_steps=10)),
    pair("fit_head_rate_20", on_images(head_rate(20.0), head_rate(0.05)), *BLOWN_UP, "dead_relu",
         metric="val_acc", trainer=epochs(5)),
    pair("fit_restart_too_high", on_digits(
            scheduled(sgd(3.0), lambda o: CosineAnnealingWarmRestarts(o, 60)),
            scheduled(sgd(0.2), lambda o: CosineAnnealingWarmRestarts(o, 60)), 64, 64),
         *BLOWN_UP, "dead_relu", metric="val_acc", trainer=epochs(8)),
    pair("fit_batch_1_sgd", on_digits(sgd(0.12), sgd(0.005), 48, batch_size=1), *BLOWN_UP,
         "batch_noise", "dead_relu", metric="val_acc", trainer={"max_steps": 1500}),
    pair("fit_batch_2_surface", on_surface(sgd(0.2), sgd(0.02), batch_size=2), *BLOWN_UP,
         "batch_noise", "dead_relu", metric="val_mse", trainer={"max_steps": 1400}),
    pair("fit_clip_1e-3", CNN_SGD, *TOO_LOW, "clip_too_small",
         "no_learning", metric="val_acc", trainer=epochs(8, gradient_clip_val=1e-3),
         repaired=epochs(8, gradient_clip_val=5.0)),
    pair("fit_clip_by_value", on_surface(sgd(0.05, momentum=0.9), sgd(0.05, momentum=0.9)),
         *TOO_LOW, "clip_too_small", "no_learning", metric="val_mse",
         trainer=epochs(10, gradient_clip_val=1e-5, gradient_clip_algorithm="value"),
         repaired=epochs(10, gradient_clip_val=1.0)),
    pair("fit_sgd_decay_0.5", on_images(sgd(0.05, momentum=0.9, weight_decay=0.5),
                                        sgd(0.05, momentum=0.9, weight_decay=5e-4)),
         "weight_decay_too_high", "no_learning", "underfitting", "vanishing_gradients",
         "dead_relu", metric="val_acc", trainer=epochs(6)),
    pair("fit_adamw_decay_20", on_digits(lambda p: torch.optim.AdamW(p, 5e-3, weight_decay=20.0),
                                         lambda p: torch.optim.AdamW(p, 5e-3), 64),
         "weight_decay_too_high", "no_learning", "underfitting", "vanishing_gradients",
         metric="val_acc", trainer=epochs(8, log_every_n_steps=20)),
    pair("fit_decay_each_step", on_images(scheduled(sgd(0.1), lambda o: ExponentialLR(o, 0.9)),
                                          scheduled(sgd(0.1), lambda o: ExponentialLR(o, 0.9),
                                                    "epoch")),
         *TOO_LOW, "lr_decayed_too_fast", "no_learning", metric="val_acc", trainer=epochs(15)),
    pair("fit_milestones_in_steps", on_surface(
            scheduled(sgd(0.02, momentum=0.9), lambda o: MultiStepLR(o, [30, 60, 90])),
            scheduled(sgd(0.02, momentum=0.9), lambda o: MultiStepLR(o, [20, 26]), "epoch")),
         *TOO_LOW, "lr_decayed_too_fast", metric="val_mse", trainer=epochs(30)),
    pair("fit_warmup_too_long", on_images(scheduled(sgd(0.1), slow_warmup),
                                          scheduled(sgd(0.1), short_warmup)),
         *TOO_LOW, "no_learning", metric="val_acc", trainer=epochs(8)),
    pair("fit_warmup_adamw", on_digits(scheduled(adam(1e-3), slow_warmup),
                                       scheduled(adam(1e-3), short_warmup), 64, 64),
         *TOO_LOW, metric="val_acc", trainer=epochs(5)),
    pair("fit_stopped_early", CNN_SGD, "underfitting", "lr_too_low", metric="val_acc",
         trainer=epochs(2), repaired=epochs(12)),
    pair("fit_few_updates", on_digits(adam(1e-3), adam(1e-3), 64), "underfitting", "lr_too_low",
         metric="val_acc", trainer=epochs(10, accumulate_grad_batches=42), repaired=epochs(10)),
]  # fmt: skip
