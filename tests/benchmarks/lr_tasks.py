"""A zoo of small training tasks for judging learning-rate suggestions.

Every task is cheap (about a millisecond a step on one CPU thread) and needs no download: the data
are scikit-learn's bundled sets, its generators, or sequences made here. Each kind of task is in the
``tuned`` split, on which a rule may be developed, and in the ``held_out`` split, with other data or
another architecture, on which it is only reported. A few tasks show nothing in their first hundred
steps at most rates. Where no rate at all lowers the loss a regret would be noise: leave such a run
out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

Split = Literal["tuned", "held_out"]
Loss = Callable[[Tensor, Tensor], Tensor]
Arrays = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """One training problem: data, a model for every seed, and the loss to lower.

    Attributes:
        name: Unique name.
        split: ``tuned`` tasks may be looked at while a rule is developed, ``held_out`` may not.
        kind: The broad kind; each kind is in both splits.
        make_model: Builds the model at its initial weights from a seed. The caller's random state
            is left as it was.
        loss: Maps the model's output and the target to a scalar.
        x: Training inputs, one example per row.
        y: Training targets.
        val_x: Validation inputs.
        val_y: Validation targets.
        batch_size: Examples per step.
    """

    name: str
    split: Split
    kind: str
    make_model: Callable[[int], nn.Module]
    loss: Loss
    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor
    batch_size: int


def _floats(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.float32)


def _labels(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.long)


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Data ---------------------------------------------------------------------------------------------


@functools.cache
def _digits() -> Arrays:
    x, y = datasets.load_digits(return_X_y=True)
    return _floats(x) / 16.0, _labels(y)


def _images() -> Arrays:
    x, y = _digits()
    return x.reshape(-1, 1, 8, 8), y


def _noisy_images() -> Arrays:
    """Digits under noise as strong as the ink."""
    x, y = _images()
    return x + 0.4 * torch.randn(x.shape, generator=_rng(5)), y


def _noisy_digits(fraction: float) -> Arrays:
    x, y = _digits()
    generator = _rng(3)
    flip = torch.rand(len(y), generator=generator) < fraction
    return x, torch.where(flip, torch.randint(0, 10, y.shape, generator=generator), y)


def _blobs(classes: int, features: int, flip: float = 0.0, n: int = 1600, seed: int = 0) -> Arrays:
    x, y = datasets.make_classification(
        n, features, n_informative=features // 2, n_classes=classes, flip_y=flip, random_state=seed
    )
    return _standardised(_floats(x)), _labels(y)


def _rare_positives() -> Arrays:
    x, y = datasets.make_classification(
        2000, 20, n_informative=6, weights=[0.95], class_sep=1.5, random_state=5
    )
    return _standardised(_floats(x)), _floats(y)[:, None]


def _moons() -> Arrays:
    x, y = datasets.make_moons(1200, noise=0.15, random_state=1)
    return _floats(x), _labels(y)


def _diabetes(raw_target: bool) -> Arrays:
    x, y = datasets.load_diabetes(return_X_y=True)
    target = _floats(y)[:, None]
    return _standardised(_floats(x)), target if raw_target else _standardised(target)


def _friedman(which: int, scale: float = 0.0, offset: float = 0.0) -> Arrays:
    """Friedman regression; targets of unit size, or as large as ``scale`` and ``offset`` say."""
    make = {1: datasets.make_friedman1, 2: datasets.make_friedman2, 3: datasets.make_friedman3}
    x, y = make[which](1200, noise=0.1, random_state=which)
    target = _standardised(_floats(y)[:, None])
    return _standardised(_floats(x)), target * scale + offset if scale else target


def _waves() -> Arrays:
    generator = _rng(11)
    x = 4.0 * torch.rand(1500, 2, generator=generator) - 2.0
    y = torch.sin(2.0 * x[:, :1]) * x[:, 1:] + 0.1 * torch.randn(1500, 1, generator=generator)
    return x, y


def _adding(length: int) -> Arrays:
    """The adding problem: the target is the sum of the two marked values of a sequence."""
    generator = _rng(13)
    values = torch.rand(1500, length, generator=generator)
    marks = torch.zeros(1500, length)
    half = length // 2
    rows = torch.arange(1500)
    marks[rows, torch.randint(0, half, (1500,), generator=generator)] = 1.0
    marks[rows, half + torch.randint(0, length - half, (1500,), generator=generator)] = 1.0
    return torch.stack([values, marks], dim=-1), (values * marks).sum(1, keepdim=True)


def _tones() -> Arrays:
    """Noisy sequences; the class is one of four frequencies."""
    generator = _rng(17)
    y = torch.randint(0, 4, (1200,), generator=generator)
    time = torch.arange(16.0)
    phase = 6.3 * torch.rand(1200, 1, generator=generator)
    wave = torch.sin((0.4 + 0.4 * y)[:, None] * time + phase)
    return (wave + 0.4 * torch.randn(1200, 16, generator=generator))[..., None], y


def _markov_text() -> Arrays:
    """Next-token prediction on text from a random second-order chain over 16 letters."""
    random = np.random.default_rng(19)
    table = random.dirichlet(np.full(16, 0.15), size=(16, 16))
    text = [0, 1]
    for _ in range(1000 * 16 + 1):
        text.append(int(random.choice(16, p=table[text[-2], text[-1]])))
    tokens = _labels(text[2:])
    return tokens[:-1].reshape(1000, 16), tokens[1:].reshape(1000, 16)


def _ratings() -> Arrays:
    """User and item numbers with ratings from one to five."""
    generator = _rng(29)
    users = torch.randn(80, 3, generator=generator)
    items = torch.randn(60, 3, generator=generator)
    pairs = torch.stack([torch.randint(0, n, (3000,), generator=generator) for n in (80, 60)], 1)
    score = 3.0 + (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(1) * 0.6
    noise = 0.2 * torch.randn(3000, generator=generator)
    return pairs, (score + noise).clamp(1.0, 5.0)[:, None]


def _bags_of_words() -> Arrays:
    """Documents of 20 words from 300; each of five topics prefers its own words."""
    generator = _rng(31)
    topics = torch.softmax(1.2 * torch.randn(5, 300, generator=generator), dim=1)
    y = torch.randint(0, 5, (1400,), generator=generator)
    return torch.multinomial(topics[y], 20, replacement=True, generator=generator), y


def _quantiles() -> Arrays:
    """Concentric shells of a Gaussian in 10 dimensions."""
    x, y = datasets.make_gaussian_quantiles(
        n_samples=1600, n_features=10, n_classes=4, random_state=3
    )
    return _floats(x), _labels(y)


def _hastie() -> Arrays:
    x, y = datasets.make_hastie_10_2(1600, random_state=9)
    return _floats(x), _floats(y > 0)[:, None]


def _spirals() -> Arrays:
    generator = _rng(37)
    y = torch.randint(0, 2, (1200,), generator=generator)
    turn = 6.0 * torch.rand(1200, generator=generator).sqrt()
    angle = turn + torch.pi * y
    x = turn[:, None] / 3.0 * torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
    return x + 0.1 * torch.randn(1200, 2, generator=generator), y


def _patches() -> Arrays:
    """Noisy 10x10 images with a bright 3x3 patch; the class is its quadrant."""
    generator = _rng(41)
    y = torch.randint(0, 4, (1300,), generator=generator)
    x = 0.5 * torch.randn(1300, 1, 10, 10, generator=generator)
    shift = torch.randint(0, 3, (2, 1300), generator=generator)
    for image, label, down, right in zip(x, y.tolist(), *shift.tolist(), strict=True):
        top, left = down + 5 * (label // 2), right + 5 * (label % 2)
        image[0, top : top + 3, left : left + 3] += 1.0
    return x, y


def _linear_targets(offset: float, rank: int | None) -> Arrays:
    """Targets linear in 20 features: of unit size, or in the hundreds around ``offset``."""
    x, y = datasets.make_regression(
        1000, 20, noise=5.0 if offset else 0.0, effective_rank=rank, random_state=12
    )
    features, target = _floats(x), _floats(y)[:, None]
    return _standardised(features), target + offset if offset else _standardised(target)


def _raw_diabetes_inputs() -> Arrays:
    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    return _floats(x), _standardised(_floats(y)[:, None])


def _chirp() -> Arrays:
    generator = _rng(43)
    x = 2.0 * torch.rand(1200, 1, generator=generator) - 1.0
    return x, torch.sin(6.0 * x * x + 2.0 * x) + 0.1 * torch.randn(1200, 1, generator=generator)


def _first_symbol() -> Arrays:
    """Which of five symbols a sequence of twelve began with."""
    symbols = torch.randint(0, 5, (1400, 12), generator=_rng(47))
    return functional.one_hot(symbols, 5).float(), symbols[:, 0]


def _repeated_text() -> Arrays:
    """Next-token prediction where the second half of each text repeats the first."""
    half = torch.randint(0, 10, (1200, 8), generator=_rng(53))
    tokens = torch.cat([half, half, half[:, :1]], dim=1)
    return tokens[:, :-1], tokens[:, 1:]


def _bundled(load: Callable[..., Any], raw: bool, column: bool = False) -> Arrays:
    """A bundled classification set, with its raw or standardised features."""
    x, y = load(return_X_y=True)
    features = _floats(x)
    target = _floats(y)[:, None] if column else _labels(y)
    return (features if raw else _standardised(features)), target


def _itself(data: Arrays) -> Arrays:
    return data[0], data[0]


# Models -------------------------------------------------------------------------------------------


def _mlp(
    sizes: list[int],
    act: Callable[[], nn.Module] = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
    init_scale: float = 1.0,
    last: Callable[[], nn.Module] = nn.Identity,
) -> nn.Module:
    layers: list[nn.Module] = []
    for index, (width_in, width_out) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(width_in, width_out))
        if index < len(sizes) - 2:
            layers += [norm(width_out)] if norm else []
            layers += [act()]
            layers += [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential(*layers, last())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(init_scale)
    return model


def _cnn(channels: list[int], classes: int, pixels: int, batch_norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for width_in, width_out in zip([1, *channels[:-1]], channels, strict=True):
        layers.append(nn.Conv2d(width_in, width_out, 3, stride=2, padding=1))
        layers += [nn.BatchNorm2d(width_out)] if batch_norm else []
        layers.append(nn.ReLU())
    side = -(-pixels // 2 ** len(channels))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, classes))


class _Recurrent(nn.Module):
    """A recurrent net that answers from its last state."""

    def __init__(
        self, cell: Callable[..., nn.Module], inputs: int, hidden: int, outputs: int
    ) -> None:
        super().__init__()
        self.cell = cell(inputs, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.cell(x)
        output: Tensor = self.head(states[:, -1])
        return output


class _Transformer(nn.Module):
    """A small pre-norm or post-norm transformer: a causal LM, or a classifier on the mean."""

    def __init__(
        self, tokens: int, length: int, outputs: int, layers: int, causal: bool, norm_first: bool
    ) -> None:
        super().__init__()
        width = 24
        self.embed = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 48, dropout=0.0, batch_first=True, norm_first=norm_first
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, outputs)
        self.causal = causal
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position
        for block in self.blocks:
            h = block(h, src_mask=self.mask) if self.causal else block(h)
        output: Tensor = self.head(h if self.causal else h.mean(1))
        return output


class _Factors(nn.Module):
    """Matrix factorisation with biases."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.factors = nn.ModuleList(nn.Embedding(n, rank) for n in (rows, columns))
        self.biases = nn.ModuleList(nn.Embedding(n, 1) for n in (rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        row, column = (table(x[:, i]) for i, table in enumerate(self.factors))
        bias: Tensor = sum(table(x[:, i]) for i, table in enumerate(self.biases))
        product: Tensor = (row * column).sum(1, keepdim=True)
        return 0.3 * product + bias


def _seeded(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def make_model(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build()

    return make_model


# Losses -------------------------------------------------------------------------------------------

_cross_entropy: Loss = functional.cross_entropy
_bce: Loss = functional.binary_cross_entropy_with_logits
_mse: Loss = functional.mse_loss
_l1: Loss = functional.l1_loss
_huber: Loss = functional.smooth_l1_loss
_margin: Loss = functional.multi_margin_loss


def _token_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


def _smoothed_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, label_smoothing=0.1)


def _gaussian_nll(output: Tensor, target: Tensor) -> Tensor:
    """Negative log likelihood (it may be negative) of a predicted mean and log variance."""
    mean, log_var = output.chunk(2, dim=1)
    return 0.5 * (log_var + (target - mean) ** 2 * torch.exp(-log_var)).mean()


# The zoo ------------------------------------------------------------------------------------------


def _task(
    name: str,
    split: Split,
    kind: str,
    data: Arrays,
    loss: Loss,
    build: Callable[[], nn.Module],
    batch_size: int = 32,
) -> Task:
    """Shuffles the data once and keeps a quarter (at most 400 rows) for validation."""
    x, y = data
    order = torch.randperm(len(x), generator=_rng(1234))
    held = min(len(x) // 4, 400)
    train, val = order[held:], order[:held]
    parts = x[train], y[train], x[val], y[val]
    return Task(name, split, kind, _seeded(build), loss, *parts, batch_size=batch_size)


@functools.cache
def tasks(split: Split | None = None) -> tuple[Task, ...]:
    """All tasks of the zoo, or those of one split, in a fixed order."""
    everything = (
        # MLP classification without normalisation.
        _task("digits_mlp", "tuned", "mlp", _digits(), _cross_entropy,
              lambda: _mlp([64, 64, 32, 10])),
        _task("quantiles_mlp", "held_out", "mlp", _quantiles(), _cross_entropy,
              lambda: _mlp([10, 64, 64, 64, 4], nn.LeakyReLU), 40),
        # MLP with BatchNorm or LayerNorm.
        _task("blobs_bn_mlp", "tuned", "norm_mlp", _blobs(5, 24, 0.1, seed=4), _cross_entropy,
              lambda: _mlp([24, 48, 48, 48, 5], norm=nn.BatchNorm1d), 48),
        _task("blobs_ln_mlp", "tuned", "norm_mlp", _blobs(4, 20, 0.05, seed=6), _cross_entropy,
              lambda: _mlp([20, 64, 64, 4], nn.SiLU, nn.LayerNorm), 24),
        _task("hastie_bn_mlp", "held_out", "norm_mlp", _hastie(), _bce,
              lambda: _mlp([10, 96, 96, 1], norm=nn.BatchNorm1d), 64),
        # Saturating activations, some depth: slow starts.
        _task("digits_deep_tanh", "tuned", "saturating", _digits(), _cross_entropy,
              lambda: _mlp([64, 40, 40, 40, 40, 40, 10], nn.Tanh)),
        _task("moons_sigmoid", "tuned", "saturating", _moons(), _cross_entropy,
              lambda: _mlp([2, 32, 32, 2], nn.Sigmoid)),
        _task("spirals_tanh", "held_out", "saturating", _spirals(), _cross_entropy,
              lambda: _mlp([2, 32, 32, 32, 2], nn.Tanh), 24),
        # Convolutions with and without BatchNorm.
        _task("digits_bn_cnn", "tuned", "cnn", _images(), _cross_entropy,
              lambda: _cnn([12, 24], 10, 8, batch_norm=True)),
        _task("digits_cnn", "tuned", "cnn", _images(), _cross_entropy,
              lambda: _cnn([8, 16, 32], 10, 8, batch_norm=False)),
        _task("patches_cnn", "held_out", "cnn", _patches(), _cross_entropy,
              lambda: _cnn([8, 16], 4, 10, batch_norm=False)),
        _task("noisy_digits_bn_cnn", "held_out", "cnn", _noisy_images(), _cross_entropy,
              lambda: _cnn([16, 16], 10, 8, batch_norm=True), 24),
        # Regression on raw targets, far from zero and of large scale.
        _task("diabetes_raw", "tuned", "raw_target", _diabetes(True), _mse,
              lambda: _mlp([10, 32, 1])),
        _task("friedman_thousands", "tuned", "raw_target", _friedman(1, 800.0, 3000.0), _mse,
              lambda: _mlp([10, 48, 48, 1])),
        _task("linear_hundreds", "held_out", "raw_target", _linear_targets(500.0, None), _mse,
              lambda: _mlp([20, 64, 1])),
        _task("diabetes_raw_bn", "held_out", "raw_target", _diabetes(True), _huber,
              lambda: _mlp([10, 32, 32, 1], norm=nn.BatchNorm1d), 24),
        # Inputs that nobody normalised.
        _task("cancer_raw_inputs", "tuned", "raw_input",
              _bundled(datasets.load_breast_cancer, True, True), _bce, lambda: _mlp([30, 32, 1])),
        _task("diabetes_raw_inputs", "held_out", "raw_input", _raw_diabetes_inputs(), _mse,
              lambda: _mlp([10, 48, 1])),
        # Regression on normalised targets.
        _task("waves_huber", "tuned", "regression", _waves(), _huber,
              lambda: _mlp([2, 128, 1], nn.Tanh)),
        _task("waves_nll", "tuned", "regression", _waves(), _gaussian_nll,
              lambda: _mlp([2, 48, 48, 2])),
        _task("chirp_l1", "held_out", "regression", _chirp(), _l1,
              lambda: _mlp([1, 64, 64, 1], nn.GELU)),
        # Autoencoders.
        _task("digits_autoencoder", "tuned", "autoencoder", _itself(_digits()), _mse,
              lambda: _mlp([64, 48, 12, 48, 64], last=nn.Sigmoid)),
        _task("blobs_autoencoder", "held_out", "autoencoder", _itself(_blobs(6, 30)), _mse,
              lambda: _mlp([30, 40, 10, 40, 30], nn.Tanh), 40),
        # Recurrent nets.
        _task("adding_gru", "tuned", "recurrent", _adding(10), _mse,
              lambda: _Recurrent(nn.GRU, 2, 24, 1)),
        _task("tones_lstm", "tuned", "recurrent", _tones(), _cross_entropy,
              lambda: _Recurrent(nn.LSTM, 1, 20, 4)),
        _task("first_symbol_gru", "held_out", "recurrent", _first_symbol(), _cross_entropy,
              lambda: _Recurrent(nn.GRU, 5, 24, 5)),
        # Transformers.
        _task("markov_transformer", "tuned", "transformer", _markov_text(), _token_cross_entropy,
              lambda: _Transformer(16, 16, 16, 2, causal=True, norm_first=True), 16),
        _task("repeats_transformer", "held_out", "transformer", _repeated_text(),
              _token_cross_entropy,
              lambda: _Transformer(10, 16, 10, 1, causal=True, norm_first=False), 24),
        # Noisy labels with batches of 8.
        _task("digits_noisy", "tuned", "noisy", _noisy_digits(0.4), _cross_entropy,
              lambda: _mlp([64, 48, 10]), 8),
        _task("blobs_noisy", "tuned", "noisy", _blobs(3, 16, 0.4, seed=8), _cross_entropy,
              lambda: _mlp([16, 32, 32, 3], norm=nn.LayerNorm), 8),
        _task("digits_noisy_bn", "held_out", "noisy", _noisy_digits(0.3), _cross_entropy,
              lambda: _mlp([64, 64, 10], norm=nn.BatchNorm1d), 8),
        # Linear models.
        _task("digits_logistic", "tuned", "linear", _digits(), _cross_entropy,
              lambda: _mlp([64, 10])),
        _task("linear_low_rank", "held_out", "linear", _linear_targets(0.0, 5), _mse,
              lambda: _mlp([20, 1]), 16),
        # Embeddings.
        _task("ratings_factors", "tuned", "embedding", _ratings(), _mse,
              lambda: _Factors(80, 60, 6), 64),
        _task("words_bag", "tuned", "embedding", _bags_of_words(), _cross_entropy,
              lambda: nn.Sequential(nn.EmbeddingBag(300, 16), nn.ReLU(), nn.Linear(16, 5))),
        _task("markov_bigrams", "held_out", "embedding", _markov_text(), _token_cross_entropy,
              lambda: nn.Sequential(nn.Embedding(16, 12), nn.Linear(12, 16)), 16),
        # Bad initial weights.
        _task("digits_large_init", "tuned", "bad_init", _digits(), _cross_entropy,
              lambda: _mlp([64, 64, 64, 10], init_scale=3.0)),
        _task("blobs_small_init", "tuned", "bad_init", _blobs(6, 30), _cross_entropy,
              lambda: _mlp([30, 48, 48, 6], init_scale=0.3)),
        _task("friedman_large_init", "held_out", "bad_init", _friedman(1), _mse,
              lambda: _mlp([10, 48, 48, 1], nn.GELU, init_scale=3.0)),
        # Rare positives; dropout with label smoothing.
        _task("rare_positives", "tuned", "awkward", _rare_positives(), _bce,
              lambda: _mlp([20, 32, 1])),
        _task("digits_dropout", "tuned", "awkward", _digits(), _smoothed_cross_entropy,
              lambda: _mlp([64, 96, 96, 10], dropout=0.4)),
        _task("digits_margin_dropout", "held_out", "awkward", _digits(), _margin,
              lambda: _mlp([64, 80, 10], dropout=0.5), 40),
        # Few data: an epoch is a handful of steps.
        _task("wine", "tuned", "tiny", _bundled(datasets.load_wine, False), _cross_entropy,
              lambda: _mlp([13, 24, 3]), 32),
        _task("diabetes_tiny", "tuned", "tiny", _diabetes(False), _mse,
              lambda: _mlp([10, 64, 32, 1], nn.Tanh), 64),
        _task("iris_bn", "held_out", "tiny", _bundled(datasets.load_iris, False), _cross_entropy,
              lambda: _mlp([4, 24, 24, 3], norm=nn.BatchNorm1d), 16),
    )  # fmt: skip
    return tuple(task for task in everything if split in (None, task.split))
