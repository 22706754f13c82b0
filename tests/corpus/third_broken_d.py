"""Broken programs of the final test, and their repaired twins: data, inputs and metrics."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce_logits
from torch.nn.functional import cross_entropy, mse_loss, one_hot
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.corpus.program import bundled, loaders, pair


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Classifier(LightningModule):
    """Any network with cross-entropy; the last item of a batch is the label."""

    def __init__(self, net: nn.Module, lr: float = 3e-3, sgd: bool = False):
        super().__init__()
        self.net = net
        self.lr = lr
        self.sgd = sgd

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(*inputs)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        loss = cross_entropy(self(*batch[:-1]), batch[-1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx: int) -> None:
        scores = self(*batch[:-1])
        self.log("val_loss", cross_entropy(scores, batch[-1]))
        self.log("val_acc", (scores.argmax(1) == batch[-1]).float().mean())

    def configure_optimizers(self):
        if self.sgd:
            return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)
        return torch.optim.Adam(self.parameters(), self.lr)


class LastState(nn.Module):
    """A GRU and a linear layer on what it holds at the end."""

    def __init__(self, inputs: int, outputs: int, width: int = 24):
        super().__init__()
        self.gru = nn.GRU(inputs, width, batch_first=True)
        self.read = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.gru(x)[1][0])


def slopes(n: int = 1350, length: int = 12) -> tuple[Tensor, Tensor]:
    """Noisy series that fall, stay or rise, and which of the three they do."""
    g = seeded(12)
    label = torch.randint(0, 3, (n,), generator=g)
    slope = (label - 1).float().view(-1, 1) * 0.15
    series = slope * torch.arange(length) + 0.4 * torch.randn(n, length, generator=g)
    return (series - series[:, :1]).unsqueeze(2), label


def lost_readings(broken: bool):
    """Some readings were lost on the way and arrive as NaN."""
    series, label = slopes()
    lost = torch.rand(series.shape, generator=seeded(3)) < 0.02
    series = series.masked_fill(lost, torch.nan)
    if not broken:
        series = torch.cat([series.nan_to_num(0.0), lost.float()], 2)
    return Classifier(LastState(1 if broken else 2, 3), 1e-2), *loaders(series, label)


def air_pressure(broken: bool):
    """The series in pascal, as the barometer gives them."""
    series, label = slopes()
    if broken:
        series = 101325 + 40 * series
    return Classifier(LastState(1, 3), 1e-2), *loaders(series, label)


def household(broken: bool):
    """Income, age, rooms and a postal code, in the units of the form."""
    x = torch.randn(1600, 4, generator=seeded(14))
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * x[:, 3] > 0).long()
    if broken:
        x = x * torch.tensor([20000.0, 12, 1.5, 9000]) + torch.tensor([52000.0, 44, 4, 50000])
    net = nn.Sequential(nn.Linear(4, 48), nn.Tanh(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 2))
    return Classifier(net, 1e-2), *loaders(x, y, batch_size=48)


class Reviews(Dataset):
    """Texts padded in front to a common length; a reader takes six tokens of each."""

    def __init__(self, first: bool, n: int, seed: int):
        g = seeded(seed)
        words = torch.randint(1, 40, (n, 6), generator=g)
        self.label = (words % 3).sum(1).gt(6).long()
        self.text = torch.cat([torch.zeros(n, 18, dtype=torch.long), words], 1)
        self.first = first

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.text[i][:6] if self.first else self.text[i][-6:], self.label[i]


def truncated(broken: bool):
    net = nn.Sequential(nn.Embedding(40, 16), nn.Flatten(), nn.Linear(96, 32), nn.ReLU())
    net.append(nn.Linear(32, 2))
    train = DataLoader(Reviews(broken, 1600, 0), 32, shuffle=True)
    return Classifier(net, 5e-3), train, DataLoader(Reviews(broken, 400, 1), 100)


def black_pictures(broken: bool):
    """Binarized at a threshold for bytes, though the pixels go from 0 to 1."""
    x, y = bundled("digits")
    x = (x / 16 > (127 if broken else 0.5)).float().view(-1, 1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    return Classifier(net), *loaders(x, y)


def by_direction(broken: bool):
    """All that fall, then all that stay, then all that rise."""
    series, label = slopes()
    _, val = loaders(series, label)
    order = label[:1012].argsort() if broken else torch.arange(1012)
    train = TensorDataset(series[order], label[order])
    return Classifier(LastState(1, 3), 1e-2), DataLoader(train, 32, shuffle=not broken), val


class Regressor(LightningModule):
    """A number from a vector, by squared error."""

    def __init__(self, net: nn.Module, lr: float = 3e-3, reversed_r2: bool = False):
        super().__init__()
        self.net = net
        self.lr = lr
        self.reversed_r2 = reversed_r2

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        return mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx: int) -> None:
        guess, y = self(batch[0]), batch[1]
        error, spread = mse_loss(guess, y), mse_loss(y.mean().expand_as(y), y)
        self.log("val_mse", error)
        self.log("val_r2", 1 - (spread / error if self.reversed_r2 else error / spread))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def friedman(n: int = 1600) -> tuple[Tensor, Tensor]:
    g = seeded(30)
    x = torch.rand(n, 8, generator=g)
    y = 10 * torch.sin(3.14 * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3]
    y = y + 5 * x[:, 4] + 0.5 * torch.randn(n, generator=g)
    return 2 * x - 1, (y - y.mean()) / y.std()


def plain(last: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 1), last or nn.Identity())


def ranked_rows(broken: bool):
    """The table was exported in the order of its target."""
    x, y = friedman()
    _, val = loaders(x, y)
    order = y[:1200].argsort() if broken else torch.arange(1200)
    train = DataLoader(TensorDataset(x[order], y[order]), 24, shuffle=not broken)
    return Regressor(plain(), 1e-2), train, val


class Rare(LightningModule):
    """Tells the rare faulty parts from the good ones."""

    def __init__(self, weight: float):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1), nn.Flatten(0))
        self.register_buffer("weight", torch.tensor(weight))

    def training_step(self, batch, batch_idx: int) -> Tensor:
        return bce_logits(self.net(batch[0]), batch[1], pos_weight=self.weight)

    def validation_step(self, batch, batch_idx: int) -> None:
        found, there = self.net(batch[0]) > 0, batch[1] > 0.5
        recalls = found[there].float().mean(), (~found[~there]).float().mean()
        self.log("val_balanced_acc", sum(recalls) / 2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def faulty_parts(broken: bool):
    g = seeded(17)
    y = (torch.rand(6000, generator=g) < 0.012).float()
    x = torch.randn(6000, 6, generator=g)
    x[:, :3] += 1.0 * y[:, None]
    return Rare(1.0 if broken else 80.0), *loaders(x, y, batch_size=64, val_batch_size=1500)


def other_scale(broken: bool):
    """The validation pictures kept their bytes; those for training were divided."""
    x, y = bundled("digits")
    x = x.view(-1, 1, 8, 8) / 16
    train, val = loaders(x, y)
    if broken:
        val = DataLoader(TensorDataset(255 * x[1347:], y[1347:]), 128)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    return Classifier(net), train, val


def other_vocabulary(broken: bool):
    """The validation texts were encoded with special tokens that moved all others up."""
    g = seeded(19)
    topic = torch.randint(0, 4, (1400,), generator=g)
    words = (8 * topic[:, None] + 12 * torch.rand(1400, 7, generator=g)).long()
    train, val = loaders(words, topic)
    if broken:
        val = DataLoader(TensorDataset(words[1050:] + 16, topic[1050:]), 128)
    net = nn.Sequential(nn.EmbeddingBag(56, 24), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 4))
    return Classifier(net, 5e-3), train, val


class Reader(nn.Module):
    """Learned queries read a text; ``broken`` forgot whom to ask."""

    def __init__(self, broken: bool):
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.queries = nn.Parameter(torch.randn(2, 32))
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 5))
        self.broken = broken

    def forward(self, text: Tensor) -> Tensor:
        memory = self.embed(text)
        query = self.queries.expand(len(text), -1, -1)
        source = query if self.broken else memory
        return self.head(self.attention(query, source, source, need_weights=False)[0])


def five_topics(seed: int = 23) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, 20, (1600, 9), generator=seeded(seed))
    return text, (one_hot(text % 5, 5).sum(1) + one_hot(text[:, 0] % 5, 5) * 0.5).argmax(1)


class Encoded(Dataset):
    """What a tokenizer returns: ids and a mask of those that are no padding."""

    def __init__(self, n: int, seed: int):
        text, self.label = five_topics(seed)
        real = torch.arange(14) < torch.randint(9, 12, (len(text), 1), generator=seeded(2))
        self.ids = torch.cat([text + 1, text[:, :5] + 1], 1) * real
        self.mask, self.n = real.long(), n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"ids": self.ids[i], "mask": self.mask[i], "label": self.label[i]}


class FromDict(Classifier):
    """Averages the embeddings of the tokens; ``swapped`` embeds the mask."""

    def __init__(self, swapped: bool):
        super().__init__(nn.Sequential(nn.ReLU(), nn.Linear(48, 5)), lr=1e-2)
        self.embed = nn.Embedding(21, 48, padding_idx=0)
        self.swapped = swapped

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(mask if self.swapped else ids) * mask.unsqueeze(-1)
        return self.net(h.sum(1) / mask.sum(1, keepdim=True))

    def training_step(self, batch, batch_idx: int) -> Tensor:
        return super().training_step((batch["ids"], batch["mask"], batch["label"]), batch_idx)

    def validation_step(self, batch, batch_idx: int) -> None:
        super().validation_step((batch["ids"], batch["mask"], batch["label"]), batch_idx)


def encoded(broken: bool):
    train = DataLoader(Encoded(1600, 23), 32, shuffle=True)
    return FromDict(broken), train, DataLoader(Encoded(400, 24), 100)


class WordTags(Classifier):
    """Tags each position; ``of_all`` divides the right ones by all scores."""

    def __init__(self, of_all: bool):
        net = nn.Sequential(nn.Embedding(20, 24), nn.ReLU(), nn.Linear(24, 5))
        super().__init__(net, 1e-2)
        self.of_all = of_all

    def training_step(self, batch, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())

    def validation_step(self, batch, batch_idx: int) -> None:
        scores = self(batch[0])
        right = (scores.argmax(-1) == batch[1]).sum()
        self.log("val_acc", right / (scores if self.of_all else batch[1]).numel())


def word_tags(broken: bool):
    text, _ = five_topics()
    return WordTags(broken), *loaders(text, text * 7 % 5)


DEAF = ("input_ignored", "cannot_overfit_batch")
PAIRS = [
    pair("third_lost_readings", lost_readings, "nan_in_data", "non_finite"),
    pair("third_pascal", air_pressure, *("unnormalized_input", "saturated_activations")),
    pair(
        "third_household",
        household,
        *("unnormalized_input", "saturated_activations"),
        metric="val_acc",
    ),
    pair("third_left_padding", truncated, "constant_input", *DEAF, metric="val_acc"),
    pair("third_black_pictures", black_pictures, "constant_input", *DEAF, metric="val_acc"),
    pair("third_by_direction", by_direction, "unshuffled_data", steps=128),
    pair("third_ranked_rows", ranked_rows, "unshuffled_data", metric="val_mse", steps=150),
    pair("third_faulty_parts", faulty_parts, "class_imbalance", metric="val_balanced_acc"),
    pair("third_other_scale", other_scale, "train_val_mismatch"),
    pair("third_other_vocabulary", other_vocabulary, "train_val_mismatch", metric="val_acc"),
    pair(
        "third_asks_itself",
        lambda broken: (Classifier(Reader(broken)), *loaders(*five_topics())),
        *(*DEAF, "no_grad_flow"),
        metric="val_acc",
    ),
    pair("third_embeds_the_mask", encoded, *DEAF, metric="val_acc"),
    pair(
        "third_norm_of_one",
        lambda broken: (
            Regressor(plain(nn.LayerNorm(1) if broken else None)),
            *loaders(*friedman()),
        ),
        *(*DEAF, "no_grad_flow", "vanishing_gradients"),
        metric="val_mse",
    ),
    pair(
        "third_r2_upside_down",
        lambda broken: (Regressor(plain(), 1e-2, broken), *loaders(*friedman())),
        "metric_wrong",
        metric="val_r2",
    ),
    pair("third_tags_per_score", word_tags, "metric_wrong", metric="val_acc"),
]
