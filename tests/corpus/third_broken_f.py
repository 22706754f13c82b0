"""Broken programs of the final test, and their repaired twins: starts and settings."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.corpus.program import images, loaders, pair
from tests.corpus.third_broken_e import (
    Letters,
    LitModel,
    adam,
    convnet,
    deep_net,
    digits,
    initialized,
    mlp,
    program,
    sgd,
)

adamw = functools.partial(functools.partial, torch.optim.AdamW)


class Cosine(nn.Module):
    """Classifies by the cosine to a prototype of each class, divided by a temperature."""

    def __init__(self, temperature):
        super().__init__()
        self.features = mlp(64, 48, 32)
        self.prototypes = nn.Parameter(torch.randn(10, 32))
        self.temperature = temperature

    def forward(self, x):
        z, w = F.normalize(self.features(x), dim=1), F.normalize(self.prototypes, dim=1)
        return z @ w.t() / self.temperature


def prior_head(broken):
    """The bias should begin at the logarithms of the class counts, not at the counts."""
    net = mlp(64, 32, 10)
    counts = torch.linspace(90, 180, 10)
    net[-1].bias.data = counts if broken else counts.log() - counts.log().mean()
    return net


class MaskedPool(nn.Module):
    """Attention pooling over the tokens that are there; a text may be empty."""

    def __init__(self, fill):
        super().__init__()
        self.embed = nn.Embedding(16, 24)
        self.score = nn.Linear(24, 1)
        self.out = nn.Linear(24, 4)
        self.fill = fill

    def forward(self, tokens):
        h = self.embed(tokens)
        score = self.score(h).squeeze(2).masked_fill(tokens == 0, self.fill)
        return self.out((score.softmax(1).unsqueeze(2) * h).sum(1))


def padded_texts():
    g = torch.Generator().manual_seed(3)
    topic = torch.randint(0, 4, (1500,), generator=g)
    tokens = 1 + (3 * topic[:, None] + 4 * torch.rand(1500, 8, generator=g)).long()
    length = torch.randint(0, 9, (1500, 1), generator=g)
    return tokens * (torch.arange(8) < length), topic


def counts():
    g = torch.Generator().manual_seed(6)
    x = torch.randn(1500, 6, generator=g)
    rate = torch.exp(1.2 * x[:, 0] - x[:, 1].abs())
    return x, torch.poisson(rate, generator=g)


def poisson(rate, count):
    return (rate - count * torch.log(rate)).mean()


def rate_net(broken):
    return mlp(6, 32, 1).append(nn.ReLU() if broken else nn.Softplus()).append(nn.Flatten(0))


def setting(build, data, broken, good, **kwargs):
    """Two optimizers for the same network."""
    return lambda b: (LitModel(build(), broken if b else good, **kwargs), *loaders(*data()))


def wrong_start(net, init):
    return program(lambda b: initialized(net(), init) if b else net(), digits)


wide_net = functools.partial(mlp, 64, 256, 256, 10)
vit = functools.partial(Letters, 0.0)
CLIPPED = {"gradient_clip_val": 2e-5, "gradient_clip_algorithm": "value"}
START = ("bad_init_scale", "loss_not_at_chance")
PAIRS = [
    pair("third_cold_cosine", program(lambda b: Cosine(5e-4 if b else 0.1), digits), *START),
    pair("third_count_bias", program(prior_head, digits), *START),
    pair("third_all_zero", wrong_start(deep_net, nn.init.zeros_), "zero_init", "bad_init_scale"),
    pair(
        "third_all_alike",
        wrong_start(deep_net, functools.partial(nn.init.constant_, val=0.02)),
        *("zero_init", "bad_init_scale"),
    ),
    pair(
        "third_unit_normal",
        wrong_start(wide_net, nn.init.normal_),
        *(*START, "exploding_gradients"),
    ),
    pair(
        "third_tiny_normal",
        wrong_start(
            functools.partial(mlp, 64, 64, 64, 64, 64, 10),
            functools.partial(nn.init.normal_, std=1e-4),
        ),
        *("bad_init_scale", "vanishing_gradients", "zero_init"),
    ),
    pair(
        "third_empty_text",
        program(lambda b: MaskedPool(float("-inf") if b else -1e9), padded_texts, adam(lr=1e-2)),
        "non_finite",
    ),
    pair("third_log_rate", program(rate_net, counts, adam(lr=5e-3), loss=poisson), "non_finite"),
    pair("third_vit_lr", setting(vit, images, adam(lr=0.3), adam(lr=2e-3)), "lr_too_high"),
    pair("third_vit_slow", setting(vit, images, adamw(lr=2e-6), adamw(lr=2e-3)), "lr_too_low"),
    pair(
        "third_decay",
        setting(convnet, images, adamw(lr=3e-3, weight_decay=80), adamw(lr=3e-3)),
        "weight_decay_too_high",
    ),
    pair(
        "third_l2",
        setting(wide_net, digits, adam(lr=1e-3, weight_decay=0.5), adam(lr=1e-3)),
        "weight_decay_too_high",
    ),
    pair(
        "third_value_clip",
        setting(convnet, images, sgd(lr=0.05, momentum=0.9), sgd(lr=0.05, momentum=0.9)),
        "clip_too_small",
        trainer=CLIPPED,
        repaired={"gradient_clip_val": 1.0},
    ),
]
