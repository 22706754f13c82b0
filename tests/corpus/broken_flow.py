"""Programs in which information or gradients flow where they should not, or do not flow."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.broken_losses import on, wine
from tests.corpus.program import images, pair


class Routed(LightningModule):
    """Picks one of sixteen codes; through the argmax no gradient reaches the encoder."""

    def __init__(self, broken=False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
        self.codes = nn.Embedding(16, 24)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(24, 10))
        self.broken = broken

    def forward(self, x):
        logits = self.encoder(x)
        if self.broken:
            return self.head(self.codes(logits.argmax(-1)))
        return self.head(logits.softmax(-1) @ self.codes.weight)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Spectrum(LightningModule):
    """Takes a spectrum in the middle; numpy knows no gradients."""

    def __init__(self, broken=False):
        super().__init__()
        self.project, self.head = nn.Linear(64, 8), nn.Linear(5, 10)
        self.broken = broken

    def forward(self, x):
        h = self.project(x.flatten(1))
        h = torch.from_numpy(h.detach().numpy()) if self.broken else h
        return self.head(torch.fft.rfft(h).abs())

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class SineFunction(torch.autograd.Function):
    """A sine whose backward has lost its sign if told so."""

    @staticmethod
    def forward(ctx, x, sign):
        ctx.save_for_backward(x)
        ctx.sign = sign
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return ctx.sign * grad * ctx.saved_tensors[0].cos(), None


class SwishFunction(torch.autograd.Function):
    """x * sigmoid(x); one of the two terms of the product rule may be missing."""

    @staticmethod
    def forward(ctx, x, whole):
        ctx.save_for_backward(x)
        ctx.whole = whole
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (ctx.whole * s + x * s * (1 - s)), None


class ScaledLinear(torch.autograd.Function):
    """x @ w.T; the weight's gradient is off by a factor."""

    @staticmethod
    def forward(ctx, x, w, factor):
        ctx.save_for_backward(x, w)
        ctx.factor = factor
        return x @ w.T

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, ctx.factor * grad.T @ x, None


class HandWritten(LightningModule):
    """A digit classifier around one function of the author's own."""

    def __init__(self, function, setting):
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(64, 24), nn.Linear(24, 6), nn.Linear(6, 10)
        self.function, self.setting = function, setting

    def forward(self, x):
        x = x.flatten(1)
        if self.function is ScaledLinear:
            x = torch.tanh(ScaledLinear.apply(x, self.l1.weight, self.setting) + self.l1.bias)
            return self.l3(torch.tanh(self.l2(x)))
        x = self.function.apply(self.l1(x), self.setting)
        return self.l3(self.function.apply(self.l2(x), self.setting))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class InitialState(LightningModule):
    """Classifies from the state that the LSTM started with."""

    def __init__(self, broken=False):
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)
        self.broken = broken

    def forward(self, x):
        h0 = torch.zeros(1, len(x), 32)
        _, (hn, _) = self.lstm(x.squeeze(1), (h0, torch.zeros_like(h0)))
        return self.out(h0[-1] if self.broken else hn[-1])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class ClassToken(LightningModule):
    """A small vision transformer; the head reads the class token as it was before attention."""

    def __init__(self, broken=False):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.cls = nn.Parameter(torch.randn(1, 1, 32) * 0.02)
        self.pos = nn.Parameter(torch.randn(1, 9, 32) * 0.02)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 10)
        self.broken = broken

    def forward(self, x):
        cls = self.cls.expand(len(x), -1, -1)
        tokens = torch.cat([cls, self.embed(x.squeeze(1))], 1) + self.pos
        encoded = self.block(tokens)
        return self.head((tokens if self.broken else encoded)[:, 0])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class AcrossBatch(LightningModule):
    """Self-attention without batch_first=True attends across the batch."""

    def __init__(self, broken=False):
        super().__init__()
        self.embed, self.pos = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=not broken)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.squeeze(1)) + self.pos)[:, -1])

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Pooled(LightningModule):
    """Attention pooling over the rows of a digit, normalised over the wrong dimension."""

    def __init__(self, broken=False):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.query, self.head = nn.Linear(32, 1), nn.Linear(32 * 8, 10)
        self.dim = 0 if broken else 1

    def forward(self, x):
        rows = self.embed(x.squeeze(1))
        weight = self.query(rows).softmax(dim=self.dim)
        return self.head((weight * rows * 8).flatten(1))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class ContextMean(LightningModule):
    """Adds to the wine's features the mean over the batch instead of over the features."""

    def __init__(self, broken=False):
        super().__init__()
        self.embed, self.head = nn.Linear(1, 16), nn.Linear(16, 3)
        self.names = nn.Parameter(torch.randn(13, 16))
        self.broken = broken

    def forward(self, x):
        tokens = F.relu(self.embed(x.unsqueeze(-1)) * self.names + self.names)
        context = tokens.mean(0)[:1] if self.broken else tokens.mean(1)
        return self.head(tokens[:, 0] + context)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def hand(function, wrong, right):
    return on(lambda broken: HandWritten(function, wrong if broken else right), images)


PAIRS = [
    pair("argmax_codes", on(Routed, images), "no_grad_flow"),
    pair("numpy_round_trip", on(Spectrum, images), "no_grad_flow"),
    pair("sine_backward", hand(SineFunction, -1, 1), "wrong_gradient"),
    pair("swish_backward", hand(SwishFunction, 0, 1), "wrong_gradient", steps=100),
    pair("linear_backward", hand(ScaledLinear, -0.5, 1), "wrong_gradient"),
    pair("initial_state", on(InitialState, images), "input_ignored", metric="val_acc"),
    pair("class_token", on(ClassToken, images), "input_ignored", metric="val_acc"),
    pair("batch_first", on(AcrossBatch, images), "batch_leakage", "dims_scrambled"),
    pair("softmax_over_batch", on(Pooled, images, val_batch_size=4), "batch_leakage"),
    pair("mean_over_batch", on(ContextMean, wine), "batch_leakage"),
]  # fmt: skip
