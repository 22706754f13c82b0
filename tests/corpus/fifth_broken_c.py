"""Whole programs with one fault in code or data and their repaired twins, a fifth set, next."""

import collections
import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

from tests.corpus.program import bundled, images, loaders, pair


def rng(seed):
    return torch.Generator().manual_seed(seed)


class Classifier(LightningModule):
    """Any network that gives logits, with Adam."""

    def __init__(self, net, lr):
        super().__init__()
        self.net, self.lr = net, lr

    def forward(self, *inputs):
        return self.net(*inputs)

    def evaluate(self, batch, stage):
        *inputs, label = batch
        logits = self(*inputs)
        self.log(f"{stage}_loss", F.cross_entropy(logits, label), batch_size=len(label))
        self.log(f"{stage}_acc", (logits.argmax(-1) == label).float().mean(), batch_size=len(label))
        return F.cross_entropy(logits, label)

    def training_step(self, batch, batch_idx):
        return self.evaluate(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.evaluate(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def convolutional(classes=10):
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(96, classes)),
    )


def scanned(broken):
    """Which digit, from pixels that were kept as bytes."""
    pixels, labels = bundled("digits")
    rows = list(zip((15 * pixels).byte().view(-1, 1, 8, 8), labels, strict=True))

    def collate(rows):
        x = torch.stack([picture for picture, _ in rows])
        x = x // 255 if broken else x / 255
        return x.float(), torch.stack([label for _, label in rows])

    train = DataLoader(rows[:1350], 32, shuffle=True, collate_fn=collate)
    return Classifier(convolutional(), 4e-3), train, DataLoader(rows[1350:], 99, collate_fn=collate)


class Forecast(LightningModule):
    """The next temperature from a day and a half of a station's readings."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.gru = nn.GRU(channels, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, 1)
        self.loss = nn.MSELoss()

    def forward(self, window):
        states, _ = self.gru(window)
        return self.readout(states[:, -1]).squeeze(-1)

    def training_step(self, batch, batch_idx):
        loss = self.loss(self(batch["window"]), batch["next"])
        self.log("train_mse", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self(batch["window"]), batch["next"]))

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=2e-3)


def station(broken):
    hours = torch.arange(1700.0)
    noise = torch.randn(3, 1700, generator=rng(1))
    drift = torch.sin(hours / 37) + 0.5 * torch.sin(hours / 11)
    temperature = 285 + 6 * torch.sin(hours / 24 * 2 * math.pi) + 4 * drift + 0.5 * noise[0]
    pressure = 101325 - 600 * drift + 40 * noise[1]
    humidity = 60 - 2 * (temperature - 285) + 3 * noise[2]
    readings = torch.stack([temperature, pressure, humidity], 1)
    scaled = (readings - readings.mean(0)) / readings.std(0)
    source = readings if broken else scaled
    rows = [{"window": source[t : t + 18], "next": scaled[t + 18, 0]} for t in range(1600)]
    return Forecast(3, 24), DataLoader(rows[:1200], 32, shuffle=True), DataLoader(rows[1200:], 200)


def export():
    """What the laboratory sends: ten measurements and the yield; a few cells are blank."""
    x = torch.randn(1200, 10, generator=rng(2))
    target = torch.tanh(x[:, :3].sum(1)) + 0.5 * x[:, 3] * x[:, 4]
    blank = (torch.rand(1200, generator=rng(3)) < 0.01).tolist()
    lines = []
    for row, y, missing in zip(x.tolist(), target.tolist(), blank, strict=True):
        cells = [f"{value:.4f}" for value in row]
        cells[6] = "" if missing else cells[6]
        lines.append(",".join([*cells, f"{y:.4f}"]))
    return "\n".join(lines)


class Yield(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(10, 40), nn.Linear(40, 40), nn.Linear(40, 1)])

    def forward(self, x):
        *hidden, last = self.layers
        for layer in hidden:
            x = F.elu(layer(x))
        return last(x)[:, 0]

    def training_step(self, batch, batch_idx):
        return F.l1_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 8, 0.3)]


def laboratory(broken):
    table = np.genfromtxt(io.StringIO(export()), delimiter=",", dtype="float32")
    if not broken:
        table = np.where(np.isnan(table), np.nanmedian(table, 0), table)
    table = torch.from_numpy(table)
    return Yield(), *loaders(table[:, :10], table[:, 10])


def reviews(count):
    """Short texts on one of four themes, most of whose words are of no theme."""
    draw = rng(4)
    texts = []
    for _ in range(count):
        theme = int(torch.randint(0, 4, (1,), generator=draw))
        of_theme = torch.rand(12, generator=draw) < 0.35
        word = torch.randint(0, 30, (12,), generator=draw)
        words = (f"w{theme}_{w}" if t else f"the_{w}" for t, w in zip(of_theme, word, strict=True))
        texts.append((" ".join(words), theme))
    return texts


def vocabulary(texts):
    counts = collections.Counter(word for text, _ in texts for word in text.split())
    return {word: k for k, (word, _) in enumerate(counts.most_common(), start=1)}


class Bag(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.bag = nn.EmbeddingBag(words, 24, mode="mean")
        self.mlp = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, tokens, starts):
        return self.mlp(self.bag(tokens, starts))


def text_loader(texts, vocab, **options):
    def collate(rows):
        ids = [[vocab.get(word, 0) for word in text.split()] for text, _ in rows]
        starts = torch.tensor([0, *map(len, ids[:-1])]).cumsum(0)
        return (
            torch.tensor([word for text in ids for word in text]),
            starts,
            torch.tensor([theme for _, theme in rows]),
        )

    return DataLoader(texts, collate_fn=collate, **options)


def themes(broken):
    texts = reviews(1600)
    train, val = texts[:1200], texts[1200:]
    known = vocabulary(train)
    val_vocab = vocabulary(val) if broken else known
    return (
        Classifier(Bag(200), 6e-3),
        text_loader(train, known, batch_size=32, shuffle=True),
        text_loader(val, val_vocab, batch_size=200),
    )


class Fraud(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def on_validation_epoch_start(self):
        self.hits, self.totals = torch.zeros(2), torch.zeros(2)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.model(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.hits += torch.bincount(y[logits.argmax(1) == y], minlength=2)
        self.totals += torch.bincount(y, minlength=2)

    def on_validation_epoch_end(self):
        self.log("val_balanced_acc", (self.hits / self.totals).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3, weight_decay=1e-3)


def fraud(broken):
    y = (torch.rand(3200, generator=rng(5)) < 0.03).long()
    x = torch.randn(3200, 8, generator=rng(6)) + 0.5 * y[:, None]
    train, val = loaders(x, y, batch_size=64, val_batch_size=400)
    if not broken:
        labels = y[:2400]
        sampler = WeightedRandomSampler((1 / torch.bincount(labels))[labels], 2400)
        train = DataLoader(train.dataset, 64, sampler=sampler)
    return Fraud(), train, val


def folders(broken):
    """Digits as they lie on the disk, one folder for each."""
    pictures, labels = images()
    data = TensorDataset(pictures, labels)
    listing = [k for digit in range(10) for k in range(1350) if labels[k] == digit]
    train = DataLoader(Subset(data, listing), 32, shuffle=not broken)
    val = DataLoader(Subset(data, range(1350, len(labels))), 128)
    return Classifier(convolutional(), 2e-3), train, val


class SmallGPT(LightningModule):
    """A language model of sequences whose every symbol follows from the two before it."""

    def __init__(self, symbols, width, causal):
        super().__init__()
        self.tok, self.pos = nn.Embedding(symbols, width), nn.Embedding(16, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.lm_head = nn.Linear(width, symbols)
        self.causal = causal

    def forward(self, tokens):
        length = tokens.shape[1]
        h = self.tok(tokens) + self.pos.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        return self.lm_head(self.blocks(h, mask=mask, is_causal=self.causal))

    def training_step(self, batch, batch_idx):
        (tokens,) = batch
        logits = self(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        (tokens,) = batch
        logits = self(tokens[:, :-1])
        self.log("val_loss", F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
        said = tokens[:, :2]
        while said.shape[1] < tokens.shape[1]:
            said = torch.cat([said, self(said)[:, -1:].argmax(-1)], 1)
        self.log("val_rollout_acc", (said == tokens)[:, 2:].float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def language(broken):
    tokens = torch.randint(0, 7, (1600, 2), generator=rng(7))
    while tokens.shape[1] < 10:
        following = (tokens[:, -1] + 2 * tokens[:, -2] + 1) % 7
        tokens = torch.cat([tokens, following[:, None]], 1)
    return SmallGPT(7, 32, causal=not broken), *loaders(tokens, batch_size=40)


class AttentionPool(nn.Module):
    def __init__(self, features, width, classes, axis):
        super().__init__()
        self.item = nn.Sequential(nn.Linear(features, width), nn.Tanh())
        self.score = nn.Linear(width, 1)
        self.classify = nn.Linear(width, classes)
        self.attend = nn.Softmax(dim=axis)

    def forward(self, bag):
        h = self.item(bag)
        return self.classify((self.attend(self.score(h)) * h).sum(dim=1))


def bags(broken):
    """Sets with one item that is marked and that alone tells the class."""
    items = torch.randn(1600, 12, 6, generator=rng(8))
    which = torch.randint(0, 12, (1600,), generator=rng(9))
    items[..., 0] = -1
    items[torch.arange(1600), which, 0] = 1
    marked = items[torch.arange(1600), which]
    label = 2 * (marked[:, 1] > 0).long() + (marked[:, 2] > 0).long()
    pool = AttentionPool(6, 32, 4, axis=0 if broken else 1)
    return Classifier(pool, 8e-3), *loaders(items, label, batch_size=40)


class Encoder(nn.Module):
    """Token and position embeddings, a layer of attention and a mean over the tokens."""

    def __init__(self, symbols, length, add):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(symbols, 32), nn.Embedding(length, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, 0.1, "gelu", batch_first=True)
        self.norm, self.out, self.add = nn.LayerNorm(32), nn.Linear(32, 3), add

    def forward(self, ids):
        h = self.tokens(ids)
        where = self.positions(torch.arange(ids.shape[1], device=ids.device)).expand_as(h)
        h = h + where if self.add else where
        return self.out(self.norm(self.block(h)).mean(1))


def phrases(broken):
    ids = torch.randint(0, 9, (1500, 10), generator=rng(10))
    label = F.one_hot(ids % 3, 3).sum(1).argmax(1)
    return Classifier(Encoder(9, 10, add=not broken), 2e-3), *loaders(ids, label)


class Detector(LightningModule):
    """Is there a seven? Few pictures hold one, hence the prior in the biases and a focal loss."""

    def __init__(self, everywhere, prior=0.01):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Flatten()),
        )
        self.head = nn.Linear(384, 1)
        for layer in self.modules() if everywhere else [self.head]:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.constant_(layer.bias, -math.log((1 - prior) / prior))

    def shared_step(self, batch):
        picture, digit = batch
        target = (digit == 7).float()
        logit = self.head(self.features(picture)).squeeze(1)
        ce = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
        return (ce * (1 - torch.exp(-ce)) ** 2).mean()

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.shared_step(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def sevens(broken):
    return Detector(broken), *loaders(*images())


def fitted(name, make, epochs, *codes, **settings):
    return pair(name, make, *codes, trainer={"max_epochs": epochs}, **settings)


PAIRS = [
    fitted("scanned_digit_bytes", scanned, 10, "constant_input", "input_ignored"),
    fitted(
        *("station_forecast", station, 15, "unnormalized_input", "saturated_activations"),
        *("vanishing_gradients",),
    ),
    fitted("laboratory_export", laboratory, 20, "nan_in_data", "non_finite"),
    fitted("review_themes_words", themes, 12, "train_val_mismatch"),
    fitted("fraud_transactions", fraud, 10, "class_imbalance", metric="val_balanced_acc"),
    fitted("digits_by_folder", folders, 8, "unshuffled_data"),
    fitted("small_gpt_rollout", language, 8, "future_leakage", metric="val_rollout_acc"),
    fitted("marked_item_pooling", bags, 12, "batch_leakage", "dims_scrambled"),
    fitted("phrase_encoder_positions", phrases, 8, "input_ignored", "no_grad_flow"),
    fitted(
        *("rare_seven_detector", sevens, 8, "dead_relu", "bad_init_scale", "no_grad_flow"),
        *("vanishing_gradients", "input_ignored"),
    ),
]
