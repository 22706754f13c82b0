"""Whole fits whose settings or initialization are wrong, written without sight of the monitors."""

import itertools

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.program import bundled, images, loaders, pair, standardized

LOW = ("lr_too_low", "update_ratio_low", "underfitting")
HIGH = ("lr_too_high", "update_ratio_high", "loss_diverging", "loss_oscillation", "no_learning")
BLOWN = ("lr_too_high", "update_ratio_high", "loss_diverging", "non_finite", "exploding_gradients")


class Classifier(LightningModule):
    """A network of logits, its loss and whatever configure_optimizers shall return."""

    def __init__(self, net, optimizer, schedule=None, interval="epoch"):
        super().__init__()
        self.net = net
        self.optimizer, self.schedule, self.interval = optimizer, schedule, interval

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = {"scheduler": self.schedule(optimizer), "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Regressor(Classifier):
    """The same with one output and the squared error."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x).squeeze(-1), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.mse_loss(self.net(x).squeeze(-1), y))


def mlp(*sizes, act=nn.ReLU):
    layers = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), act()]
    return nn.Sequential(*layers[:-1])


def sgd(**kwargs):
    return lambda params: torch.optim.SGD(params, **kwargs)


def adam(**kwargs):
    return lambda params: torch.optim.Adam(params, **kwargs)


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def waves(n=1024, length=24):
    """Noisy sines of three frequencies."""
    g = torch.Generator().manual_seed(11)
    y = torch.randint(0, 3, (n,), generator=g)
    t = torch.arange(length).float()
    phase = 6.28 * torch.rand(n, 1, generator=g)
    x = torch.sin(t * (0.3 + 0.35 * y[:, None]) + phase)
    return (x + 0.2 * torch.randn(n, length, generator=g)).unsqueeze(-1), y


def curve(n=640):
    g = torch.Generator().manual_seed(5)
    x = torch.rand(n, 4, generator=g) * 2 - 1
    y = torch.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3]
    return x, y + 0.05 * torch.randn(n, generator=g)


def sgd_tiny_lr(broken):
    x, y = standardized("digits")
    net = mlp(64, 48, 10)
    return Classifier(net, sgd(lr=1e-4 if broken else 0.1, momentum=0.5)), *loaders(x, y)


class Attention(nn.Module):
    """Rows of a digit as tokens, one encoder layer."""

    def __init__(self, dim=24):
        super().__init__()
        self.embed = nn.Linear(8, dim)
        self.place = nn.Parameter(0.02 * torch.randn(8, dim))
        self.block = nn.TransformerEncoderLayer(
            dim, 2, 2 * dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        return self.head(self.block(self.embed(x.view(-1, 8, 8)) + self.place).mean(1))


def transformer_tiny_lr(broken):
    return Classifier(Attention(), adam(lr=2e-6 if broken else 6e-3)), *loaders(*images())


def transformer_huge_lr(broken):
    return Classifier(Attention(), adam(lr=0.3 if broken else 6e-3)), *loaders(*images())


def cnn_huge_lr(broken):
    return Classifier(cnn(), adam(lr=0.2 if broken else 5e-3)), *loaders(*images())


def linear_blows_up(broken):
    x, y = standardized("diabetes")
    y = (y - y.mean()) / y.std()
    net = nn.Linear(10, 1)
    return Regressor(net, sgd(lr=0.55 if broken else 0.02)), *loaders(x, y, batch_size=16)


class HandWrittenBCE(LightningModule):
    """Cancer or not, with the log of a probability that reaches one."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.net = mlp(30, 32, 32, 1)

    def loss(self, batch):
        x, y = batch
        z, y = self.net(x).squeeze(1), y.float()
        if not self.broken:
            return F.binary_cross_entropy_with_logits(z, y)
        p = torch.sigmoid(z)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-2, weight_decay=0.1)


def nan_later(broken):
    return HandWrittenBCE(broken), *loaders(*standardized("breast_cancer"), batch_size=16)


def hockey_stick(broken):
    net = mlp(64, 96, 96, 96, 10)
    if broken:
        for m in net:
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight)
    return Classifier(net, adam(lr=1e-3)), *loaders(*standardized("digits"))


def dead_at_birth(broken):
    net = mlp(64, 64, 64, 10)
    nn.init.constant_(net[2].bias, -12.0 if broken else 0.0)
    return Classifier(net, sgd(lr=0.1, momentum=0.9)), *loaders(*standardized("digits"))


def dies_of_step(broken):
    """Targets around 8 and first steps that are far too long: the hidden layers die."""
    x, y = standardized("diabetes")
    net = mlp(10, 32, 32, 1)
    opt = adam(lr=1.0) if broken else sgd(lr=0.003)
    return Regressor(net, opt), *loaders(x, y / 20, batch_size=16)


def saturated_tanh(broken):
    """Raw pixels 0..16 into wide-initialized tanh layers."""
    x, y = bundled("digits") if broken else standardized("digits")
    net = mlp(64, 64, 64, 10, act=nn.Tanh)
    if broken:
        for m in (net[0], net[2]):
            nn.init.normal_(m.weight, std=1.0)
    return Classifier(net, adam(lr=1e-3)), *loaders(x, y)


def deep_sigmoid(broken):
    sizes = (64, *[40] * 7, 10)
    net = mlp(*sizes, act=nn.Sigmoid if broken else nn.ELU)
    return Classifier(net, sgd(lr=0.03, momentum=0.9)), *loaders(*standardized("digits"))


class Recurrent(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.rnn = nn.RNN(1, 32, nonlinearity="relu", batch_first=True)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(gain * torch.eye(32))
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        _, h = self.rnn(x)
        return self.head(h[-1])


def exploding_rnn(broken):
    net = Recurrent(1.25 if broken else 0.9)
    opt = sgd(lr=0.03, momentum=0.9) if broken else adam(lr=3e-3)
    return Classifier(net, opt), *loaders(*waves())


def tiny_clip(broken):
    return Classifier(cnn(), sgd(lr=0.1, momentum=0.9)), *loaders(*images())


def huge_decay(broken):
    def opt(params):
        return torch.optim.AdamW(params, lr=5e-3, weight_decay=40.0 if broken else 0.01)

    return Classifier(mlp(13, 32, 32, 3), opt), *loaders(*standardized("wine"), batch_size=8)


def l2_in_sgd(broken):
    opt = sgd(lr=0.05, momentum=0.9, weight_decay=0.3 if broken else 1e-4)
    return Classifier(mlp(64, 64, 10), opt), *loaders(*standardized("digits"))


def decays_to_nothing(broken):
    """Gamma was meant per epoch, but the scheduler steps per batch."""

    def schedule(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)

    x, y = curve()
    module = Regressor(
        mlp(4, 48, 48, 1), adam(lr=1e-2), schedule, interval="step" if broken else "epoch"
    )
    return module, *loaders(x, y, batch_size=16)


def endless_warmup(broken):
    length = 100_000 if broken else 30

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / length))

    return Classifier(Attention(), adam(lr=6e-3), schedule, "step"), *loaders(*images())


def heavy_momentum(broken):
    opt = sgd(lr=0.05, momentum=0.998 if broken else 0.9)
    x, y = curve()
    return Regressor(mlp(4, 32, 32, 1, act=nn.Tanh), opt), *loaders(x, y, batch_size=32)


def jumpy_rmsprop(broken):
    """A step so long that the loss jumps to and fro for ever."""
    x, y = curve()
    net = mlp(4, 32, 32, 1)
    opt = torch.optim.RMSprop(net.parameters(), lr=0.1 if broken else 4e-3)
    return Regressor(net, lambda _: opt), *loaders(x, y, batch_size=16)


SHORT = {"max_epochs": 5}
LONG = {"max_epochs": 8}
PAIRS = [
    pair("held_sgd_tiny_lr", sgd_tiny_lr, *LOW, metric="val_acc", trainer=SHORT),
    pair("held_transformer_tiny_lr", transformer_tiny_lr, *LOW, "no_learning", trainer=LONG),
    pair("held_transformer_huge_lr", transformer_huge_lr, *HIGH, "underfitting", trainer=LONG),
    pair("held_cnn_huge_lr", cnn_huge_lr, *HIGH, "dead_relu", "underfitting", trainer=SHORT),
    pair("held_linear_blows_up", linear_blows_up, *BLOWN, trainer={"max_epochs": 10}),
    pair("held_nan_later", nan_later, "non_finite", "lr_too_high", trainer={"max_epochs": 6}),
    pair(
        "held_hockey_stick",
        hockey_stick,
        *("bad_init_scale", "loss_not_at_chance", "exploding_gradients", "update_ratio_low"),
        trainer={"max_epochs": 5},
    ),
    pair(
        "held_dead_at_birth",
        dead_at_birth,
        *("dead_relu", "no_learning", "no_grad_flow", "weights_not_updating"),
        *("vanishing_gradients", "update_ratio_low", "bad_init_scale"),
        metric="val_acc",
        trainer={"max_epochs": 5},
    ),
    pair(
        "held_dies_of_step",
        dies_of_step,
        *("dead_relu", "lr_too_high", "update_ratio_high", "no_learning", "output_range_mismatch"),
        *("loss_diverging", "non_finite", "exploding_gradients"),
        trainer={"max_epochs": 12},
    ),
    pair(
        "held_saturated_tanh",
        saturated_tanh,
        *("saturated_activations", "bad_init_scale", "unnormalized_input", "vanishing_gradients"),
        trainer={"max_epochs": 5},
    ),
    pair(
        "held_deep_sigmoid",
        deep_sigmoid,
        *("vanishing_gradients", "no_learning", "update_ratio_low", "saturated_activations"),
        *("bad_init_scale", "input_ignored"),
        trainer=LONG,
    ),
    pair(
        "held_exploding_rnn",
        exploding_rnn,
        *BLOWN,
        *("bad_init_scale", "loss_not_at_chance", "no_learning", "loss_oscillation"),
        trainer={"max_epochs": 12},
    ),
    pair(
        "held_tiny_clip",
        tiny_clip,
        *("clip_too_small", *LOW),
        trainer={"max_epochs": 5, "gradient_clip_val": 1e-3},
        repaired={"max_epochs": 5, "gradient_clip_val": 1.0},
    ),
    pair(
        "held_huge_decay",
        huge_decay,
        *("weight_decay_too_high", "no_learning", "underfitting", "vanishing_gradients"),
        trainer={"max_epochs": 16},
    ),
    pair(
        "held_l2_in_sgd",
        l2_in_sgd,
        *("weight_decay_too_high", "no_learning", "underfitting", "vanishing_gradients"),
        trainer=SHORT,
    ),
    pair(
        "held_decays_to_nothing",
        decays_to_nothing,
        *("lr_decayed_too_fast", *LOW),
        trainer={"max_epochs": 8},
    ),
    pair("held_endless_warmup", endless_warmup, *LOW, trainer=LONG),
    pair(
        "held_heavy_momentum",
        heavy_momentum,
        *("momentum_too_high", *HIGH),
        *("non_finite", "exploding_gradients", "saturated_activations"),
        trainer={"max_epochs": 16},
    ),
    pair(
        "held_jumpy_rmsprop",
        jumpy_rmsprop,
        *("loss_oscillation", "lr_too_high", "update_ratio_high", "loss_diverging"),
        *("saturated_activations", "no_learning"),
        trainer={"max_epochs": 10},
    ),
]
