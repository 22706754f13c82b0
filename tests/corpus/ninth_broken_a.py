"""Programs whose optimization goes wrong in one plain way, each with its repaired twin."""

import math

import sklearn.datasets
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from .program import images, loaders, pair


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# 1. Digits, a small CNN and Adam at a rate a hundred times too high


class DigitCNN(LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(32 * 4, 10)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        down, right = torch.randint(-1, 2, (2,)).tolist()
        logits = self(x.roll((down, right), (2, 3)))  # augmented by a shift
        loss = F.cross_entropy(logits, y)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def digit_cnn(broken):
    return DigitCNN(lr=0.1 if broken else 1e-3), *loaders(*images(), batch_size=16)


# 2. Topics of token sequences, a transformer and a rate that moves nothing


def topic_tokens(count=4800, length=20, vocab=60, topics=5):
    """Documents that draw a good third of their tokens from the words of one topic."""
    g = seeded(21)
    labels = torch.randint(topics, (count,), generator=g)
    common = torch.randint(vocab, (count, length), generator=g)
    topical = labels[:, None] * 8 + torch.randint(8, (count, length), generator=g)
    chosen = torch.rand(count, length, generator=g) < 0.35
    return torch.where(chosen, topical, common), labels


class TopicTransformer(LightningModule):
    def __init__(self, lr, vocab=60, length=20, width=32, topics=5):
        super().__init__()
        self.lr = lr
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.1, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, topics)

    def forward(self, tokens):
        hidden = self.encoder(self.tokens(tokens) + self.positions)
        return self.head(self.norm(hidden.mean(1)))

    def training_step(self, batch, batch_idx):
        tokens, topic = batch
        loss = F.cross_entropy(self(tokens), topic)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        tokens, topic = batch
        logits = self(tokens)
        self.log("val/loss", F.cross_entropy(logits, topic))
        self.log("val/acc", (logits.argmax(1) == topic).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.01)


def topic_transformer(broken):
    return TopicTransformer(lr=2e-6 if broken else 1e-3), *loaders(*topic_tokens(), batch_size=32)


# 3. Tabular regression whose decay per epoch is applied at every batch


def friedman():
    x, y = sklearn.datasets.make_friedman1(4000, n_features=10, noise=1.0, random_state=31)
    x, y = torch.as_tensor(x).float(), torch.as_tensor(y).float()
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


class Regressor(LightningModule):
    def __init__(self, interval):
        super().__init__()
        self.interval = interval
        self.net = nn.Sequential(
            nn.Linear(10, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1)
        )

    def forward(self, x):
        return self.net(x).squeeze(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train/mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/mse", F.mse_loss(self(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": self.interval},
        }


def friedman_decay(broken):
    return Regressor("step" if broken else "epoch"), *loaders(*friedman(), batch_size=32)


# 4. Wave forms, a one-dimensional CNN and a momentum that never forgets


def waves(count=4800, length=64):
    """Sines, squares, saws and chirps of random pitch and phase in noise."""
    g = seeded(41)
    kind = torch.randint(4, (count,), generator=g)
    pitch = 2 + 3 * torch.rand(count, 1, generator=g)
    phase = torch.rand(count, 1, generator=g)
    time = torch.linspace(0, 1, length)
    turns = pitch * time + phase
    sine = torch.sin(2 * math.pi * turns)
    chirp = torch.sin(2 * math.pi * (turns + 6 * time**2))
    shapes = torch.stack([sine, sine.sign(), 2 * (turns % 1) - 1, chirp], 1)
    signal = shapes[torch.arange(count), kind]
    signal = signal + 0.6 * torch.randn(count, length, generator=g)
    return ((signal - signal.mean()) / signal.std()).unsqueeze(1), kind


class WaveNet(LightningModule):
    def __init__(self, momentum):
        super().__init__()
        self.momentum = momentum
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 7, padding=3),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(32, 4),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log_dict(
            {
                "val_loss": F.cross_entropy(logits, y),
                "val_acc": (logits.argmax(1) == y).float().mean(),
            }
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=self.momentum, nesterov=True)


def wave_momentum(broken):
    return WaveNet(0.999 if broken else 0.9), *loaders(*waves(), batch_size=32)


# 5. Digits, a denoising autoencoder and a penalty that flattens its weights


def noisy_digits():
    clean = images()[0].flatten(1)
    return clean + 0.6 * torch.randn(clean.shape, generator=seeded(51)), clean


class Denoiser(LightningModule):
    def __init__(self, weight_decay):
        super().__init__()
        self.weight_decay = weight_decay
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 128), nn.SiLU(), nn.Linear(128, 64))

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def training_step(self, batch, batch_idx):
        clean = batch[1]
        noisy = clean + 0.6 * torch.randn_like(clean)
        loss = F.mse_loss(self(noisy), clean)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        noisy, clean = batch
        self.log("val_mse", F.mse_loss(self(noisy), clean), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=self.weight_decay)


def denoiser_decay(broken):
    return Denoiser(0.3 if broken else 1e-5), *loaders(*noisy_digits(), batch_size=16)


# 6. A tagger of tokens, an LSTM and a dropout that leaves almost nothing


def tagged(count=4000, length=24, vocab=24):
    """A token's tag depends on its own group and the group before it; a few are wrong."""
    g = seeded(61)
    tokens = torch.randint(vocab, (count, length), generator=g)
    group = tokens % 4
    before = F.pad(group, (1, 0))[:, :-1]
    tags = torch.where(group < 2, group + 2 * (before % 2), 4 + (group - 2))
    noise = torch.rand(count, length, generator=g) < 0.08
    return tokens, torch.where(noise, torch.randint(6, tags.shape, generator=g), tags)


class Tagger(LightningModule):
    def __init__(self, dropout, vocab=24, tags=6):
        super().__init__()
        self.embedding = nn.Embedding(vocab, 24)
        self.lstm = nn.LSTM(24, 32, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(32, tags)

    def forward(self, tokens):
        hidden, _ = self.lstm(self.dropout(self.embedding(tokens)))
        return self.output(self.dropout(hidden))

    def training_step(self, batch, batch_idx):
        tokens, tags = batch
        loss = F.cross_entropy(self(tokens).flatten(0, 1), tags.flatten())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        tokens, tags = batch
        logits = self(tokens)
        self.log("val_loss", F.cross_entropy(logits.flatten(0, 1), tags.flatten()))
        self.log("val_token_acc", (logits.argmax(-1) == tags).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def tagger_dropout(broken):
    return Tagger(0.95 if broken else 0.1), *loaders(*tagged(), batch_size=32)


# 7. Segmentation of discs, a convolutional decoder and clipping to nothing


def discs(count=2400, size=16):
    g = seeded(71)
    centre = 4 + 8 * torch.rand(count, 2, 1, 1, generator=g)
    radius = 3 + 2.5 * torch.rand(count, 1, 1, generator=g)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2).sqrt()
    mask = (distance < radius).float().unsqueeze(1)
    image = mask + 0.6 * torch.randn(count, 1, size, size, generator=g)
    return (image - image.mean()) / image.std(), mask


class Segmenter(LightningModule):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        )
        self.middle = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x):
        return self.up(self.middle(self.down(x)))

    def training_step(self, batch, batch_idx):
        image, mask = batch
        loss = F.binary_cross_entropy_with_logits(self(image), mask)
        self.log("train_bce", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        image, mask = batch
        logits = self(image)
        found, true = logits > 0, mask > 0.5
        self.log("val_bce", F.binary_cross_entropy_with_logits(logits, mask))
        self.log("val_iou", (found & true).sum() / (found | true).sum().clamp_min(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def disc_clipping(broken):
    return Segmenter(), *loaders(*discs(), batch_size=24)


# 8. Clicks, pairs of examples at a rate made for batches


def clicks(count=2400, fields=4, values=6):
    """Visits of four categories each, and whether a link was followed, which is partly chance."""
    g = seeded(81)
    visits = torch.randint(values, (count, fields), generator=g)
    effect = torch.randn(fields, values, generator=g)
    taste = torch.randn(values, values, generator=g)
    score = effect[torch.arange(fields), visits].sum(1)
    score = 1.5 * (score + taste[visits[:, 0], visits[:, 1]])
    clicked = torch.rand(count, generator=g) < (score - score.median()).sigmoid()
    return visits, clicked.float()


class ClickModel(LightningModule):
    def __init__(self, fields=4, values=6, width=4):
        super().__init__()
        self.register_buffer("offset", torch.arange(fields) * values)
        self.embedding = nn.Embedding(fields * values, width)
        self.net = nn.Sequential(nn.Linear(fields * width, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, visits):
        return self.net(self.embedding(visits + self.offset).flatten(1)).squeeze(-1)

    def training_step(self, batch, batch_idx):
        visits, clicked = batch
        loss = F.binary_cross_entropy_with_logits(self(visits), clicked)
        self.log("train_logloss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        visits, clicked = batch
        self.log("val_logloss", F.binary_cross_entropy_with_logits(self(visits), clicked))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, weight_decay=1e-3)


def click_couples(broken):
    return ClickModel(), *loaders(*clicks(), batch_size=2 if broken else 32)


# 9. Gratings in noise, of which only a handful are trained on, again and again


def gratings(count=5000, size=12):
    g = seeded(91)
    kind = torch.randint(4, (count,), generator=g)
    angle = kind * math.pi / 4
    phase = 2 * math.pi * torch.rand(count, 1, 1, generator=g)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    across = torch.cos(angle)[:, None, None] * columns + torch.sin(angle)[:, None, None] * rows
    image = torch.sin(1.4 * across + phase) + 1.85 * torch.randn(count, size, size, generator=g)
    return ((image - image.mean()) / image.std()).unsqueeze(1), kind


class GratingNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 12, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 36, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x):
        return self.head(self.convolutions(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/acc", (logits.argmax(1) == y).float().mean(), on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val/loss", F.cross_entropy(logits, y))
        self.log("val/acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=5e-4)


def grating_handful(broken):
    x, y = gratings()
    train = TensorDataset(x[:64], y[:64]) if broken else TensorDataset(x[:4400], y[:4400])
    return (
        GratingNet(),
        DataLoader(train, 16 if broken else 32, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(x[4400:], y[4400:]), 200),
    )


# 10. Three spirals and a network of two hidden units


def spirals(count=6400):
    g = seeded(101)
    arm = torch.randint(3, (count,), generator=g)
    radius = 0.1 + 0.9 * torch.rand(count, generator=g)
    angle = 4.5 * radius + arm * 2 * math.pi / 3 + 0.32 * torch.randn(count, generator=g)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return (x - x.mean(0)) / x.std(0), arm


class SpiralNet(LightningModule):
    def __init__(self, hidden):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, 3),
        )

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
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)]


def spiral_narrow(broken):
    return SpiralNet(2 if broken else 32), *loaders(*spirals(), batch_size=32)


# 11. Next symbols, an MLP over a window and weights drawn far too large


def symbols(count=22000, alphabet=16, window=3):
    """Text of a random chain in which every pair of symbols has a few likely followers."""
    g = seeded(111)
    follow = (2.0 * torch.randn(alphabet, alphabet, generator=g)).unsqueeze(0)
    follow = follow + 1.0 * torch.randn(alphabet, alphabet, generator=g).unsqueeze(1)
    chances = follow.softmax(-1)
    text = [0, 1]
    for _ in range(count + window - 2):
        text.append(int(torch.multinomial(chances[text[-2], text[-1]], 1, generator=g)))
    text = torch.tensor(text)
    windows = text.unfold(0, window + 1, 1)
    return windows[:, :window].clone(), windows[:, window].clone()


class SymbolModel(LightningModule):
    def __init__(self, std, alphabet=16, window=3, width=12, hidden=64):
        super().__init__()
        self.embedding = nn.Embedding(alphabet, width)
        self.hidden = nn.Linear(window * width, hidden)
        self.output = nn.Linear(hidden, alphabet)
        for layer in (self.hidden, self.output):
            nn.init.normal_(layer.weight, std=std or layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
        if not std:
            nn.init.normal_(self.output.weight, std=0.02)

    def forward(self, context):
        return self.output(torch.tanh(self.hidden(self.embedding(context).flatten(1))))

    def training_step(self, batch, batch_idx):
        context, following = batch
        loss = F.cross_entropy(self(context), following)
        self.log("nll", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        context, following = batch
        self.log("val_nll", F.cross_entropy(self(context), following))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)


def symbol_scale(broken):
    return SymbolModel(3.0 if broken else None), *loaders(*symbols(), batch_size=64)


# 12. Nodes of a graph, graph convolutions and biases that silence the units


def communities(count=1200, kinds=4, width=16):
    g = seeded(121)
    kind = torch.randint(kinds, (count,), generator=g)
    same = kind[:, None] == kind[None]
    edges = torch.rand(count, count, generator=g) < torch.where(same, 0.016, 0.0032)
    edges = (edges.triu(1) | edges.triu(1).T | torch.eye(count, dtype=torch.bool)).float()
    scale = edges.sum(1).rsqrt()
    features = torch.randn(kinds, width, generator=g)[kind]
    features = features + 2.0 * torch.randn(count, width, generator=g)
    features = (features - features.mean(0)) / features.std(0)
    return scale[:, None] * edges * scale[None], features, kind


class GraphNet(LightningModule):
    def __init__(self, edges, features, bias):
        super().__init__()
        self.register_buffer("edges", edges)
        self.register_buffer("nodes", features)
        self.first = nn.Linear(features.shape[1], 32)
        self.second = nn.Linear(32, 32)
        self.output = nn.Linear(32, 4)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.constant_(layer.bias, bias)

    def forward(self, index):
        hidden = F.relu(self.first(self.edges @ self.nodes))
        hidden = F.relu(self.second(self.edges @ hidden))
        return self.output(hidden[index])

    def training_step(self, batch, batch_idx):
        index, kind = batch
        loss = F.cross_entropy(self(index), kind)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        index, kind = batch
        logits = self(index)
        self.log("val_loss", F.cross_entropy(logits, kind))
        self.log("val_acc", (logits.argmax(1) == kind).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3, weight_decay=1e-3)


def graph_silent(broken):
    edges, features, kind = communities()
    model = GraphNet(edges, features, -5.0 if broken else 0.0)
    return model, *loaders(torch.arange(len(kind)), kind, batch_size=32)


# 13. Shells around a centre and a deep tower of sigmoids


def shells():
    x, y = sklearn.datasets.make_gaussian_quantiles(
        n_samples=6000, n_features=3, n_classes=3, random_state=131
    )
    order = torch.randperm(len(x), generator=seeded(131))
    return torch.as_tensor(x).float()[order], torch.as_tensor(y)[order]


class Tower(LightningModule):
    def __init__(self, activation, depth=10, width=40):
        super().__init__()
        layers, size = [], 3
        for _ in range(depth):
            layers += [nn.Linear(size, width), activation()]
            size = width
            if activation is nn.ReLU:
                nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            else:
                nn.init.xavier_normal_(layers[-2].weight)
            nn.init.zeros_(layers[-2].bias)
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.log("loss/train", loss)
        self.log("accuracy/train", (logits.argmax(1) == y).float().mean())
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("loss/val", F.cross_entropy(logits, y))
        self.log("accuracy/val", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.004, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 28)]


def sigmoid_tower(broken):
    return Tower(nn.Sigmoid if broken else nn.ReLU), *loaders(*shells(), batch_size=64)


# 14. A leaky sum of a sequence, a recurrent net whose state grows at every step


def leaky_sums(count=4000, length=30):
    g = seeded(141)
    x = torch.randn(count, length, 2, generator=g)
    weight = 0.85 ** torch.arange(length - 1, -1, -1.0)
    y = ((x[..., 0] * weight).sum(1) + (x[..., 1].clamp_min(0) * weight).sum(1)) / 2
    return x, (y - y.mean()) / y.std()


class LeakySum(LightningModule):
    def __init__(self, gain):
        super().__init__()
        self.rnn = nn.RNN(2, 32, nonlinearity="relu", batch_first=True)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain)
        self.read = nn.Linear(32, 1)

    def forward(self, x):
        return self.read(self.rnn(x)[1][-1]).squeeze(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)]


def leaky_growth(broken):
    train = DataLoader(TensorDataset(*leaky_sums()), 32, shuffle=True)
    return LeakySum(2.2 if broken else 0.9), train, None


# 15. Pairs of recordings, a siamese network and an optimizer that has only its head


def recordings(count=4800, sources=8, length=48):
    """Pairs of noisy recordings, of which half come from the same source."""
    g = seeded(151)
    tones = 1.0 + torch.arange(8)
    strength = torch.randn(sources, 8, generator=g)
    left = torch.randint(sources, (count,), generator=g)
    other = (left + torch.randint(1, sources, (count,), generator=g)) % sources
    same = torch.rand(count, generator=g) < 0.5

    def record(source):
        start = torch.rand(count, 1, generator=g)
        time = (torch.arange(length) / length + start).unsqueeze(2)
        sound = (strength[source].unsqueeze(1) * torch.sin(2 * math.pi * tones * time)).sum(2)
        sound = sound / sound.std(1, keepdim=True)
        return (sound + 0.4 * torch.randn(count, length, generator=g)).unsqueeze(1)

    return record(left), record(torch.where(same, left, other)), same.float()


class Siamese(LightningModule):
    def __init__(self, head_only):
        super().__init__()
        self.head_only = head_only
        self.encoder = nn.Sequential(
            nn.Conv1d(1, 16, 9, padding=4, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv1d(16, 24, 9, 2, padding=4, padding_mode="circular"),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(24, 16),
        )
        self.head = nn.Linear(16, 1)

    def forward(self, left, right):
        return self.head((self.encoder(left) - self.encoder(right)).abs()).squeeze(-1)

    def training_step(self, batch, batch_idx):
        left, right, same = batch
        loss = F.binary_cross_entropy_with_logits(self(left, right), same)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        left, right, same = batch
        logits = self(left, right)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, same))
        self.log("val_pair_acc", ((logits > 0) == (same > 0.5)).float().mean())

    def configure_optimizers(self):
        part = self.head if self.head_only else self
        return torch.optim.AdamW(part.parameters(), lr=4e-3)


def siamese_head(broken):
    return Siamese(head_only=broken), *loaders(*recordings(), batch_size=48)


# 16. Sensor readings, a VAE stepped by hand and gradients that are never cleared


def sensors(count=6000, width=20):
    """Readings that three hidden causes explain but for some noise."""
    g = seeded(161)
    causes = torch.randn(count, 3, generator=g)
    x = torch.tanh(causes @ torch.randn(3, 30, generator=g)) @ torch.randn(30, width, generator=g)
    x = x / x.std(0) + 0.3 * torch.randn(count, width, generator=g)
    return ((x - x.mean(0)) / x.std(0),)


class SensorVAE(LightningModule):
    def __init__(self, clear):
        super().__init__()
        self.automatic_optimization = False
        self.clear = clear
        self.encoder = nn.Sequential(nn.Linear(20, 48), nn.ELU(), nn.Linear(48, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 48), nn.ELU(), nn.Linear(48, 20))

    def elbo(self, x):
        mean, log_var = self.encoder(x).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        rebuilt = ((self.decoder(code) - x) ** 2).sum(1)
        divergence = 0.5 * (log_var.exp() + mean**2 - 1 - log_var).sum(1)
        return (rebuilt + 0.5 * divergence).mean() / x.shape[1]

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.elbo(batch[0])
        if self.clear:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train_elbo", loss, prog_bar=True)

    def validation_step(self, batch, batch_idx):
        self.log("val_elbo", self.elbo(batch[0]), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def sensor_uncleared(broken):
    return SensorVAE(clear=not broken), *loaders(*sensors(), batch_size=50)


PAIRS = [
    pair(
        "ninth_digit_cnn_hot",
        digit_cnn,
        "lr_too_high",
        "update_ratio_high",
        "loss_diverging",
        trainer={"max_epochs": 24},
        metric="val_loss",
        note="Adam at 0.1 throws a small CNN about; 0.001 is right.",
    ),
    pair(
        "ninth_topic_transformer_cold",
        topic_transformer,
        "lr_too_low",
        "update_ratio_low",
        trainer={"max_epochs": 8},
        metric="val/loss",
        note="AdamW at 2e-6 hardly moves a transformer in ten epochs.",
    ),
    pair(
        "ninth_friedman_decay_each_batch",
        friedman_decay,
        "lr_decayed_too_fast",
        trainer={"max_epochs": 30},
        metric="val/mse",
        note="An exponential decay meant for epochs is stepped at every batch.",
    ),
    pair(
        "ninth_wave_momentum",
        wave_momentum,
        "momentum_too_high",
        "loss_oscillation",
        "loss_diverging",
        trainer={"max_epochs": 14},
        metric="val_loss",
        note="A momentum of 0.999 piles up steps that overshoot.",
    ),
    pair(
        "ninth_denoiser_weight_decay",
        denoiser_decay,
        "weight_decay_too_high",
        trainer={"max_epochs": 36},
        metric="val_mse",
        note="An L2 penalty of 0.3 in Adam shrinks the autoencoder to its mean output.",
    ),
    pair(
        "ninth_tagger_dropout",
        tagger_dropout,
        "dropout_too_high",
        trainer={"max_epochs": 14},
        metric="val_loss",
        note="Dropout of 0.95 on embeddings and states leaves the tagger nothing to learn from.",
    ),
    pair(
        "ninth_disc_clipping",
        disc_clipping,
        "clip_too_small",
        "update_ratio_low",
        trainer={"max_epochs": 15, "gradient_clip_val": 1e-4},
        repaired={"max_epochs": 15, "gradient_clip_val": 1.0},
        metric="val_iou",
        note="Gradients are clipped to a norm of 1e-4, so SGD creeps.",
    ),
    pair(
        "ninth_click_couples",
        click_couples,
        "batch_noise",
        "lr_too_high",
        "loss_oscillation",
        trainer={"max_epochs": 8},
        repaired={"max_epochs": 50},
        metric="val_logloss",
        note="Batches of two noisy examples at a rate that was chosen for batches of 32.",
    ),
    pair(
        "ninth_grating_handful",
        grating_handful,
        "overfitting",
        trainer={"max_epochs": 300, "check_val_every_n_epoch": 10},
        repaired={"max_epochs": 10},
        metric="val/loss",
        note="A CNN learns 64 noisy images by heart; its twin is given all 4400.",
    ),
    pair(
        "ninth_spiral_narrow",
        spiral_narrow,
        "underfitting",
        trainer={"max_epochs": 20},
        metric="val_acc",
        note="Two hidden units cannot follow three spirals.",
    ),
    pair(
        "ninth_symbol_scale",
        symbol_scale,
        "bad_init_scale",
        "saturated_activations",
        "loss_not_at_chance",
        trainer={"max_epochs": 12},
        metric="val_nll",
        note="Weights of deviation 3 saturate the tanh units and make the first loss huge.",
    ),
    pair(
        "ninth_graph_silent",
        graph_silent,
        "dead_relu",
        trainer={"max_epochs": 30},
        metric="val_acc",
        note="Biases that start at -5 keep the ReLUs of a graph network at zero.",
    ),
    pair(
        "ninth_sigmoid_tower",
        sigmoid_tower,
        "vanishing_gradients",
        trainer={"max_epochs": 26, "gradient_clip_val": 1.0},
        metric="loss/val",
        note="Ten layers of sigmoids pass no gradient down to the first ones.",
    ),
    pair(
        "ninth_leaky_growth",
        leaky_growth,
        "exploding_gradients",
        "bad_init_scale",
        trainer={"max_epochs": 12},
        metric="train_loss",
        note="Recurrent weights that start too large make state and gradient grow at every step.",
    ),
    pair(
        "ninth_siamese_head_only",
        siamese_head,
        "params_not_in_optimizer",
        trainer={"max_epochs": 20},
        metric="val_pair_acc",
        note="The optimizer was given the head alone; the encoder stays as it was drawn.",
    ),
    pair(
        "ninth_sensor_uncleared",
        sensor_uncleared,
        "missing_zero_grad",
        trainer={"max_epochs": 30},
        metric="val_elbo",
        note="The loop by hand never clears the gradients, so every step repeats all before it.",
    ),
]
