"""Whole fits that go well: optimizers, schedules, transfer and the loops around them."""

import copy
import functools
import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.corpus.program import Program, images, loaders, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


class Task(LightningModule):
    """A network, a loss function and a function of the parameters for the optimizer."""

    def __init__(self, net, criterion, configure, score=None):
        super().__init__()
        self.net, self.criterion, self.configure, self.score = net, criterion, configure, score

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.log("val_loss", F.cross_entropy(out, y) if self.score else self.criterion(out, y))
        if self.score:
            self.log("val_acc", self.score(out, y))

    def configure_optimizers(self):
        return self.configure([p for p in self.parameters() if p.requires_grad])


def accuracy(out, y):
    return (out.argmax(1) == y).float().mean()


def classify(net, configure, criterion=F.cross_entropy):
    return Task(net, criterion, configure, accuracy)


def squares(out, y):
    return F.mse_loss(out.squeeze(1), y)


def steps(schedule, make, **settings):
    """An optimizer and its schedule by the step, or as ``settings`` say."""

    def configure(params):
        optimizer = make(params)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"} | settings,
        }

    return configure


def adam(lr=1e-3, **settings):
    return lambda params: optim.Adam(params, lr, **settings)


def sgd(lr=0.05, momentum=0.9, **settings):
    return lambda params: optim.SGD(params, lr, momentum=momentum, **settings)


def adamw(lr=1e-3, **settings):
    return lambda params: optim.AdamW(params, lr, **settings)


def fc(*widths, act=nn.ReLU):
    net = []
    for a, b in itertools.pairwise(widths):
        net += [nn.Linear(a, b), act()]
    return nn.Sequential(*net[:-1])


def conv(norm=True, width=12):
    def block(a, b):
        made = [nn.Conv2d(a, b, 3, padding=1, bias=not norm), nn.ReLU(), nn.MaxPool2d(2)]
        return [*made[:1], nn.BatchNorm2d(b), *made[1:]] if norm else made

    return nn.Sequential(*block(1, width), *block(width, 2 * width), nn.Flatten(),
                         nn.Linear(8 * width, 10))  # fmt: skip


def on(make_net, configure, data="digits", criterion=F.cross_entropy, **settings):
    """A classifier of one of the bundled sets."""

    def make():
        tensors = images() if data == "images" else standardized(data)
        return classify(make_net(), configure, criterion), *loaders(*tensors, **settings)

    return make


def digits_net():
    return fc(64, 64, 10)


def wave(count=1600, noise=0.1):
    x = torch.randn(count, 4, generator=rng(1))
    y = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2]
    return x, y + noise * torch.randn(count, generator=rng(2))


def on_wave(configure, act=nn.ReLU, criterion=squares, noise=0.1, **settings):
    def make():
        return Task(fc(4, 48, 48, 1, act=act), criterion, configure), *loaders(
            *wave(noise=noise), **settings
        )

    return make


# schedules


def cosine(total, floor=0.0):
    return lambda o: lr_scheduler.CosineAnnealingLR(o, total, floor)


def trapezoid(total, warm):
    """Up over ``warm`` steps, then linearly to zero."""
    return lambda o: lr_scheduler.LambdaLR(
        o, lambda s: min((s + 1) / warm, max(0.0, (total - s) / (total - warm)))
    )


def one_cycle(peak, total):
    return lambda o: lr_scheduler.OneCycleLR(o, peak, total_steps=total)


def by_epoch(schedule, make, **settings):
    return steps(schedule, make, interval="epoch", **settings)


# what was learned before


def learn(net, x, y, lr=3e-3, count=200, criterion=F.cross_entropy):
    """Plain training, as it was done elsewhere and earlier."""
    optimizer = optim.Adam(net.parameters(), lr)
    order = torch.Generator().manual_seed(0)
    for _ in range(count):
        rows = torch.randint(0, len(x), (64,), generator=order)
        optimizer.zero_grad()
        criterion(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net


def pretrained():
    """Knows which digits are even and which are large."""
    x, y = standardized("digits")
    net = fc(64, 96, 48, 4)
    return learn(net, x, (y % 2) + 2 * (y > 4).long())


def linear_probe():
    trunk = pretrained()[:-1].requires_grad_(False)
    return classify(nn.Sequential(trunk, nn.Linear(48, 10)), adam(1e-2)), *loaders(
        *standardized("digits")
    )


def fine_tuned(configure=None):
    net = pretrained()
    net[-1] = nn.Linear(48, 10)
    return classify(net, configure or adamw(1e-3, weight_decay=0.01)), *loaders(
        *standardized("digits")
    )


def two_rates(params):
    *trunk, weight, bias = params
    return optim.AdamW([{"params": trunk, "lr": 1e-4}, {"params": [weight, bias], "lr": 5e-3}])


class LowRank(nn.Module):
    """A frozen layer and a product of two narrow matrices, one of them zero at first."""

    def __init__(self, layer, rank=4):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / math.sqrt(rank))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


def low_rank():
    """Digits whose ink is inverted on half of the pixels: a new domain for a known task."""
    x, y = standardized("digits")
    net = learn(fc(64, 96, 48, 10), x, y)
    for i in (0, 2, 4):
        net[i] = LowRank(net[i])
    x = x * torch.cat([torch.ones(32), -torch.ones(32)])
    return classify(net, adam(2e-3)), *loaders(x, y)


def goes_on():
    """A fit that has converged goes on with a small rate; there is nothing left to learn."""
    x, y = wave()
    net = learn(fc(4, 48, 48, 1), x[:1200], y[:1200], count=2500, criterion=squares)
    return Task(net, squares, adam(1e-4)), *loaders(x, y)


def goes_on_classifier():
    x, y = standardized("digits")
    net = learn(fc(64, 64, 10), x[:1347], y[:1347], count=600)
    return classify(net, sgd(1e-3, weight_decay=1e-4)), *loaders(x, y)


class Thawed(Task):
    """Brings its own callback."""

    def configure_callbacks(self):
        return [Thaw()]


class Thaw(BaseFinetuning):
    """The trunk joins after three epochs."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[:-1])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 3:
            self.unfreeze_and_add_param_group(pl_module.net[:-1], optimizer, lr=1e-3)


class Residual(nn.Module):
    """Its last layer is zero at first, so that the block is the identity."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


def twenty_blocks():
    return nn.Sequential(nn.Linear(64, 32), *[Residual(32) for _ in range(20)], nn.Linear(32, 10))


class Scaled(nn.Module):
    """``x + alpha * f(x)`` with one learned number, zero at first."""

    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.alpha * F.relu(self.fc(x))


def normed():
    wn = nn.utils.parametrizations.weight_norm
    return nn.Sequential(wn(nn.Linear(64, 64)), nn.ReLU(), wn(nn.Linear(64, 10)))


class MeanTeacher(Task):
    """A second network follows the first as an average of its weights and teaches it."""

    def __init__(self):
        super().__init__(digits_net(), F.cross_entropy, adam(2e-3), accuracy)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        noisy = self.net(x + 0.3 * torch.randn_like(x))
        with torch.no_grad():
            target = self.teacher(x).softmax(1)
        gap = F.mse_loss(noisy.softmax(1), target)
        loss = F.cross_entropy(noisy, y) + gap
        self.log_dict({"loss": loss, "consistency": gap})
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 0.02)


class Mixed(Task):
    """Mixup: the training loss never falls far, and stays above that of validation."""

    def __init__(self):
        super().__init__(conv(), F.cross_entropy, sgd(0.05), accuracy)

    def training_step(self, batch, batch_idx):
        x, y = batch
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        order = torch.randperm(len(x))
        out = self.net(share * x + (1 - share) * x[order])
        loss = share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[order])
        self.log("train_loss", loss)
        return loss


class WordsAndStyle(LightningModule):
    """Sparse embeddings under SparseAdam, the rest under Adam."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(500, 16, mode="mean", sparse=True)
        self.head = fc(16, 24, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.head(self.words(x)), y)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        out = self.head(self.words(batch[0]))
        self.log("val_loss", F.cross_entropy(out, batch[1]))
        self.log("val_acc", accuracy(out, batch[1]))

    def configure_optimizers(self):
        return [
            optim.SparseAdam(list(self.words.parameters()), 1e-2),
            optim.Adam(self.head.parameters(), 5e-3),
        ]


def topics():
    """Twelve words of five hundred, by topic; a few words are in most of the texts."""
    g = rng(3)
    y = torch.randint(0, 3, (2400,), generator=g)
    own = torch.randint(0, 100, (2400, 12), generator=g) + 100 * y[:, None]
    common = (500 * torch.rand(2400, 12, generator=g) ** 3).long()
    x = torch.where(torch.rand(2400, 12, generator=g) < 0.5, own, common)
    return WordsAndStyle(), *loaders(x, y)


class Sign(optim.Optimizer):
    """Lion: the sign of a running mean, so that all entries move equally far."""

    def __init__(self, params, lr=1e-3, decay=0.01):
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["decay"])
                p.sub_(group["lr"] * torch.sign(0.9 * mean + 0.1 * p.grad))
                mean.lerp_(p.grad, 0.01)
        return loss


class Stream(IterableDataset):
    """Never ends; every sample is new."""

    def __init__(self, seed):
        self.seed = seed

    def __iter__(self):
        g = rng(self.seed)
        while True:
            x = torch.rand(2, generator=g) * 4 - 2
            yield x, torch.sin(3 * x[0]) * x[1]


def stream():
    x = torch.rand(400, 2, generator=rng(9)) * 4 - 2
    net = fc(2, 64, 64, 1, act=nn.SiLU)
    val = DataLoader(TensorDataset(x, torch.sin(3 * x[:, 0]) * x[:, 1]), 200)
    return Task(net, squares, adam(5e-3)), DataLoader(Stream(4), 32), val


class Quiet(LightningModule):
    """Logs nothing at all."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(30, 16), nn.Linear(16, 2)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.b(torch.tanh(self.a(batch[0]))), batch[1])

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), 0.1)


def quiet():
    return Quiet(), loaders(*standardized("breast_cancer"))[0], None


def quiet_cnn():
    """One pass over the images, nothing held out."""
    return classify(conv(), adam(5e-3)), loaders(*images(), batch_size=8)[0], None


def full_batch():
    """Logistic regression with L-BFGS, all rows in each step."""
    return classify(nn.Linear(30, 2), lambda p: optim.LBFGS(p, lr=0.1, max_iter=4)), *loaders(
        *standardized("breast_cancer"), batch_size=426
    )


def raw_targets():
    """Blood sugar between 25 and 346; a linear model and the rate that its units need."""
    x, y = standardized("diabetes")
    net = nn.Linear(10, 1)
    return Task(net, squares, sgd(5e-3)), *loaders(x, y)


def raw_targets_adam():
    x, y = standardized("diabetes")
    net = fc(10, 32, 1)
    nn.init.constant_(net[-1].bias, 150.0)
    return Task(net, squares, adam(2e-2, weight_decay=1e-3)), *loaders(x, y)


def weak_signal():
    """Nine tenths of the targets' variance is noise: to explain one tenth is the best one can."""
    g = rng(11)
    x = torch.randn(3000, 5, generator=g)
    y = 0.33 * x[:, 0] + torch.randn(3000, generator=g)
    return Task(fc(5, 8, 1), squares, adamw(3e-3, weight_decay=0.1)), *loaders(x, y)


def noisy_classes():
    """Two clouds that overlap: nobody gets more than four of five right."""
    g = rng(12)
    y = torch.randint(0, 2, (2400,), generator=g)
    x = torch.randn(2400, 3, generator=g) + 0.5 * (2 * y[:, None] - 1)
    return classify(fc(3, 16, 2), sgd(0.05)), *loaders(x, y)


def thawed():
    net = pretrained()
    net[-1] = nn.Linear(48, 10)
    return Thawed(net, F.cross_entropy, adam(2e-3), accuracy), *loaders(*standardized("digits"))


def overfits_late():
    """Some epochs too many for a small table, as real fits have."""
    x, y = standardized("diabetes")
    return Task(fc(10, 24, 1), squares, adam(3e-3)), *loaders(x, (y - y.mean()) / y.std())


def overfits_late_classes():
    """One label of eight is wrong, and is slowly learned by heart."""
    x, y = standardized("digits")
    wrong = torch.rand(len(y), generator=rng(2)) < 0.12
    y = torch.where(wrong, torch.randint(0, 10, y.shape, generator=rng(3)), y)
    return classify(fc(64, 48, 10), adam(1.5e-3)), *loaders(x, y)


def dropped():
    """Better in validation than in training, since half of the units are away there."""
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.5), nn.Linear(96, 96), nn.ReLU(),
                        nn.Dropout(0.5), nn.Linear(96, 10))  # fmt: skip
    return classify(net, adam(2e-3)), *loaders(*standardized("digits"))


def rezero():
    return nn.Sequential(nn.Linear(64, 48), *[Scaled(48) for _ in range(6)], nn.Linear(48, 10))


def till(epochs, **settings):
    return {"max_epochs": epochs} | settings


def by_steps(count, **settings):
    return {"max_steps": count} | settings


ACC = functools.partial(Program, metric="val_acc")
SMOOTH = functools.partial(F.cross_entropy, label_smoothing=0.2)
PROGRAMS = [
    ACC("fine_cnn_adam", on(lambda: conv(norm=False), adam(3e-3), "images"), till(10)),
    ACC("fine_cosine_to_zero", on(digits_net, steps(cosine(420), sgd())), till(10)),
    ACC("fine_one_cycle", on(conv, steps(one_cycle(0.2, 252), sgd()), "images"), till(6)),
    ACC("fine_one_cycle_adam", on(digits_net, steps(one_cycle(1e-2, 420), adam())),
        till(10, log_every_n_steps=10)),
    ACC("fine_step_decay", on(digits_net, by_epoch(
        lambda o: lr_scheduler.MultiStepLR(o, [6, 9]), sgd())), till(11)),
    ACC("fine_exponential", on(conv, by_epoch(
        lambda o: lr_scheduler.ExponentialLR(o, 0.8), sgd()), "images"), till(10)),
    ACC("fine_warm_restarts", on(digits_net, steps(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 84), sgd(0.1))), till(10)),
    Program("fine_plateau", on_wave(by_epoch(
        lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.3), adam(1e-2),
        monitor="val_loss")), till(25), note="overfits a little late"),
    Program("fine_trapezoid", on_wave(steps(trapezoid(740, 100), adamw(6e-3))),
            till(20, log_every_n_steps=20)),
    Program("fine_cosine_floor", on_wave(steps(cosine(555, 1e-5), adam(5e-3)), nn.GELU), till(15)),
    Program("fine_rmsprop", on_wave(lambda p: optim.RMSprop(p, 2e-3)), till(15)),
    Program("fine_tanh", on_wave(adam(5e-3), nn.Tanh), till(25)),
    Program("fine_elu_sgd", on_wave(steps(cosine(740), sgd(0.03)), nn.ELU), till(20)),
    ACC("fine_lbfgs", full_batch, till(30)),
    Program("fine_lbfgs_surface", on_wave(lambda p: optim.LBFGS(p, 0.3, max_iter=5),
                                          batch_size=1200), till(40, log_every_n_steps=5)),
    ACC("fine_sparse_embeddings", topics, till(12)),
    ACC("fine_lion", on(digits_net, lambda p: Sign(p, 5e-4)), till(8)),
    ACC("fine_linear_probe", linear_probe, till(12)),
    ACC("fine_tuned", fine_tuned, till(8)),
    ACC("fine_tuned_two_rates", lambda: fine_tuned(two_rates), till(10, log_every_n_steps=10)),
    ACC("fine_low_rank", low_rank, till(15)),
    ACC("fine_thawed", thawed, till(12)),
    Program("fine_goes_on", goes_on, till(8), note="converged before it begins"),
    ACC("fine_goes_on_sgd", goes_on_classifier, till(6), note="converged before it begins"),
    ACC("fine_twenty_blocks", on(twenty_blocks, steps(trapezoid(252, 30), adamw(1e-3))), till(6)),
    ACC("fine_rezero", on(rezero, adam(2e-3)), till(8)),
    ACC("fine_weight_norm", on(normed, sgd(0.03)), till(10)),
    ACC("fine_mean_teacher", lambda: (MeanTeacher(), *loaders(*standardized("digits"))), till(10)),
    ACC("fine_mixup", lambda: (Mixed(), *loaders(*images())), till(10)),
    ACC("fine_label_smoothing", on(digits_net, adam(2e-3), criterion=SMOOTH), till(10)),
    ACC("fine_dropout_half", dropped, till(15)),
    ACC("fine_batch_norm_decay", on(conv, steps(cosine(420), sgd(0.1, weight_decay=5e-3)),
                                    "images"), till(10)),
    ACC("fine_batch_1", on(digits_net, sgd(5e-3, 0.0), batch_size=1), by_steps(1500)),
    ACC("fine_batch_4", on(digits_net, adam(1e-3), batch_size=4), till(4)),
    Program("fine_batch_8", on_wave(sgd(0.01), batch_size=8), till(9)),
    Program("fine_batch_2_noisy", on_wave(sgd(0.015, 0.0), noise=0.5, batch_size=2),
            by_steps(1500)),
    ACC("fine_accumulated", on(digits_net, adam(4e-3), batch_size=8),
        till(8, accumulate_grad_batches=4)),
    ACC("fine_clipped_always", on(digits_net, adam(1e-3), batch_size=16),
        till(6, gradient_clip_val=0.05), note="Adam does not mind the scale"),
    Program("fine_clipped_rarely", on_wave(sgd(0.02)), till(20, gradient_clip_val=2.0)),
    ACC("fine_thirty_steps", on(conv, adam(1e-2), "images"), by_steps(30)),
    ACC("fine_thirty_cancer", on(lambda: fc(30, 16, 2), sgd(0.1), "breast_cancer"),
        by_steps(30, log_every_n_steps=1)),
    Program("fine_val_often", on_wave(adam(4e-3)), till(15, val_check_interval=0.25)),
    Program("fine_stream", stream, by_steps(1000, limit_train_batches=100)),
    Program("fine_logs_nothing", quiet, till(20), metric=""),
    Program("fine_one_pass", quiet_cnn, till(1), metric="train_loss"),
    Program("fine_raw_targets", raw_targets, till(20)),
    Program("fine_raw_targets_adam", raw_targets_adam, till(30)),
    Program("fine_weak_signal", weak_signal, till(5), note="noise sets the floor"),
    ACC("fine_noisy_classes", noisy_classes, till(5), note="noise sets the floor"),
    Program("fine_overfits_late", overfits_late, till(25), note="overfits a little late"),
    Program("fine_overfits_labels", overfits_late_classes, till(12),
            note="overfits a little late"),
    ACC("fine_hinge", on(digits_net, adam(1e-3), criterion=F.multi_margin_loss), till(12)),
]  # fmt: skip
