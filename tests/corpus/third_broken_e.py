"""Broken programs of the final test, and their repaired twins: networks, starts and settings."""

import functools
import itertools

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.program import images, loaders, pair


class LitModel(LightningModule):
    """A model, an optimizer and a loss."""

    def __init__(self, model, optimizer=None, loss=F.cross_entropy):
        super().__init__()
        self.model = model
        self.optimizer = optimizer or functools.partial(torch.optim.Adam, lr=2e-3)
        self.loss = loss

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = self.loss(self(inputs), targets)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        outputs = self(inputs)
        self.log("val_loss", self.loss(outputs, targets))
        if outputs.ndim > 1:
            self.log("val_acc", (outputs.argmax(1) == targets).float().mean())

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


adam = functools.partial(functools.partial, torch.optim.Adam)
sgd = functools.partial(functools.partial, torch.optim.SGD)


def program(build, data, optimizer=None, **kwargs):
    """What `pair` wants, of a network that is told whether it is the broken one."""
    return lambda broken: (LitModel(build(broken), optimizer, **kwargs), *loaders(*data()))


def digits():
    x, y = images()
    return x.flatten(1), y


def mlp(*sizes, act=nn.ReLU):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def initialized(net, init):
    """The network after ``init`` was applied to each of its matrices."""
    for p in net.parameters():
        if p.ndim > 1:
            init(p)
    return net


# -- networks


def act(broken):
    return nn.Identity if broken else nn.Tanh


def rings():
    g = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (1400,), generator=g)
    angle = 6.2832 * torch.rand(1400, generator=g)
    radius = 0.5 + 0.7 * label + 0.12 * torch.randn(1400, generator=g)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label


def tones():
    """Four pitches of random phase in noise, one channel."""
    g = torch.Generator().manual_seed(1)
    label = torch.randint(0, 4, (1200,), generator=g)
    phase = 6.2832 * torch.rand(1200, 1, generator=g)
    wave = torch.sin((0.4 + 0.5 * label).unsqueeze(1) * torch.arange(32) + phase)
    return (wave + 0.3 * torch.randn(1200, 32, generator=g)).unsqueeze(1), label


def conv_stack(broken):
    act = nn.Identity if broken else nn.ReLU
    return nn.Sequential(
        *(nn.Conv1d(1, 16, 7), act(), nn.Conv1d(16, 24, 5), act()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 4)),
    )


class Letters(nn.Module):
    """A transformer on the rows of a digit, with dropout ``p``."""

    def __init__(self, p):
        super().__init__()
        self.rows = nn.Linear(8, 32)
        self.where = nn.Parameter(torch.randn(8, 32) * 0.3)
        layer = nn.TransformerEncoderLayer(32, 4, 64, p, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.drop = nn.Dropout(p)
        self.out = nn.Linear(256, 10)

    def forward(self, x):
        h = self.blocks(self.drop(self.rows(x.squeeze(1)) + self.where))
        return self.out(self.drop(h.flatten(1)))


class Magnitude(torch.autograd.Function):
    """The absolute value; its derivative lacks the sign where ``broken``."""

    @staticmethod
    def forward(ctx, x, broken):
        ctx.save_for_backward(x)
        ctx.broken = broken
        return x.abs()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return (grad if ctx.broken else grad * x.sign()), None


class Folded(nn.Module):
    """Layers with the absolute value between them."""

    def __init__(self, broken):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)])
        self.broken = broken

    def forward(self, x):
        *hidden, last = self.layers
        for layer in hidden:
            x = Magnitude.apply(layer(x), self.broken)
        return last(x)


class FastCrossEntropy(torch.autograd.Function):
    """Cross-entropy with its gradient written out; ``whole`` has all of it."""

    @staticmethod
    def forward(ctx, scores, labels, whole):
        p = scores.softmax(1)
        ctx.save_for_backward(p, labels)
        ctx.whole = whole
        return -p[torch.arange(len(p)), labels].clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx, grad):
        p, labels = ctx.saved_tensors
        out = F.one_hot(labels, p.shape[1])
        step = p - out if ctx.whole else p * (1 - out)
        return grad * step / len(p), None, None


class Vanilla(nn.Module):
    """A recurrent net by hand: a digit is read pixel by pixel in rows of four."""

    def __init__(self, scale, act):
        super().__init__()
        self.inp = nn.Linear(4, 48)
        self.rec = nn.Parameter(scale * torch.eye(48))
        self.out = nn.Linear(48, 10)
        self.act = act

    def forward(self, x):
        h = x.new_zeros(len(x), 48)
        for piece in x.view(len(x), 16, 4).unbind(1):
            h = self.act(self.inp(piece) + h @ self.rec)
        return self.out(h)


class Deep(nn.Module):
    """Fourteen layers, added to what went in or not."""

    def __init__(self, skip):
        super().__init__()
        self.first = nn.Linear(64, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(14))
        self.last = nn.Linear(32, 10)
        self.skip = skip

    def forward(self, x):
        h = self.first(x)
        for layer in self.layers:
            new = torch.tanh(layer(h))
            h = h + 0.3 * new if self.skip else new
        return self.last(h)


class Normed(nn.Module):
    """ReLU behind layer normalization, whose bias starts at ``shift``."""

    def __init__(self, shift):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.norms = nn.ModuleList([nn.LayerNorm(64), nn.LayerNorm(64)])
        for norm in self.norms:
            nn.init.constant_(norm.bias, shift)

    def forward(self, x):
        h = F.relu(self.norms[0](self.a(x)))
        h = F.relu(self.norms[1](self.b(h)))
        return self.c(h)


class Gated(nn.Module):
    """A highway network; ``sharpness`` multiplies what its gates are given."""

    def __init__(self, sharpness):
        super().__init__()
        self.first = nn.Linear(64, 32)
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.changes = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.last = nn.Linear(32, 10)
        self.sharpness = sharpness

    def forward(self, x):
        h = torch.tanh(self.sharpness * self.first(x))
        for gate, change in zip(self.gates, self.changes, strict=True):
            g = torch.sigmoid(self.sharpness * gate(h))
            h = g * h + (1 - g) * torch.tanh(self.sharpness * change(h))
        return self.last(h)


def convnet(dropout=0.0):
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Dropout2d(dropout), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Dropout2d(dropout), nn.Flatten()),
        nn.Linear(512, 10),
    )


deep_net = functools.partial(mlp, 64, 64, 64, 10)
# -- table
PAIRS = [
    pair(
        "third_linear_rings",
        program(lambda b: mlp(2, 64, 64, 3, act=act(b)), rings, adam(lr=1e-2)),
        "missing_nonlinearity",
        metric="val_acc",
    ),
    pair("third_linear_convs", program(conv_stack, tones, adam(lr=5e-3)), "missing_nonlinearity"),
    pair(
        "third_vit_dropout",
        program(lambda b: Letters(0.9 if b else 0.1), images),
        "dropout_too_high",
        metric="val_acc",
    ),
    pair(
        "third_conv_dropout",
        program(lambda b: convnet(0.95 if b else 0.1), images),
        "dropout_too_high",
    ),
    pair("third_abs_backward", program(Folded, digits), "wrong_gradient"),
    pair(
        "third_fast_cross_entropy",
        lambda b: (
            LitModel(deep_net(), loss=lambda s, y: FastCrossEntropy.apply(s, y, not b)),
            *loaders(*digits()),
        ),
        "wrong_gradient",
        metric="val_acc",
    ),
    pair(
        "third_doubling_rnn",
        program(lambda b: Vanilla(2.0 if b else 0.9, torch.relu), digits),
        *("exploding_gradients", "bad_init_scale", "loss_not_at_chance", "non_finite"),
    ),
    pair(
        "third_deep_tanh",
        program(lambda b: Deep(skip=not b), digits, sgd(lr=0.05, momentum=0.9)),
        *("vanishing_gradients", "bad_init_scale"),
    ),
    pair(
        "third_dead_norm",
        program(lambda b: Normed(-6.0 if b else 0.0), digits),
        *("dead_relu", "no_grad_flow", "vanishing_gradients", "input_ignored", "bad_init_scale"),
    ),
    pair(
        "third_sharp_gates",
        program(lambda b: Gated(60.0 if b else 1.0), digits),
        *("saturated_activations", "bad_init_scale"),
    ),
]
