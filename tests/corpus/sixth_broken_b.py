"""Broken programs about layers, initial weights, activations and parameters that do not train."""

import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.program import bundled, images, loaders, pair, standardized


def fit(epochs, metric="val_loss"):
    return {"trainer": {"max_epochs": epochs, "check_val_every_n_epoch": 1}, "metric": metric}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Fitted(LightningModule):
    """What the models of one person share."""

    names = ("{}_loss", "{}_acc")
    loss = staticmethod(F.cross_entropy)

    def forward(self, x):
        return self.net(x)

    def step(self, batch, stage):
        *x, y = batch
        out = self(*x)
        loss = self.loss(out, y)
        self.log(self.names[0].format(stage), loss)
        for name in self.names[1:]:
            self.log(name.format(stage), (out.argmax(1) == y).float().mean())
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def rare(logits, y):
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(y, 10).float())


class Tagger(Fitted):
    """Ten sigmoid outputs for the digits, with the prior of rare labels in the bias."""

    loss = staticmethod(rare)
    optimizer = staticmethod(lambda params: torch.optim.Adam(params, 2e-3))

    def __init__(self, everywhere):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(512, 64), nn.ReLU()),
        )
        self.logits = nn.Linear(64, 10)
        for layer in self.modules() if everywhere else [self.logits]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.constant_(layer.bias, -math.log((1 - 0.01) / 0.01))

    def forward(self, x):
        return self.logits(self.body(x))


class Patches(Fitted):
    """A small vision transformer with its own attention."""

    names = ("{}/loss", "{}/acc")
    optimizer = staticmethod(lambda params: torch.optim.AdamW(params, 2e-3, weight_decay=0.1))

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.embed = nn.Linear(4, 48)
        self.place = nn.Parameter(0.5 * torch.randn(16, 48))
        self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(48, 144) for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48)) for _ in range(2)
        )
        self.attention = nn.Softmax(-1)
        self.out = nn.Linear(48, 10)

    def forward(self, x):
        h = self.embed(F.unfold(x, 2, stride=2).transpose(1, 2)) + self.place
        for i in range(2):
            q, k, v = self.qkv[i](self.norms[2 * i](h)).chunk(3, -1)
            scores = q @ k.transpose(1, 2) * self.scale
            h = h + self.attention(scores) @ v
            h = h + self.mlps[i](self.norms[2 * i + 1](h))
        return self.out(h.mean(1))


class Tower(Fitted):
    """Twenty narrow layers over the pixels of a digit."""

    names = ("{}_loss",)
    optimizer = staticmethod(lambda params: torch.optim.SGD(params, 0.01, momentum=0.9))

    def __init__(self, skip, width=48, depth=20):
        super().__init__()
        self.skip = skip
        self.first = nn.Linear(64, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, 10)

    def forward(self, x):
        x = F.gelu(self.first(x.flatten(1)))
        for layer in self.layers:
            x = x + F.gelu(layer(x)) if self.skip else F.gelu(layer(x))
        return self.last(x)


class Scanner(Fitted):
    """A rectified Elman network over the pixels of a digit, four at a time."""

    optimizer = staticmethod(lambda params: torch.optim.Adam(params, 2e-3))

    def __init__(self, random):
        super().__init__()
        self.rnn = nn.RNN(4, 64, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(64, 10)
        hidden = self.rnn.weight_hh_l0
        nn.init.normal_(hidden, std=0.4) if random else nn.init.eye_(hidden)
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.1)

    def forward(self, x):
        return self.head(self.rnn(x.reshape(len(x), 16, 4))[1][-1])


class Letters(Fitted):
    """Predicts the next letter from three; the output layer shares the embedding's weights."""

    names = ("{}_nll",)
    optimizer = staticmethod(lambda params: torch.optim.AdamW(params, 1e-3))

    def __init__(self, narrow, letters=40, width=160):
        super().__init__()
        self.table = nn.Embedding(letters, width)
        if narrow:
            nn.init.normal_(self.table.weight, std=0.05)
        self.mix = nn.Sequential(nn.Linear(3 * width, 128), nn.GELU(), nn.Linear(128, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, context):
        return self.norm(self.mix(self.table(context).flatten(1))) @ self.table.weight.T


def text(letters=40, length=24000):
    g = seeded(5)
    one = 2.5 * torch.randn(letters, letters, generator=g)
    two = 1.5 * torch.randn(letters, letters, generator=g)
    dice = torch.rand(length, generator=g)
    tokens = [0, 1, 2]
    for d in dice:
        odds = (one[tokens[-1]] + two[tokens[-2]]).softmax(0).cumsum(0)
        tokens.append(min(int((odds < d).sum()), letters - 1))
    tokens = torch.tensor(tokens)
    return tokens.unfold(0, 3, 1)[:-1], tokens[3:]


class Ratings(Fitted):
    """Users times items, with a bias for each."""

    names = ("mse/{}",)
    loss = staticmethod(F.mse_loss)
    optimizer = staticmethod(lambda params: torch.optim.Adam(params, 0.02))

    def __init__(self, blank, users=120, items=80, rank=3):
        super().__init__()
        self.users = nn.Embedding(users, rank)
        self.items = nn.Embedding(items, rank)
        self.user_bias = nn.Embedding(users, 1)
        self.item_bias = nn.Embedding(items, 1)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)
        for table in (self.users, self.items):
            nn.init.zeros_(table.weight) if blank else nn.init.normal_(table.weight, std=0.3)

    def forward(self, u, i):
        dot = (self.users(u) * self.items(i)).sum(1)
        return dot + self.user_bias(u)[:, 0] + self.item_bias(i)[:, 0]


def ratings(users=120, items=80):
    g = seeded(8)
    p, q = (torch.randn(n, 3, generator=g) for n in (users, items))
    a, b = (0.5 * torch.randn(n, 1, generator=g) for n in (users, items))
    pick = torch.randperm(users * items, generator=g)[:8000]
    u, i = pick // items, pick % items
    table = p @ q.T / 1.5 + a + b.T + 0.3 * torch.randn(users, items, generator=g)
    return u, i, table[u, i]


class Phrases(Fitted):
    """A GRU over tokens and a small classifier on its last state."""

    optimizer = staticmethod(lambda params: torch.optim.Adam(params, 3e-3))

    def __init__(self, cached):
        super().__init__()
        self.cached = cached
        self.tokens = nn.Embedding(30, 24)
        self.gru = nn.GRU(24, 32, batch_first=True)
        self.classifier = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x):
        with torch.set_grad_enabled(not self.cached and self.training):
            state = self.gru(self.tokens(x))[1][-1]
        return self.classifier(state)


def phrases():
    g = seeded(11)
    x = torch.randint(0, 30, (4800, 8), generator=g)
    worth = torch.randn(30, generator=g)
    total = worth[x].sum(1)
    return x, torch.bucketize(total, total.quantile(torch.tensor([1 / 3, 2 / 3])))


class Codec(LightningModule):
    """An autoencoder of the digits with eight numbers in the middle."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 96), nn.ReLU(), nn.Linear(96, 64))

    def error(self, batch):
        x = batch[0].flatten(1)
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def training_step(self, batch, batch_idx):
        error = self.error(batch)
        self.log("train_mse", error, on_step=True, on_epoch=False)
        return error

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", self.error(batch))

    def configure_optimizers(self):
        params = self.decoder.parameters() if self.part else self.parameters()
        return torch.optim.Adam(params, lr=3e-3)


class Cells(Fitted):
    """Benign or malignant, from thirty measurements of cell nuclei."""

    names = ("loss/{}", "{}_acc")
    optimizer = staticmethod(lambda params: torch.optim.SGD(params, 0.05, momentum=0.9))

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 2)
        )


class Sounds(Fitted):
    """Mean and deviation of convolved signals over time, then a classifier."""

    names = ("{}_loss",)
    optimizer = staticmethod(lambda params: torch.optim.Adam(params, 3e-3))

    def __init__(self, floor):
        super().__init__()
        self.floor = floor
        self.conv = nn.Sequential(nn.Conv1d(1, 16, 9), nn.ReLU(), nn.Conv1d(16, 16, 9), nn.ReLU())
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        h = self.conv(x)
        spread = (h.var(2, correction=0) + self.floor).sqrt()
        return self.fc(torch.cat([h.mean(2), spread], 1))


def sounds():
    g = seeded(21)
    label = torch.randint(0, 4, (4800,), generator=g)
    pitch = 0.25 * (label + 1) + 0.05 * torch.randn(4800, generator=g)
    phase = 6.28 * torch.rand(4800, generator=g)
    x = (torch.arange(64) * pitch[:, None] + phase[:, None]).sin()
    x = x + 0.3 * torch.randn(4800, 64, generator=g)
    x[700] = 0.0
    return x[:, None], label


class Field(Fitted):
    """A picture as a function of its coordinates."""

    names = ("{}/mse",)
    loss = staticmethod(lambda out, z: F.mse_loss(out[:, 0], z))
    optimizer = staticmethod(lambda params: torch.optim.Adam(params, 2e-3))

    def __init__(self, between, width=64):
        super().__init__()
        layers = []
        for a, b in itertools.pairwise((2, width, width, width)):
            layers += [nn.Linear(a, b), *(kind() for kind in between)]
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))


def field():
    g = seeded(31)
    xy = 2 * torch.rand(4000, 2, generator=g) - 1
    z = (3 * xy[:, 0]).sin() * (2.5 * xy[:, 1]).cos() + 0.5 * (xy.norm(dim=1) < 0.6)
    return xy, z + 0.05 * torch.randn(4000, generator=g)


class Gratings(Fitted):
    """Which way the stripes run, from a few large filters."""

    optimizer = staticmethod(lambda params: torch.optim.SGD(params, 0.03, momentum=0.9))

    def __init__(self, plain):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 9, stride=3)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
        if plain:
            nn.init.normal_(self.stem.weight)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x)))


def gratings(count=2000):
    g = seeded(41)
    y = torch.randint(0, 8, (count,), generator=g)
    angle = (y * math.pi / 8)[:, None, None]
    row, column = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    phase = 6.28 * torch.rand(count, 1, 1, generator=g)
    x = (0.8 * (angle.cos() * row + angle.sin() * column) + phase).sin()
    return (x + 2.5 * torch.randn(x.shape, generator=g))[:, None], y


class Normed(Fitted):
    """A deep convolutional network with batch normalization."""

    optimizer = staticmethod(lambda params: torch.optim.SGD(params, 0.05, momentum=0.9))

    def __init__(self, helper):
        super().__init__()
        self.helper = helper
        self.net = nn.Sequential()
        for a, b in itertools.pairwise([1] + 8 * [12]):
            convolution = nn.Conv2d(a, b, 3, padding=1, bias=False)
            self.net.extend([convolution, nn.BatchNorm2d(b), nn.ReLU()])
        self.fc = nn.Linear(12 * 16, 10)

    def forward(self, x):
        if self.helper:
            self.eval()
        return self.fc(F.max_pool2d(self.net(x), 2).flatten(1))


PAIRS = [
    pair(
        "sixth_prior_bias",
        lambda broken: (Tagger(broken), *loaders(*images())),
        *("dead_relu", "bad_init_scale"),
        **fit(15, "val_acc"),
    ),
    pair(
        "sixth_patches",
        lambda broken: (Patches(48**0.5 if broken else 48**-0.5), *loaders(*images())),
        "saturated_activations",
        **fit(15, "val/loss"),
    ),
    pair(
        "sixth_tower",
        lambda broken: (Tower(not broken), *loaders(*images())),
        "vanishing_gradients",
        **fit(15),
    ),
    pair(
        "sixth_scanner",
        lambda broken: (Scanner(broken), *loaders(*images())),
        *("exploding_gradients", "bad_init_scale", "loss_not_at_chance"),
        **fit(20, "val_acc"),
    ),
    pair(
        "sixth_letters",
        lambda broken: (Letters(not broken), *loaders(*text(), batch_size=64)),
        *("loss_not_at_chance", "bad_init_scale"),
        **fit(5, "val_nll"),
    ),
    pair(
        "sixth_ratings",
        lambda broken: (Ratings(broken), *loaders(*ratings(), batch_size=100)),
        *("zero_init", "weights_not_updating"),
        **fit(15, "mse/val"),
    ),
    pair(
        "sixth_phrases",
        lambda broken: (Phrases(broken), *loaders(*phrases())),
        "weights_not_updating",
        **fit(7, "val_acc"),
    ),
    pair(
        "sixth_codec",
        lambda broken: (Codec(broken), *loaders(*images())),
        *("params_not_in_optimizer", "weights_not_updating"),
        **fit(20, "val_mse"),
    ),
    pair(
        "sixth_cells",
        lambda raw: (Cells(), *loaders(*(bundled if raw else standardized)("breast_cancer"))),
        *("unnormalized_input", "saturated_activations"),
        **fit(16, "val_acc"),
    ),
    pair(
        "sixth_sounds",
        lambda broken: (Sounds(0.0 if broken else 1e-5), *loaders(*sounds())),
        "non_finite",
        **fit(5),
    ),
    pair(
        "sixth_field",
        lambda broken: (Field(() if broken else (nn.Tanh,)), *loaders(*field())),
        *("missing_nonlinearity", "underfitting"),
        **fit(15, "val/mse"),
    ),
    pair(
        "sixth_gratings",
        lambda broken: (Gratings(broken), *loaders(*gratings())),
        *("noisy_filters", "bad_init_scale", "update_ratio_low"),
        **fit(15, "val_acc"),
    ),
    pair(
        "sixth_normed",
        lambda broken: (Normed(broken), *loaders(*images())),
        "eval_mode_in_training",
        **fit(10, "val_acc"),
    ),
]
