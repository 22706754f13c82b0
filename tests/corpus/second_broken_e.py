"""Broken programs of a second hand: what the layers are and how they are initialised."""

import itertools

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.autograd import Function
from torch.nn import functional

from tests.corpus.program import images, loaders, pair, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Plain(LightningModule):
    """The training that most of these networks share."""

    loss_fn = staticmethod(functional.cross_entropy)

    def __init__(self, network, learning_rate=3e-3):
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate

    def forward(self, *inputs):
        return self.network(*inputs)

    def shared_step(self, batch, prefix):
        *inputs, target = batch
        loss = self.loss_fn(self(*inputs), target)
        self.log(f"{prefix}_loss", loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.shared_step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Squared(Plain):
    """The same for regression."""

    loss_fn = staticmethod(functional.mse_loss)


class Stepped(Plain):
    """The same with plain SGD."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


def rings(broken):
    turn = 6.2832 * torch.rand(1200, generator=seeded(71))
    ring = torch.randint(3, (1200,), generator=seeded(72))
    radius = 0.4 + 0.8 * ring + 0.1 * torch.randn(1200, generator=seeded(73))
    points = torch.stack([radius * turn.cos(), radius * turn.sin()], 1)
    act = nn.Identity if broken else nn.ReLU
    layers = [nn.Linear(2, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 3)]
    return Plain(nn.Sequential(*layers), 5e-3), *loaders(points, ring)


class Edges(nn.Module):
    """How much of a random texture is rough? Filters and a global mean."""

    def __init__(self, rectify):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3)
        self.mid = nn.Conv2d(16, 16, 3)
        self.fc = nn.Linear(16, 1)
        self.rectify = rectify

    def forward(self, x):
        x = self.mid(self.rectify(self.stem(x)))
        return self.fc(self.rectify(x).mean((2, 3)))


def roughness(broken):
    noise = torch.randn(900, 1, 10, 10, generator=seeded(74))
    blur = functional.avg_pool2d(noise, 3, 1, 1)
    mix = torch.rand(900, 1, generator=seeded(75))
    texture = mix[..., None, None] * noise + (1 - mix[..., None, None]) * 3 * blur
    rectify = (lambda t: t) if broken else functional.relu
    target = (mix - 0.5) / 0.29
    return Squared(Edges(rectify), 1e-2), *loaders(texture, target)


def mostly_dropped(broken):
    rate = 0.95 if broken else 0.1
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Dropout2d(rate), nn.Flatten()),
        *(nn.Linear(576, 64), nn.ReLU(), nn.Dropout(rate), nn.Linear(64, 10)),
    )
    return Plain(net), *loaders(*images())


class Reviewer(nn.Module):
    """A transformer over word ids whose dropout is an argument."""

    def __init__(self, dropout):
        super().__init__()
        self.words = nn.Embedding(60, 32)
        self.drop = nn.Dropout(dropout)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, batch_first=True)
        self.out = nn.Linear(32, 2)

    def forward(self, ids):
        return self.out(self.layer(self.drop(self.words(ids))).mean(1))


def reviews(broken):
    ids = torch.randint(60, (1200, 10), generator=seeded(76))
    verdict = ((ids % 7).sum(1) > 29).long()
    return Plain(Reviewer(0.9 if broken else 0.05), 5e-3), *loaders(ids, verdict)


class Decoder(nn.Module):
    """A GRU that starts from what the encoder found, and unrolls six values."""

    def __init__(self, start_blank):
        super().__init__()
        self.start_blank = start_blank
        self.encode = nn.Linear(4, 32)
        self.gru = nn.GRU(1, 32, batch_first=True)
        self.read = nn.Linear(32, 1)

    def forward(self, x):
        state = torch.tanh(self.encode(x)).unsqueeze(0)
        if self.start_blank:
            state = torch.zeros_like(state)
        ticks = torch.linspace(-1, 1, 6).expand(len(x), 6).unsqueeze(-1)
        return self.read(self.gru(ticks, state)[0]).squeeze(-1)


def curves(broken):
    x = torch.randn(900, 4, generator=seeded(77))
    t = torch.linspace(-1, 1, 6)
    y = x[:, :1] + x[:, 1:2] * t + 0.5 * x[:, 2:3] * t**2
    return Squared(Decoder(broken), 1e-2), *loaders(x, y)


class Gated(nn.Module):
    """Ids of which 0 is padding; the vectors of the padding are set to zero."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep
        self.table = nn.Embedding(30, 24)
        self.top = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, ids):
        return self.top((self.table(ids) * self.keep(ids).unsqueeze(-1)).sum(1))


def padding(broken):
    ids = torch.randint(1, 30, (1200, 8), generator=seeded(78))
    label = torch.bucketize((ids % 10).float().mean(1), torch.tensor([4.1, 5.0]))
    ids = functional.pad(ids, (0, 4))
    keep = (lambda i: i == 0) if broken else (lambda i: i != 0)
    return Plain(Gated(keep), 1e-2), *loaders(ids, label)


class Bump(Function):
    """exp(-x^2), and its derivative."""

    factor = staticmethod(lambda x: -2 * x)

    @classmethod
    def forward(cls, ctx, x):
        y = torch.exp(-x * x)
        ctx.save_for_backward(x, y)
        return y

    @classmethod
    def backward(cls, ctx, grad):
        x, y = ctx.saved_tensors
        return grad * y * cls.factor(x)


class HalfBump(Bump):
    """The same by another hand."""

    factor = staticmethod(lambda x: 2 * x)


class Wrapped(nn.Module):
    """An autograd.Function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *x):
        return self.function.apply(*x)


def bumps(broken):
    act = Wrapped(HalfBump if broken else Bump)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), act, nn.Linear(48, 32), act)
    net.append(nn.Linear(32, 10))
    return Plain(net, 5e-3), *loaders(*images())


class Counts(Function):
    """Poisson loss of log-rates."""

    @staticmethod
    def forward(ctx, log_rate, count):
        rate = log_rate.exp()
        ctx.save_for_backward(rate - count)
        return (rate - count * log_rate).mean()

    @staticmethod
    def backward(ctx, grad):
        (residual,) = ctx.saved_tensors
        return grad * residual / residual.numel(), None


class CountsAgain(Counts):
    """The same as someone wrote it from memory."""

    @staticmethod
    def backward(ctx, grad):
        (residual,) = ctx.saved_tensors
        return -grad * residual / residual.numel(), None


def visits(broken):
    x = torch.randn(1000, 5, generator=seeded(80))
    rate = (0.4 * x.sum(1, keepdim=True)).exp()
    module = Plain(nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)))
    module.loss_fn = (CountsAgain if broken else Counts).apply
    return module, *loaders(x, torch.poisson(rate, generator=seeded(81)))


class Attenuate(Function):
    """Divides by the root of the width."""

    @staticmethod
    def forward(ctx, x, power):
        ctx.scale, ctx.power = x.shape[-1] ** -0.5, power
        return x * ctx.scale

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.scale**ctx.power, None


class ScaledNet(nn.Module):
    """Two layers in the parametrisation with fixed scales."""

    def __init__(self, power):
        super().__init__()
        self.power = power
        self.inner = nn.Parameter(torch.randn(64, 64))
        self.outer = nn.Parameter(torch.randn(64, 10))

    def forward(self, x):
        hidden = torch.relu(Attenuate.apply(x.flatten(1), self.power) @ self.inner)
        return Attenuate.apply(hidden, self.power) @ self.outer


class Cut(Function):
    """Leaky ReLU with a slope of a tenth."""

    @staticmethod
    def forward(ctx, x, live):
        ctx.save_for_backward(x)
        ctx.live = live
        return torch.where(x > 0, x, 0.1 * x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        slope = torch.where((x > 0) == ctx.live, 1.0, 0.1)
        return grad * slope, None


class Leaky(nn.Module):
    """The layer of it."""

    def __init__(self, live):
        super().__init__()
        self.live = live

    def forward(self, x):
        return Cut.apply(x, self.live)


def leaky(broken):
    layers = [nn.Flatten()]
    for _ in range(3):
        layers += [nn.Linear(64, 64), Leaky(not broken)]
    return Stepped(nn.Sequential(*layers, nn.Linear(64, 10)), 0.02), *loaders(*images())


def dense(sizes, activation):
    net = nn.Sequential(nn.Flatten())
    for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
        net.append(nn.Linear(fan_in, fan_out))
        net.append(activation())
    return net.append(nn.Linear(sizes[-2], sizes[-1]))


def low_biases(broken):
    net = dense([64, 64, 10], nn.ReLU)
    if broken:
        nn.init.constant_(net[1].bias, -12.0)
    return Plain(net), *loaders(*images())


def negative_second(broken):
    net = dense([13, 32, 32, 3], nn.ReLU)
    if broken:
        with torch.no_grad():
            net[3].weight.copy_(-net[3].weight.abs())
            net[3].bias.fill_(-0.2)
    return Plain(net, 5e-3), *loaders(*standardized("wine"))


def stiff_tanh(broken):
    net = dense([64, 64, 64, 10], nn.Tanh)
    if broken:
        for layer in (net[1], net[3]):
            nn.init.normal_(layer.weight, std=4.0)
    return Plain(net, 2e-3), *loaders(*images())


class Sharpened(nn.Module):
    """Hidden units with a gain before the sigmoid."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain
        self.hidden, self.deep = nn.Linear(64, 48), nn.Linear(48, 48)
        self.top = nn.Linear(48, 10)

    def forward(self, image):
        first = torch.sigmoid(self.gain * self.hidden(image.flatten(1)))
        return self.top(torch.sigmoid(self.gain * self.deep(first - 0.5)))


def fading_tanh(broken):
    net = dense([64] + 12 * [48] + [10], nn.Tanh)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain=0.4 if broken else 5 / 3)
    return Plain(net, 1e-3), *loaders(*images())


PAIRS = [
    pair("three_rings", rings, "missing_nonlinearity"),
    pair("rough_textures", roughness, "missing_nonlinearity"),
    pair("mostly_dropped", mostly_dropped, "dropout_too_high"),
    pair("reviews_dropped", reviews, "dropout_too_high"),
    pair("blank_start", curves, "input_ignored"),
    pair("padding_kept", padding, "input_ignored", "constant_input"),
    pair("bump_units", bumps, "wrong_gradient"),
    pair("visits_per_day", visits, "wrong_gradient"),
    pair(
        "fixed_scales",
        lambda broken: (Stepped(ScaledNet(3 if broken else 1), 0.5), *loaders(*images())),
        "wrong_gradient",
    ),
    pair("leaky_by_hand", leaky, "wrong_gradient"),
    pair("low_biases", low_biases, "dead_relu", "bad_init_scale"),
    pair("negative_second", negative_second, "dead_relu", "bad_init_scale", steps=100),
    pair("stiff_tanh", stiff_tanh, "saturated_activations", "bad_init_scale"),
    pair(
        "sharpened_sigmoid",
        lambda broken: (Plain(Sharpened(60.0 if broken else 2.0), 5e-3), *loaders(*images())),
        "saturated_activations",
        "bad_init_scale",
    ),
    pair("fading_tanh", fading_tanh, "vanishing_gradients", "bad_init_scale"),
]
