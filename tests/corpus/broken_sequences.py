"""Language models that see the future or start badly, and nets that are linear or dropped out."""

import itertools

import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.broken_losses import on
from tests.corpus.program import images, pair


def sentences():
    """A noisy chain over 16 tokens: three in five follow the last, the others are random."""
    generator = torch.Generator().manual_seed(4)
    follows = torch.randperm(16, generator=generator)
    tokens = torch.randint(16, (600, 17), generator=generator)
    for t in range(16):
        regular = torch.rand(600, generator=generator) < 0.6
        tokens[:, t + 1] = torch.where(regular, follows[tokens[:, t]], tokens[:, t + 1])
    return (tokens,)


class LanguageModel(LightningModule):
    """Next-token loss; validation predicts each token from its prefix alone, as generation does."""

    lr = 5e-3

    def training_step(self, batch, batch_idx):
        (tokens,) = batch
        logits = self(tokens[:, :-1])
        loss = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        (tokens,) = batch
        losses = [
            F.cross_entropy(self(tokens[:, :t])[:, -1], tokens[:, t])
            for t in range(1, tokens.shape[1])
        ]
        self.log("val_loss", torch.stack(losses).mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Transformer(LanguageModel):
    def __init__(self, broken=False):
        super().__init__()
        self.tok, self.pos = nn.Embedding(16, 32), nn.Embedding(16, 32)
        self.block = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 16)
        self.causal = not broken

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.tok(tokens) + self.pos(torch.arange(length))
        mask = torch.full((length, length), float("-inf")).triu(1) if self.causal else None
        return self.head(self.block(x, src_mask=mask))


class Recurrent(LanguageModel):
    def __init__(self, broken=False):
        super().__init__()
        self.tok = nn.Embedding(16, 32)
        self.gru = nn.GRU(32, 32, batch_first=True, bidirectional=broken)
        self.head = nn.Linear(64 if broken else 32, 16)

    def forward(self, tokens):
        return self.head(self.gru(self.tok(tokens))[0])


class Convolutional(LanguageModel):
    """Pads on both sides where a language model must pad on the left."""

    def __init__(self, broken=False):
        super().__init__()
        self.tok, self.head = nn.Embedding(16, 32), nn.Conv1d(32, 16, 1)
        self.conv = nn.Conv1d(32, 32, 3)
        self.padding = (1, 1) if broken else (2, 0)

    def forward(self, tokens):
        x = F.pad(self.tok(tokens).transpose(1, 2), self.padding)
        return self.head(F.relu(self.conv(x))).transpose(1, 2)


class TiedHead(LanguageModel):
    """The head is the embedding's own matrix, which starts with deviation 1 (or 0.02)."""

    lr = 1e-3

    def __init__(self, broken=False):
        super().__init__()
        self.tok = nn.Embedding(16, 128)
        self.gru = nn.GRU(128, 128, batch_first=True)
        if not broken:
            nn.init.normal_(self.tok.weight, std=0.02)

    def forward(self, tokens):
        x = self.tok(tokens)
        return (x + self.gru(x)[0]) @ self.tok.weight.T


class Shifted(LanguageModel):
    """Forgets to shift: the target is the token that was put in."""

    def __init__(self, broken=False):
        super().__init__()
        self.tok, self.gru = nn.Embedding(16, 32), nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, 16)
        self.broken = broken

    def forward(self, tokens):
        return self.head(self.gru(self.tok(tokens))[0])

    def training_step(self, batch, batch_idx):
        tokens = batch[0]
        inputs = tokens[:, :-1]
        targets = tokens[:, :-1] if self.broken else tokens[:, 1:]
        return F.cross_entropy(self(inputs).reshape(-1, 16), targets.reshape(-1))


def board():
    """A chessboard of 3 x 3 fields: which colour?"""
    generator = torch.Generator().manual_seed(8)
    x = torch.rand(1600, 2, generator=generator) * 3
    return (x - 1.5) / 0.87, x.floor().sum(1).long() % 2


class Chessboard(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        widths = (2, 64, 64, 64, 2)
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b)] if broken else [nn.Linear(a, b), nn.ReLU()]
        self.net = nn.Sequential(*(layers if broken else layers[:-1]))
        self.acc = torchmetrics.Accuracy(task="multiclass", num_classes=2)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.acc(self(batch[0]), batch[1])
        self.log("val_acc", self.acc, on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def waves():
    generator = torch.Generator().manual_seed(6)
    x = torch.rand(1000, 3, generator=generator) * 4 - 2
    y = (2 * x[:, 0]).sin() * x[:, 1] + x[:, 2].abs()
    return x, y - y.mean()


class Discards(LightningModule):
    """Calls the activation and drops what it returns."""

    def __init__(self, broken=False):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(3, 64), nn.Linear(64, 64), nn.Linear(64, 1)
        self.broken = broken

    def forward(self, x):
        for layer in (self.fc1, self.fc2):
            x = layer(x)
            if self.broken:
                F.relu(x)
            else:
                x = F.relu(x)
        return self.fc3(x).flatten()

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Dropped(LightningModule):
    """The author meant to keep 99 in 100."""

    def __init__(self, broken=False):
        super().__init__()
        p = 0.99 if broken else 0.01
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(p))
        self.head = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.features(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.head(self.features(batch[0]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class DroppedRows(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        rate = 0.95 if broken else 0.05
        self.drop = nn.Dropout(rate)
        self.gru = nn.GRU(8, 32, 2, batch_first=True, dropout=rate)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.drop(self.gru(x.squeeze(1))[0][:, -1]))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


PAIRS = [
    pair("no_causal_mask", on(Transformer, sentences), "future_leakage", steps=250),
    pair("bidirectional_lm", on(Recurrent, sentences), "future_leakage", steps=200),
    pair("symmetric_padding", on(Convolutional, sentences), "future_leakage"),
    pair("targets_not_shifted", on(Shifted, sentences), "future_leakage", "label_mismatch"),
    pair("tied_head", on(TiedHead, sentences), "bad_init_scale", "loss_not_at_chance", steps=100),
    pair("linear_chessboard", on(Chessboard, board), "missing_nonlinearity", metric="val_acc",
         steps=250),
    pair("discarded_relu", on(Discards, waves), "missing_nonlinearity", metric="val_mse"),
    pair("dropout_keeps_one", on(Dropped, images), "dropout_too_high", metric="val_acc"),
    pair("dropout_gru", on(DroppedRows, images), "dropout_too_high"),
]  # fmt: skip
