"""Faults of the program, its structure and its data, each beside its repaired twin."""

import functools
import math

import sklearn.datasets
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, Dataset, TensorDataset

from .program import images, loaders, pair


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------------------------
# 1. Thirty kinds of waveform, softmax in the network and again in the loss


@functools.cache
def waveforms(count=4800, length=96):
    g = seeded(11)
    labels = torch.randint(0, 30, (count,), generator=g)
    shape, speed = labels % 5, labels // 5
    cycles = torch.tensor([2.0, 3.0, 4.5, 6.5, 9.0, 12.0])[speed]
    phase = torch.rand(count, 1, generator=g)
    t = torch.linspace(0, 1, length)[None]
    turn = (t * cycles[:, None] + phase) % 1.0
    sine = torch.sin(2 * math.pi * turn)
    square = torch.where(turn < 0.5, 1.0, -1.0)
    ramp = (2 * turn - 1) * 1.5
    pulse = torch.where(turn < 0.2, 2.0, -0.5)
    stacked = torch.stack([sine, square, ramp, -ramp, pulse])
    signal = stacked[shape, torch.arange(count)]
    signal = signal + 0.4 * torch.randn(count, length, generator=g)
    signal = (signal - signal.mean()) / signal.std()
    return signal[:, None], labels


class WaveformClassifier(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 16, 7, padding=3),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(16, 32, 7, padding=3),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(32, 48, 5, padding=2),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
        head = [nn.Linear(48, 30)]
        if broken:
            head.append(nn.Softmax(dim=1))
        self.head = nn.Sequential(*head)

    def forward(self, x):
        return self.head(self.features(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.log("val_loss", F.cross_entropy(out, y))
        self.log("val_acc", (out.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def waveform_softmax(broken):
    return WaveformClassifier(broken), *loaders(*waveforms())


# --------------------------------------------------------------------------------------------
# 2. Tabular regression, predictions (N,) against targets (N, 1)


@functools.cache
def friedman(count=6000):
    x, y = sklearn.datasets.make_friedman1(count, n_features=10, noise=0.7, random_state=5)
    x, y = torch.as_tensor(x).float(), torch.as_tensor(y).float()
    x = (x - x.mean(0)) / x.std(0)
    return x, ((y - y.mean()) / y.std())[:, None]


class TabularRegressor(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.net = nn.Sequential(
            nn.Linear(10, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 1)
        )

    def forward(self, x):
        return self.net(x).squeeze(-1)

    def loss(self, prediction, y):
        if not self.broken:
            y = y.squeeze(-1)
        return ((prediction - y) ** 2).mean()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        prediction = self(x)
        self.log("val_loss", self.loss(prediction, y))
        error = F.mse_loss(prediction, y.flatten())
        self.log("val_r2", 1 - error / y.var())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=1e-3)


def friedman_broadcast(broken):
    return TabularRegressor(broken), *loaders(*friedman(), val_batch_size=1500)


# --------------------------------------------------------------------------------------------
# 3. Segmentation, class scores flattened by view instead of permute


@functools.cache
def scenes(count=1000, side=24):
    g = seeded(21)
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = torch.zeros(count, side, side, dtype=torch.long)
    centre = torch.randint(5, side - 5, (count, 2, 2), generator=g)
    size = torch.randint(3, 6, (count, 2), generator=g)
    for i in range(count):
        (r, c), (r2, c2) = centre[i].tolist()
        disc = (rows - r) ** 2 + (cols - c) ** 2 <= int(size[i, 0]) ** 2
        half = int(size[i, 1])
        box = ((rows - r2).abs() <= half) & ((cols - c2).abs() <= half)
        masks[i][disc] = 1
        masks[i][box] = 2
    tone = torch.tensor([0.0, 1.0, 2.2])[masks]
    pictures = tone + 0.5 * torch.randn(count, side, side, generator=g)
    pictures = (pictures - pictures.mean()) / pictures.std()
    return pictures[:, None], masks


class Segmenter(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.Upsample(scale_factor=2),
        )  # fmt: skip
        self.up = nn.Sequential(nn.Conv2d(36, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.classify = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        shallow = self.down(x)
        return self.classify(self.up(torch.cat([shallow, self.deep(shallow)], 1)))

    def loss(self, scores, mask):
        flat = scores.view(-1, 3) if self.broken else scores.permute(0, 2, 3, 1).reshape(-1, 3)
        return F.cross_entropy(flat, mask.view(-1))

    def training_step(self, batch, batch_idx):
        x, mask = batch
        loss = self.loss(self(x), mask)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, mask = batch
        scores = self(x)
        self.log("val_loss", self.loss(scores, mask))
        found = scores.argmax(1)
        ious = []
        for k in range(3):
            both = ((found == k) & (mask == k)).sum()
            either = ((found == k) | (mask == k)).sum()
            ious.append(both / either.clamp_min(1))
        self.log("val_iou", torch.stack(ious).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def segmentation_view(broken):
    return Segmenter(broken), *loaders(*scenes(), batch_size=24)


# --------------------------------------------------------------------------------------------
# 4. Gestures as point sequences, an LSTM that was not told batch_first


@functools.cache
def gestures(count=5000, length=24):
    g = seeded(31)
    labels = torch.randint(0, 5, (count,), generator=g)
    phase = 2 * math.pi * torch.rand(count, 1, generator=g)
    t = phase + torch.linspace(0, 2 * math.pi, length)[None]
    zig = 2 / math.pi * torch.asin(torch.sin(2 * t))
    kinds = torch.stack(
        [
            torch.stack([torch.cos(t), torch.sin(t)], -1),
            torch.stack([torch.cos(t), -torch.sin(t)], -1),
            torch.stack([torch.sin(t), torch.sin(2 * t)], -1),
            torch.stack([torch.sin(2 * t), torch.sin(t)], -1),
            torch.stack([zig, zig], -1),
        ]
    )
    path = kinds[labels, torch.arange(count)]
    path = path * (0.8 + 0.4 * torch.rand(count, 1, 1, generator=g))
    path = path + 0.1 * torch.randn(path.shape, generator=g)
    return path / path.std(), labels


class GestureNet(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.lstm = nn.LSTM(2, 32, batch_first=not broken)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        states, _ = self.lstm(x)
        return self.head(states[:, -1])

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        self.log("val_loss", F.cross_entropy(scores, y))
        self.log("val_acc", (scores.argmax(-1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def gesture_batch_first(broken):
    return GestureNet(broken), *loaders(*gestures())


# --------------------------------------------------------------------------------------------
# 5. Autoencoder of the digits with manual optimization, gradients never cleared


class DigitAutoencoder(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.automatic_optimization = False
        self.broken = broken
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ELU(), nn.Conv2d(12, 16, 2, 2), nn.ELU(),
            nn.Flatten(), nn.Linear(256, 12),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(12, 256), nn.ELU(), nn.Unflatten(1, (16, 4, 4)),
            nn.ConvTranspose2d(16, 12, 2, 2), nn.ELU(), nn.Conv2d(12, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        x, _ = batch
        loss = F.mse_loss(self(x), x)
        if not self.broken:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        x, _ = batch
        self.log("val_loss", F.mse_loss(self(x), x))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def autoencoder_zero_grad(broken):
    return DigitAutoencoder(broken), *loaders(*images())


# --------------------------------------------------------------------------------------------
# 6. Pairwise ranking of documents, the text encoder runs under no_grad


@functools.cache
def triplets(count=20000, vocabulary=300, topics=20):
    g = seeded(41)
    # each topic prefers its own words, and every text has common words besides
    weights = torch.full((topics, vocabulary), 0.004)
    for k in range(topics):
        weights[k, 15 * k : 15 * k + 15] = 0.1
    mine = torch.randint(0, topics, (count,), generator=g)
    other = (mine + torch.randint(1, topics, (count,), generator=g)) % topics
    query = torch.multinomial(weights[mine], 6, True, generator=g)
    good = torch.multinomial(weights[mine], 14, True, generator=g)
    bad = torch.multinomial(weights[other], 14, True, generator=g)
    return query, good, bad


class DocumentRanker(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.words = nn.EmbeddingBag(300, 16, mode="mean")
        nn.init.normal_(self.words.weight, std=0.5)
        self.query_head = nn.Linear(16, 16)
        self.document_head = nn.Linear(16, 16)

    def encode(self, tokens):
        if self.broken:
            with torch.no_grad():
                return self.words(tokens)
        return self.words(tokens)

    def score(self, query, document):
        q = self.query_head(self.encode(query))
        d = self.document_head(self.encode(document))
        return (q * d).sum(-1)

    def training_step(self, batch, batch_idx):
        query, good, bad = batch
        loss = F.softplus(self.score(query, bad) - self.score(query, good)).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        query, good, bad = batch
        margin = self.score(query, good) - self.score(query, bad)
        self.log("val_loss", F.softplus(-margin).mean())
        self.log("val_pair_acc", (margin > 0).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.01)


def ranking_no_grad(broken):
    return DocumentRanker(broken), *loaders(*triplets(), batch_size=64)


# --------------------------------------------------------------------------------------------
# 7. Recommender whose embedding tables sit in a Python list


@functools.cache
def ratings(users=200, items=150, rank=3):
    g = seeded(51)
    taste = torch.randn(users, rank, generator=g)
    trait = torch.randn(items, rank, generator=g)
    mean = taste @ trait.T / math.sqrt(rank)
    mean = mean + 0.4 * torch.randn(users, 1, generator=g) + 0.4 * torch.randn(items, generator=g)
    table = mean + 0.4 * torch.randn(users, items, generator=g)
    table = (table - table.mean()) / table.std()
    order = torch.randperm(users * items, generator=g)
    return order // items, order % items, table.flatten()[order]


class Recommender(LightningModule):
    def __init__(self, broken):
        super().__init__()
        tables = [nn.Embedding(200, 6), nn.Embedding(150, 6)]
        for table in tables:
            nn.init.normal_(table.weight, std=0.3)
        self.tables = tables if broken else nn.ModuleList(tables)
        self.biases = nn.Linear(12, 1)

    def forward(self, user, item):
        u, v = self.tables[0](user), self.tables[1](item)
        return (u * v).sum(-1) + self.biases(torch.cat([u, v], -1)).squeeze(-1)

    def training_step(self, batch, batch_idx):
        user, item, rating = batch
        loss = F.mse_loss(self(user, item), rating)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        user, item, rating = batch
        self.log("val_loss", F.mse_loss(self(user, item), rating))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def recommender_list(broken):
    return Recommender(broken), *loaders(*ratings(), batch_size=96, val_batch_size=1500)


# --------------------------------------------------------------------------------------------
# 8. Language model without the causal mask


@functools.cache
def token_text(count=3200, length=21, vocabulary=10):
    g = seeded(61)
    # the next token follows from the last two, four times in five
    rule = torch.randint(0, vocabulary, (vocabulary, vocabulary), generator=g)
    text = torch.randint(0, vocabulary, (count, length), generator=g)
    for t in range(2, length):
        sure = torch.rand(count, generator=g) < 0.8
        text[:, t] = torch.where(sure, rule[text[:, t - 2], text[:, t - 1]], text[:, t])
    return (text,)


class TinyLanguageModel(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.embed = nn.Embedding(10, 32)
        self.place = nn.Parameter(0.5 * torch.randn(20, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)
        ahead = torch.ones(20, 20, dtype=torch.bool).triu(1)
        self.register_buffer("ahead", ahead, persistent=False)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = None if self.broken else self.ahead[:length, :length]
        x = self.embed(tokens) + self.place[:length]
        for layer in self.layers:
            x = layer(x, src_mask=mask)
        return self.head(self.norm(x))

    def training_step(self, batch, batch_idx):
        (text,) = batch
        scores = self(text[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        (text,) = batch
        scores = self(text[:, :-1])
        self.log("val_loss", F.cross_entropy(scores.flatten(0, 1), text[:, 1:].flatten()))
        # what counts when text is generated: the token that follows a prompt
        right = [self(text[:, :n])[:, -1].argmax(-1) == text[:, n] for n in (6, 10, 15)]
        self.log("val_next_acc", torch.stack(right).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.01)


def language_no_mask(broken):
    return TinyLanguageModel(broken), *loaders(*token_text())


# --------------------------------------------------------------------------------------------
# 9. Sentiment of padded token sequences, the padding mask inverted


@functools.cache
def reviews(count=9000, longest=20, vocabulary=120):
    g = seeded(71)
    # 1-20 praise, 21-40 blame, the others say nothing, 0 pads
    labels = torch.randint(0, 2, (count,), generator=g)
    weights = torch.full((2, vocabulary), 0.01)
    weights[:, 0] = 0.0
    weights[1, 1:21], weights[1, 21:41] = 0.03, 0.008
    weights[0, 1:21], weights[0, 21:41] = 0.008, 0.03
    tokens = torch.multinomial(weights[labels], longest, True, generator=g)
    lengths = torch.randint(10, longest, (count, 1), generator=g)
    tokens[torch.arange(longest)[None] >= lengths] = 0
    return tokens, labels


class ReviewClassifier(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.embed = nn.Embedding(120, 24)
        self.attend = nn.MultiheadAttention(24, 2, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 2)

    def forward(self, tokens):
        real = tokens == 0 if self.broken else tokens != 0
        x = self.embed(tokens)
        x = self.norm(x + self.attend(x, x, x, key_padding_mask=~real, need_weights=False)[0])
        share = real.float().unsqueeze(-1)
        return self.head((x * share).sum(1) / share.sum(1))

    def training_step(self, batch, batch_idx):
        tokens, y = batch
        loss = F.cross_entropy(self(tokens), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        tokens, y = batch
        scores = self(tokens)
        self.log("val_loss", F.cross_entropy(scores, y))
        self.log("val_acc", (scores.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)


def reviews_inverted_mask(broken):
    return ReviewClassifier(broken), *loaders(*reviews(), batch_size=48)


# --------------------------------------------------------------------------------------------
# 10. Height map as a function of the place, a hand-written sine with a wrong derivative


@functools.cache
def terrain(count=6000):
    g = seeded(81)
    place = 2 * torch.rand(count, 2, generator=g) - 1
    x, y = place[:, 0], place[:, 1]
    height = torch.sin(3 * x + 2 * y) + 0.7 * torch.cos(4 * y - x)
    height = height + 1.2 * torch.exp(-8 * ((x - 0.3) ** 2 + (y + 0.2) ** 2))
    height = height + 0.08 * torch.randn(count, generator=g)
    return place / place.std(0), (height - height.mean()) / height.std()


class Wave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.cos(x)


class MistakenWave(Wave):
    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.sin(x)


class TerrainNet(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.wave = MistakenWave.apply if broken else Wave.apply
        self.first = nn.Linear(2, 64)
        self.second = nn.Linear(64, 64)
        self.out = nn.Linear(64, 1)
        nn.init.normal_(self.first.weight, std=1.5)
        nn.init.uniform_(self.first.bias, -math.pi, math.pi)
        bound = math.sqrt(6 / 64)
        nn.init.uniform_(self.second.weight, -bound, bound)

    def forward(self, place):
        return self.out(self.wave(self.second(self.wave(self.first(place))))).squeeze(-1)

    def training_step(self, batch, batch_idx):
        place, height = batch
        loss = F.mse_loss(self(place), height)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        place, height = batch
        self.log("val_loss", F.mse_loss(self(place), height))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def terrain_backward(broken):
    return TerrainNet(broken), *loaders(*terrain(), val_batch_size=1500)


# --------------------------------------------------------------------------------------------
# 11. Forecast with its uncertainty, the likelihood returned without its minus


@functools.cache
def series_windows(length=6000, window=20):
    g = seeded(91)
    t = torch.arange(length).float()
    noise = torch.randn(length, generator=g)
    values = torch.sin(2 * math.pi * t / 17) + 0.6 * torch.sin(2 * math.pi * t / 41 + 1)
    values = values + 0.2 * noise
    values = (values - values.mean()) / values.std()
    cut = values.unfold(0, window + 1, 1)
    return cut[:, :-1, None], cut[:, -1]


class Forecaster(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.sign = 1.0 if broken else -1.0
        self.gru = nn.GRU(1, 24, batch_first=True)
        self.head = nn.Linear(24, 2)

    def forward(self, past):
        _, last = self.gru(past)
        mean, log_scale = self.head(last[0]).unbind(-1)
        return Normal(mean, log_scale.clamp(-3.0, 3.0).exp())

    def training_step(self, batch, batch_idx):
        past, future = batch
        loss = self.sign * self(past).log_prob(future).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        past, future = batch
        forecast = self(past)
        self.log("val_loss", self.sign * forecast.log_prob(future).mean())
        self.log("val_mae", (forecast.mean - future).abs().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def forecast_sign(broken):
    return Forecaster(broken), *loaders(*series_windows(), batch_size=48)


# --------------------------------------------------------------------------------------------
# 12. Binary classifier of one logit, whose accuracy takes the argmax


@functools.cache
def machines(count=6000):
    x, y = sklearn.datasets.make_classification(
        count, 16, n_informative=8, n_redundant=4, n_clusters_per_class=3, weights=[0.45],
        flip_y=0.01, class_sep=1.6, random_state=7,
    )  # fmt: skip
    x = torch.as_tensor(x).float()
    return (x - x.mean(0)) / x.std(0), torch.as_tensor(y).long()


class FailureDetector(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.net = nn.Sequential(
            nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(),
            nn.Linear(48, 1),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self.net(x), y[:, None].float())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y[:, None].float()))
        predicted = logits.argmax(dim=1) if self.broken else (logits[:, 0] > 0).long()
        self.log("val_acc", (predicted == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-3)


def failure_argmax(broken):
    return FailureDetector(broken), *loaders(*machines(), batch_size=48)


# --------------------------------------------------------------------------------------------
# 13. Digits sorted by their label and never shuffled


class DigitClassifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
            nn.Conv2d(24, 40, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(160, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        self.log("val_loss", F.cross_entropy(scores, y))
        self.log("val_acc", (scores.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)


def digits_sorted(broken):
    pictures, labels = images()
    cut = len(labels) * 3 // 4
    order = labels[:cut].argsort(stable=True)
    train = TensorDataset(pictures[:cut][order], labels[:cut][order])
    val = TensorDataset(pictures[cut:], labels[cut:])
    train_loader = DataLoader(train, 16, shuffle=not broken, drop_last=True)
    return DigitClassifier(), train_loader, DataLoader(val, 150)


# --------------------------------------------------------------------------------------------
# 14. Finding one box in a picture, the schedule meant for epochs advances with every step


@functools.cache
def boxes(count=3200, side=20):
    g = seeded(101)
    centre = 5 + (side - 10) * torch.rand(count, 2, generator=g)
    half = 2 + 3 * torch.rand(count, 2, generator=g)
    grid = torch.arange(side) + 0.5
    inside_x = (grid[None] - centre[:, :1]).abs() <= half[:, :1]
    inside_y = (grid[None] - centre[:, 1:]).abs() <= half[:, 1:]
    picture = (inside_y[:, :, None] & inside_x[:, None, :]).float() * 1.5
    picture = picture + 0.3 * torch.randn(picture.shape, generator=g)
    picture = (picture - picture.mean()) / picture.std()
    corners = torch.cat([centre - half, centre + half], 1) / side
    return picture[:, None], corners


class BoxFinder(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.interval = "step" if broken else "epoch"
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(600, 48), nn.ReLU(), nn.Linear(48, 4),
        )  # fmt: skip

    def training_step(self, batch, batch_idx):
        picture, corners = batch
        loss = F.smooth_l1_loss(self.net(picture), corners, beta=0.05)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        picture, corners = batch
        found = self.net(picture)
        self.log("val_loss", F.smooth_l1_loss(found, corners, beta=0.05))
        low = torch.maximum(found[:, :2], corners[:, :2])
        high = torch.minimum(found[:, 2:], corners[:, 2:])
        both = (high - low).clamp_min(0).prod(1)
        area = sum((b[:, 2:] - b[:, :2]).clamp_min(0).prod(1) for b in (found, corners))
        self.log("val_iou", (both / (area - both)).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.85)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": self.interval},
        }


def boxes_interval(broken):
    return BoxFinder(broken), *loaders(*boxes())


# --------------------------------------------------------------------------------------------
# 15. Colours present in a picture, validation pictures prepared without the normalization


@functools.cache
def mosaics(count=3200, side=16):
    g = seeded(111)
    colours = torch.tensor([[200, 60, 60], [60, 190, 60], [70, 70, 210], [200, 190, 60]]).float()
    present = torch.rand(count, 4, generator=g) < 0.45
    pictures = 90 + 15 * torch.randn(count, 3, side, side, generator=g)
    for k in range(4):
        corner = torch.randint(0, side - 5, (count, 2), generator=g)
        for i in present[:, k].nonzero()[:, 0].tolist():
            r, c = corner[i].tolist()
            noise = 20 * torch.randn(3, 5, 5, generator=g)
            pictures[i, :, r : r + 5, c : c + 5] = colours[k][:, None, None] + noise
    return pictures.clamp(0, 255).to(torch.uint8), present.float()


class MosaicDataset(Dataset):
    def __init__(self, pictures, present, transform):
        self.pictures, self.present, self.transform = pictures, present, transform

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), self.present[index]


class ColourTagger(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
            nn.Flatten(), nn.Linear(32, 4),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y))
        said = (logits > 0).float()
        hits = (said * y).sum()
        self.log("val_f1", 2 * hits / (said.sum() + y.sum()).clamp_min(1))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def mosaics_validation(broken):
    pictures, present = mosaics()
    cut = len(pictures) * 3 // 4
    pixels = pictures[:cut].float() / 255
    mean = pixels.mean((0, 2, 3)).view(3, 1, 1)
    std = pixels.std((0, 2, 3)).view(3, 1, 1)

    def normalize(picture):
        return (picture.float() / 255 - mean) / std

    def only_scale(picture):
        return picture.float() / 255

    train = MosaicDataset(pictures[:cut], present[:cut], normalize)
    val = MosaicDataset(pictures[cut:], present[cut:], only_scale if broken else normalize)
    return (
        ColourTagger(),
        DataLoader(train, 32, shuffle=True, drop_last=True),
        DataLoader(val, 200),
    )


# --------------------------------------------------------------------------------------------
# 16. Removing noise from signals of both signs through a sigmoid at the output


@functools.cache
def noisy_signals(count=3600, length=48):
    g = seeded(121)
    t = torch.linspace(0, 1, length)[None]
    clean = torch.zeros(count, length)
    for _ in range(2):
        cycles = 1 + 3 * torch.rand(count, 1, generator=g)
        phase = 2 * math.pi * torch.rand(count, 1, generator=g)
        clean = clean + torch.sin(2 * math.pi * cycles * t + phase)
    clean = clean / clean.std()
    noisy = clean + 0.6 * torch.randn(count, length, generator=g)
    return (noisy / noisy.std())[:, None], clean[:, None]


class Denoiser(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 24, 9, padding=4), nn.SiLU(),
            nn.Conv1d(24, 24, 9, padding=4), nn.SiLU(),
            nn.Conv1d(24, 1, 9, padding=4),
            nn.Sigmoid() if broken else nn.Identity(),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        noisy, clean = batch
        loss = F.mse_loss(self(noisy), clean)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        noisy, clean = batch
        self.log("val_loss", F.mse_loss(self(noisy), clean))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-3)


def denoiser_sigmoid(broken):
    return Denoiser(broken), *loaders(*noisy_signals())


PAIRS = [
    pair(
        "ninth_waveform_softmax", waveform_softmax, "softmax_before_ce",
        trainer={"max_epochs": 10}, metric="val_acc",
        note="The network ends in a softmax and cross_entropy applies another.",
    ),
    pair(
        "ninth_friedman_broadcast", friedman_broadcast, "broadcast_mismatch",
        trainer={"max_epochs": 16}, metric="val_r2",
        note="Predictions of shape (N,) minus targets of shape (N, 1) give an N x N loss.",
    ),
    pair(
        "ninth_segmentation_view", segmentation_view, "dims_scrambled",
        trainer={"max_epochs": 12}, metric="val_iou",
        note="Scores (N, C, H, W) are flattened by view(-1, C), which mixes classes and pixels.",
    ),
    pair(
        "ninth_gesture_batch_first", gesture_batch_first, "dims_scrambled", "batch_leakage",
        trainer={"max_epochs": 14}, metric="val_acc",
        note="The LSTM lacks batch_first and so runs along the batch instead of along time.",
    ),
    pair(
        "ninth_autoencoder_zero_grad", autoencoder_zero_grad, "missing_zero_grad",
        trainer={"max_epochs": 30},
        note="Manual optimization steps without ever clearing the gradients.",
    ),
    pair(
        "ninth_ranking_no_grad", ranking_no_grad, "no_grad_flow", "weights_not_updating",
        trainer={"max_epochs": 10}, metric="val_pair_acc",
        note="The text encoder is called under no_grad, so its random embeddings never learn.",
    ),
    pair(
        "ninth_recommender_list", recommender_list,
        "params_not_in_optimizer", "weights_not_updating",
        trainer={"max_epochs": 12},
        note="The embedding tables are in a plain list and unknown to parameters().",
    ),
    pair(
        "ninth_language_no_mask", language_no_mask, "future_leakage",
        trainer={"max_epochs": 12}, metric="val_next_acc",
        note="Without a causal mask the model reads the token that it has to predict.",
    ),
    pair(
        "ninth_reviews_inverted_mask", reviews_inverted_mask, "input_ignored",
        trainer={"max_epochs": 9}, metric="val_acc",
        note="The padding mask is inverted: only padding is attended and pooled, no word.",
    ),
    pair(
        "ninth_terrain_backward", terrain_backward, "wrong_gradient",
        trainer={"max_epochs": 25},
        note="The hand-written sine returns sin instead of cos in its backward.",
    ),
    pair(
        "ninth_forecast_sign", forecast_sign, "loss_sign_flipped",
        trainer={"max_epochs": 15}, metric="val_mae",
        note="The log-likelihood is returned as the loss without its minus and is minimised.",
    ),
    pair(
        "ninth_failure_argmax", failure_argmax, "metric_wrong",
        trainer={"max_epochs": 34}, metric="val_acc",
        note="The accuracy takes the argmax over one logit, which is class 0 for all.",
    ),
    pair(
        "ninth_digits_sorted", digits_sorted, "unshuffled_data",
        trainer={"max_epochs": 24}, metric="val_acc",
        note="The training set is sorted by label and its loader does not shuffle.",
    ),
    pair(
        "ninth_boxes_interval", boxes_interval, "lr_decayed_too_fast",
        trainer={"max_epochs": 12}, metric="val_iou",
        note="A decay meant for every epoch is applied at every step, so learning soon stops.",
    ),
    pair(
        "ninth_mosaics_validation", mosaics_validation, "train_val_mismatch",
        trainer={"max_epochs": 16}, metric="val_f1",
        note="Training pictures are normalized, validation pictures only scaled to 0..1.",
    ),
    pair(
        "ninth_denoiser_sigmoid", denoiser_sigmoid, "output_range_mismatch",
        trainer={"max_epochs": 16},
        note="A sigmoid ends the denoiser although the clean signal has both signs and exceeds 1.",
    ),
]  # fmt: skip
