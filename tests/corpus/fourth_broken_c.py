"""Broken programs with their repaired twins, fourth set, last part."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.fourth_broken_a import Classifier, generator
from tests.corpus.program import bundled, images, loaders, pair, standardized


class Regressor(LightningModule):
    def __init__(self, net, lr):
        super().__init__()
        self.net = net
        self.lr = lr

    def training_step(self, batch, _):
        loss = F.mse_loss(self.net(batch[0]).squeeze(-1), batch[1])
        self.log("train_mse", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, _):
        self.log("val_mse", F.mse_loss(self.net(batch[0]).squeeze(-1), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def kelvins(broken):
    """Five temperatures around 290 K; the limits of the clamp are those of a scaled input."""
    rng = generator(20)
    kelvin = 290 + 8 * torch.randn(1600, 5, generator=rng)
    z = (kelvin - 290) / 8
    gain = torch.sin(z[:, 0]) + z[:, 1] * torch.sigmoid(2 * z[:, 2]) - 0.4 * z[:, 4]
    x = kelvin.clamp(-3, 3) if broken else z.clamp(-3, 3)
    net = nn.Sequential(nn.Linear(5, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))
    return Regressor(net, 5e-3), *loaders(x, gain)


def raw_tumours(broken):
    x, y = (bundled if broken else standardized)("breast_cancer")
    net = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 16), nn.Tanh())
    net.append(nn.Linear(16, 2))
    return Classifier(net, 0.05, torch.optim.SGD), *loaders(x, y)


def by_folder(broken):
    """Images in the order of their folders, one for each class."""
    x, y = images()
    train_x, train_y = x[:1344], y[:1344]
    order = train_y.argsort(stable=True)
    train = TensorDataset(train_x[order], train_y[order])
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    val = DataLoader(TensorDataset(x[1344:], y[1344:]), 151)
    return Classifier(net, 3e-3), DataLoader(train, 32, shuffle=not broken), val


class Stack(nn.Module):
    """Blocks whose activation is an attribute that forward has to call."""

    def __init__(self, call):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 32), nn.Linear(32, 32), nn.Linear(32, 32)])
        self.activation = nn.ReLU()
        self.out = nn.Linear(32, 3)
        self.call = call

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            if self.call:
                x = self.activation(x)
        return self.out(x)


def rings(broken):
    rng = generator(23)
    label = torch.randint(0, 3, (1600,), generator=rng)
    radius = 0.5 + label + 0.12 * torch.randn(1600, generator=rng)
    angle = torch.rand(1600, generator=rng) * 6.2832
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return Classifier(Stack(not broken), 5e-3), *loaders(x, label)


class Patches(nn.Module):
    """A vision transformer of one block."""

    def __init__(self, dropout, dim=32):
        super().__init__()
        self.cut = nn.Conv2d(1, dim, 2, stride=2)
        self.place = nn.Parameter(0.1 * torch.randn(1, 16, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 64, dropout, "gelu", batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        tokens = self.cut(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.drop(self.body(tokens).mean(1)))


def patches(broken):
    return Classifier(Patches(0.9 if broken else 0.05), 6e-3), *loaders(*images())


class Readings(nn.Module):
    """Normalizes each reading of a scalar series, then a GRU."""

    def __init__(self, size):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.rnn = nn.GRU(1, 32, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, series):
        x = self.norm(series)
        return self.head(self.rnn(x.unsqueeze(-1) if x.ndim == 2 else x)[0][:, -1])


def readings(broken):
    """Sine, square or saw; the norm is over the values of a step or over the series."""
    rng = generator(25)
    kind = torch.randint(0, 3, (1600,), generator=rng)
    turns = torch.arange(20) / 10 + torch.rand(1600, 1, generator=rng)
    shapes = torch.stack(
        [torch.sin(turns * 6.2832), torch.sign(torch.sin(turns * 6.2832)), 2 * (turns % 1) - 1]
    )
    series = shapes[kind, torch.arange(1600)] + 0.1 * torch.randn(1600, 20, generator=rng)
    x = series.unsqueeze(-1) if broken else series
    return Classifier(Readings(1 if broken else 20), 1e-2), *loaders(x, kind)


class TiedModel(LightningModule):
    """A causal transformer with one matrix for tokens in and out."""

    def __init__(self, lr, vocabulary=20, dim=32):
        super().__init__()
        self.lr = lr
        self.embed = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.place = nn.Parameter(0.1 * torch.randn(24, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 1, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.embed(tokens) + self.place[:length]
        return self.head(self.body(x, mask=mask, is_causal=True))

    def loss(self, batch):
        (tokens,) = batch
        return F.cross_entropy(self(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])

    def training_step(self, batch, _):
        loss = self.loss(batch)
        return {"loss": loss, "perplexity": loss.detach().exp()}

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.95))


def sentences(count=1400, length=21, vocabulary=20, seed=26):
    """A sparse grammar: four tokens can follow each token, one of them mostly."""
    rng = generator(seed)
    follows = torch.rand(vocabulary, vocabulary, generator=rng).argsort(1)[:, :4]
    chances = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(count, 4)
    tokens = [torch.randint(0, vocabulary, (count,), generator=rng)]
    for _ in range(length - 1):
        pick = torch.multinomial(chances, 1, generator=rng).squeeze(1)
        tokens.append(follows[tokens[-1], pick])
    return torch.stack(tokens, 1)


def hot_model(broken):
    return TiedModel(0.5 if broken else 3e-3), *loaders(sentences())


class Outlines(LightningModule):
    """Segments a disc from noise."""

    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.middle = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(12, 12, 2, 2)
        self.out = nn.Conv2d(13, 1, 3, padding=1)

    def forward(self, x):
        return self.out(torch.cat([self.up(self.middle(self.down(x))), x], 1)).squeeze(1)

    def training_step(self, batch, _):
        return F.binary_cross_entropy_with_logits(self(batch["image"]), batch["mask"])

    def validation_step(self, batch, _):
        scores, mask = self(batch["image"]), batch["mask"] > 0
        both, either = (scores > 0) & mask, (scores > 0) | mask
        size = len(mask)
        self.log("val_iou", both.sum() / either.sum(), batch_size=size)
        loss = F.binary_cross_entropy_with_logits(scores, mask.float())
        self.log("val_loss", loss, batch_size=size)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)


def discs(count, seed):
    rng = generator(seed)
    grid = torch.arange(16.0)
    centre = 4 + 8 * torch.rand(count, 2, 1, 1, generator=rng)
    radius = 2 + 3 * torch.rand(count, 1, 1, generator=rng)
    far = (grid[:, None] - centre[:, 0]) ** 2 + (grid - centre[:, 1]) ** 2
    masks = (far < radius**2).float()
    noise = 0.5 * torch.randn(count, 16, 16, generator=rng)
    return [
        {"image": (mask + spot).unsqueeze(0) - 0.2, "mask": mask}
        for mask, spot in zip(masks, noise, strict=True)
    ]


def cold_outlines(broken):
    train = DataLoader(discs(640, 27), 16, shuffle=True)
    return Outlines(1e-6 if broken else 1e-2), train, DataLoader(discs(160, 28), 80)


PAIRS = [
    pair("fourth_clamped_kelvins", kelvins, "constant_input", "input_ignored", metric="val_mse"),
    pair("fourth_raw_tumours", raw_tumours, "unnormalized_input"),
    pair("fourth_by_folder", by_folder, "unshuffled_data", steps=126),
    pair("fourth_uncalled_activation", rings, "missing_nonlinearity"),
    pair("fourth_dropped_patches", patches, "dropout_too_high"),
    pair("fourth_norm_of_one", readings, "input_ignored", "constant_input"),
    pair("fourth_hot_model", hot_model, "lr_too_high"),
    pair("fourth_cold_outlines", cold_outlines, "lr_too_low"),
]
