"""Tasks that no rule was developed on: what ``lr_suggestion.py`` reports as held out.

They are kept apart from ``lr_tasks.py``: other data, other architectures, and chosen by training on
a grid of learning rates alone, before any rule for suggesting one had been run on them. Each is a
program that a reasonable person might write, a few with an initialisation or a scale of their own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from lr_tasks import Arrays, Loss, Task
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

# Data ---------------------------------------------------------------------------------------------


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _teacher(features: int, classes: int, seed: int, n: int = 1600) -> Arrays:
    """Gaussian inputs, labelled by a random net."""
    generator = _rng(seed)
    x = torch.randn(n, features, generator=generator)
    hidden = torch.tanh(x @ torch.randn(features, 24, generator=generator) / features**0.5 * 1.5)
    logits = hidden @ torch.randn(24, classes, generator=generator)
    return x, ((logits - logits.mean(0)) / logits.std(0)).argmax(1)


def _rings() -> Arrays:
    x, y = datasets.make_circles(1200, noise=0.12, factor=0.5, random_state=21)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def _prototypes() -> Arrays:
    """Twelve random patterns of 48 bits, a fifth of the bits flipped."""
    generator = _rng(102)
    patterns = torch.rand(12, 48, generator=generator) < 0.5
    y = torch.randint(0, 12, (1500,), generator=generator)
    flips = torch.rand(1500, 48, generator=generator) < 0.2
    return (patterns[y] ^ flips).float(), y


def _digit_images() -> Arrays:
    x, y = datasets.load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return (images - images.mean()) / images.std(), torch.tensor(y)


def _large_digit_images() -> Arrays:
    """Digits at 12x12 with values from 0 to 1, moved about by up to two pixels."""
    x, y = datasets.load_digits(return_X_y=True)
    images = torch.tensor(x, dtype=torch.float32).reshape(-1, 8, 8) / 16
    canvas = torch.zeros(len(images), 1, 12, 12)
    places = torch.randint(0, 5, (len(images), 2), generator=_rng(103)).tolist()
    for image, place, (top, left) in zip(images, canvas, places, strict=True):
        place[0, top : top + 8, left : left + 8] = image
    return canvas, torch.tensor(y)


def _temperatures() -> Arrays:
    """Station, month and altitude; degrees Celsius."""
    generator = _rng(104)
    station = torch.randint(0, 30, (1600,), generator=generator)
    month = torch.randint(0, 12, (1600,), generator=generator)
    altitude = torch.rand(1600, generator=generator)
    local = 5 * torch.randn(30, generator=generator)
    season = 9 * torch.cos((month - 6) * torch.pi / 6)
    degrees = 14 + local[station] + season - 7 * altitude
    degrees += 1.5 * torch.randn(1600, generator=generator)
    return torch.stack([station, month, altitude], 1), degrees[:, None]


def _rents() -> Arrays:
    """Standardised properties of flats; monthly rents of about 1000, as they stand."""
    generator = _rng(105)
    x = torch.randn(1400, 9, generator=generator)
    score = x @ torch.randn(9, generator=generator) / 3 + 0.3 * x[:, 0] * x[:, 1]
    noise = 0.1 * torch.randn(1400, generator=generator)
    return x, torch.exp(6.9 + 0.35 * score + noise)[:, None]


def _sensor_windows() -> Arrays:
    """Windows of 40 samples of three superposed oscillations; the input is the target."""
    generator = _rng(106)
    time = torch.arange(40.0)
    x = 0.1 * torch.randn(1400, 40, generator=generator)
    for frequency in (0.15, 0.4, 0.8):
        phase = 6.3 * torch.rand(1400, 1, generator=generator)
        x += torch.rand(1400, 1, generator=generator) * torch.sin(frequency * time + phase)
    return x, x


def _bars() -> Arrays:
    """Binary 8x8 images of some full rows and columns; the input is the target."""
    generator = _rng(107)
    rows = torch.rand(1300, 1, 8, 1, generator=generator) < 0.2
    columns = torch.rand(1300, 1, 1, 8, generator=generator) < 0.2
    x = (rows | columns).float()
    return x, x


def _oscillations() -> Arrays:
    """Noisy damped oscillations; the target is the series one step ahead."""
    generator = _rng(108)
    frequency = 0.3 + 0.5 * torch.rand(1200, 1, generator=generator)
    phase = 6.3 * torch.rand(1200, 1, generator=generator)
    time = torch.arange(19.0)
    series = torch.exp(-0.05 * time) * torch.sin(frequency * time + phase)
    series = (series + 0.05 * torch.randn(1200, 19, generator=generator))[..., None]
    return series[:, :-1], series[:, 1:]


def _chains() -> Arrays:
    """Texts over eight letters from one of four Markov chains; which one?"""
    generator = _rng(109)
    tables = torch.softmax(1.5 * torch.randn(4, 8, 8, generator=generator), dim=-1)
    y = torch.randint(0, 4, (1400,), generator=generator)
    x = torch.randint(0, 8, (1400, 12), generator=generator)
    for place in range(1, 12):
        x[:, place] = torch.multinomial(tables[y, x[:, place - 1]], 1, generator=generator)[:, 0]
    return x, y


def _progressions() -> Arrays:
    """Progressions modulo 11 by 1, 2 or 3 with an occasional wrong token; the next token."""
    generator = _rng(110)
    start = torch.randint(0, 11, (1200, 1), generator=generator)
    step = torch.randint(1, 4, (1200, 1), generator=generator)
    tokens = (start + step * torch.arange(13)) % 11
    wrong = torch.rand(tokens.shape, generator=generator) < 0.05
    tokens[wrong] = torch.randint(0, 11, (int(wrong.sum()),), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def _mislabelled_cancer() -> Arrays:
    """Breast cancer, standardised, a fifth of the labels flipped."""
    features, labels = datasets.load_breast_cancer(return_X_y=True)
    x = torch.tensor(features, dtype=torch.float32)
    flip = torch.rand(len(x), generator=_rng(111)) < 0.2
    return (x - x.mean(0)) / x.std(0), torch.tensor(labels) ^ flip.long()


def _anomalies() -> Arrays:
    """Eight in a hundred points lie far out in six of twelve dimensions."""
    x = torch.randn(3000, 12, generator=_rng(112))
    radius = x[:, :6].norm(dim=1)
    return x, (radius > radius.quantile(0.92)).float()[:, None]


def _mixed_units() -> Arrays:
    """Features in units that differ by up to ten thousand, not centred."""
    x, y = _teacher(12, 3, seed=113)
    return (x + 0.5) * torch.logspace(-2, 2, 12), y


# Models -------------------------------------------------------------------------------------------


def _deep_he_net() -> nn.Module:
    widths = [48] + 10 * [40]
    layers: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        linear = nn.Linear(width_in, width_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(40, 12))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


class _EntityNet(nn.Module):
    """Embeds two categories, joins them with the numbers, and regresses."""

    def __init__(self) -> None:
        super().__init__()
        self.station, self.month = nn.Embedding(30, 8), nn.Embedding(12, 4)
        self.head = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        codes = x[:, :2].long()
        parts = self.station(codes[:, 0]), self.month(codes[:, 1]), x[:, 2:]
        output: Tensor = self.head(torch.cat(parts, dim=1))
        return output


class _Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.lstm(x)[0])
        return output


class _TokenClassifier(nn.Module):
    """Answers from a token of its own in front of the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.first = nn.Parameter(torch.zeros(1, 1, 32))
        self.position = nn.Embedding(13, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.first.expand(len(x), 1, 32), self.embed(x)], dim=1)
        output: Tensor = self.head(self.encoder(tokens + self.position.weight)[:, 0])
        return output


class _SmallGPT(nn.Module):
    """Causal and pre-norm, its embeddings from N(0, 0.02) as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(11, 32), nn.Embedding(12, 32)
        self.block = nn.TransformerEncoderLayer(
            32, 2, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 11)
        for table in (self.embed, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.block(self.embed(x) + self.position.weight, src_mask=mask, is_causal=True)
        output: Tensor = self.head(self.norm(hidden))
        return output


# Losses -------------------------------------------------------------------------------------------

_cross_entropy: Loss = functional.cross_entropy
_bce: Loss = functional.binary_cross_entropy_with_logits
_mse: Loss = functional.mse_loss


def _weighted_bce(output: Tensor, target: Tensor) -> Tensor:
    weight = torch.tensor(5.0)
    return functional.binary_cross_entropy_with_logits(output, target, pos_weight=weight)


def _token_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.transpose(1, 2), target)


# The tasks ----------------------------------------------------------------------------------------


def _task(
    name: str,
    kind: str,
    data: Arrays,
    loss: Loss,
    build: Callable[[], nn.Module],
    batch_size: int = 32,
) -> Task:
    """Shuffles the data once and keeps a quarter (at most 600 rows) for validation."""

    def make_model(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100 + seed)
            return build()

    x, y = data
    order = torch.randperm(len(x), generator=_rng(4321))
    held = min(len(x) // 4, 600)
    train, val = order[held:], order[:held]
    parts = x[train], y[train], x[val], y[val]
    return Task(name, "held_out", kind, make_model, loss, *parts, batch_size=batch_size)


def _net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


@functools.cache
def tasks() -> tuple[Task, ...]:
    """All held-out tasks in a fixed order."""
    return (
        _task("teacher_bn_mlp", "batch_norm", _teacher(16, 4, seed=101), _cross_entropy,
              lambda: _net(nn.Linear(16, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64),
                           nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))),
        _task("rings_mlp", "mlp", _rings(), _cross_entropy,
              lambda: _net(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                           nn.Linear(64, 2)), 50),
        _task("prototypes_deep", "deep", _prototypes(), _cross_entropy, _deep_he_net),
        _task("digits_resnet", "cnn", _digit_images(), _cross_entropy,
              lambda: _net(nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
                           nn.BatchNorm2d(16), nn.ReLU(), _Residual(16), nn.AdaptiveAvgPool2d(1),
                           nn.Flatten(), nn.Linear(16, 10)), 40),
        _task("digits_lenet", "cnn", _large_digit_images(), _cross_entropy,
              lambda: _net(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
                           nn.Conv2d(6, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                           nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))),
        _task("temperatures", "raw_target", _temperatures(), _mse, _EntityNet, 24),
        _task("rents", "raw_target", _rents(), _mse,
              lambda: _net(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(),
                           nn.Linear(32, 1)), 20),
        _task("windows_autoencoder", "autoencoder", _sensor_windows(), _mse,
              lambda: _net(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 8), nn.Linear(8, 64),
                           nn.ReLU(), nn.Linear(64, 40))),
        _task("bars_autoencoder", "autoencoder", _bars(), _bce,
              lambda: _net(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
                           nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
                           nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ReLU(),
                           nn.ConvTranspose2d(8, 1, 2, stride=2))),
        _task("forecast_lstm", "recurrent", _oscillations(), _mse, _Forecaster),
        _task("chains_transformer", "transformer", _chains(), _cross_entropy, _TokenClassifier),
        _task("progressions_gpt", "transformer", _progressions(), _token_cross_entropy, _SmallGPT,
              16),
        _task("cancer_mislabelled", "noisy", _mislabelled_cancer(), _cross_entropy,
              lambda: _net(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2)), 8),
        _task("anomalies", "imbalanced", _anomalies(), _weighted_bce,
              lambda: _net(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(),
                           nn.Linear(32, 1)), 64),
        _task("teacher_ln_dropout", "layer_norm", _teacher(20, 5, seed=114), _cross_entropy,
              lambda: _net(nn.Linear(20, 128), nn.LayerNorm(128), nn.GELU(), nn.Dropout(0.3),
                           nn.Linear(128, 128), nn.LayerNorm(128), nn.GELU(), nn.Dropout(0.3),
                           nn.Linear(128, 5)), 48),
        _task("mixed_units", "raw_input", _mixed_units(), _cross_entropy,
              lambda: _net(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3))),
    )  # fmt: skip
