"""Broken programs of the final test, and their repaired twins: heads, wiring and optimizers."""

import copy

import lightning as L
import torch
from torch import nn, optim
from torch.nn import functional as F

from tests.corpus.program import images, loaders, pair, standardized


class Net(L.LightningModule):
    """A classifier around any network; most programs here change one thing about it."""

    def __init__(self, net, lr=1e-3, opt=optim.Adam):
        super().__init__()
        self.net, self.lr, self.opt = net, lr, opt

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        out = self(x)
        self.log("val_loss", F.cross_entropy(out, y))
        self.log("val_acc", (out.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return self.opt(self.parameters(), lr=self.lr)


def convnet(width=12):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def wine_from_one(broken):
    """The cultivars are numbered from one, as in the file they came in."""
    x, y = standardized("wine")
    net = nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 3))
    return Net(net, 1e-2), *loaders(x, y + 1 if broken else y)


def vocabulary_head(broken):
    """The head kept the width of a tokenizer's vocabulary; there are four classes."""
    g = torch.Generator().manual_seed(8)
    words = torch.randint(0, 50, (1600, 10), generator=g)
    label = (words // 13).float().mean(1).sub(0.3).div(0.6).round().clamp(0, 3).long()
    net = nn.Sequential(nn.EmbeddingBag(50, 32), nn.ReLU(), nn.Linear(32, 2048 if broken else 4))
    return Net(net, 1e-2), *loaders(words, label, batch_size=64)


class Rebuild(L.LightningModule):
    """An autoencoder of standardized digits."""

    def __init__(self, last, code=None, only_decoder=False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), last)
        self.code = code or nn.Identity()
        self.only_decoder = only_decoder

    def forward(self, x):
        return self.decoder(self.code(self.encoder(x)))

    def training_step(self, batch, batch_idx):
        x = batch[0].flatten(1)
        return {"loss": F.mse_loss(self(x), x)}

    def validation_step(self, batch, batch_idx):
        x = batch[0].flatten(1)
        self.log("val_mse", F.mse_loss(self(x), x))

    def configure_optimizers(self):
        part = self.decoder if self.only_decoder else self
        return optim.Adam(part.parameters(), lr=3e-3)


class Rounded(nn.Module):
    """Codes on a grid; with ``through`` the gradient passes as if they were not."""

    def __init__(self, through):
        super().__init__()
        self.through = through

    def forward(self, z):
        grid = torch.round(2 * z) / 2
        return z + (grid - z).detach() if self.through else grid


class Forecast(L.LightningModule):
    """The next value of a price that wanders far from where it began."""

    def __init__(self, squash):
        super().__init__()
        self.rnn = nn.LSTM(1, 24, batch_first=True)
        self.read = nn.Linear(24, 1)
        self.squash = squash

    def forward(self, past):
        h, _ = self.rnn(past)
        y = self.read(h[:, -1]).squeeze(1)
        return torch.tanh(y) if self.squash else y

    def training_step(self, batch, batch_idx):
        return F.l1_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_mae", F.l1_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=1e-2)


def prices(broken):
    g = torch.Generator().manual_seed(21)
    start = 3 * torch.randn(1400, 1, generator=g)
    walk = start + (0.3 * torch.randn(1400, 13, generator=g)).cumsum(1)
    return Forecast(broken), *loaders(walk[:, :-1, None], walk[:, -1], batch_size=64)


class ByHand(Net):
    """Manual optimization of a small convnet."""

    def __init__(self, net, clear):
        super().__init__(net, lr=0.1)
        self.automatic_optimization = False
        self.clear = clear

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        if self.clear:
            opt.zero_grad()
        self.manual_backward(loss)
        opt.step()

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=self.lr, momentum=0.5)


class Accumulate(L.LightningModule):
    """Eight small batches per step, by hand."""

    def __init__(self, divide):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
        self.every = 8
        self.divide = divide
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.manual_backward(loss / self.every if self.divide else loss)
        if (batch_idx + 1) % self.every == 0:
            opt = self.optimizers()
            opt.step()
            opt.zero_grad()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", F.mse_loss(self.net(x), y))

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.15)


def accumulated(broken):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(1700, 10, generator=g)
    y = x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * x[:, 3] + 0.1 * torch.randn(1700, generator=g)
    return Accumulate(not broken), *loaders(x, y, batch_size=8)


class Gan(L.LightningModule):
    """A GAN of points on an arc; ``cut`` detaches the fakes in the generator's turn as well."""

    def __init__(self, cut):
        super().__init__()
        self.g = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2))
        self.d = nn.Sequential(nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))
        self.cut = cut
        self.automatic_optimization = False

    def training_step(self, real, batch_idx):
        real = real[0]
        opt_g, opt_d = self.optimizers()
        fake = self.g(torch.randn(len(real), 4))

        d_loss = F.softplus(-self.d(real)).mean() + F.softplus(self.d(fake.detach())).mean()
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()

        judged = self.d(fake.detach() if self.cut else fake)
        g_loss = F.softplus(-judged).mean()
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})

    def validation_step(self, real, batch_idx):
        real = real[0]
        made = self.g(torch.randn(len(real), 4))
        self.log("val_gap", (made.mean(0) - real.mean(0)).norm())

    def configure_optimizers(self):
        betas = (0.5, 0.9)
        return [
            optim.Adam(self.g.parameters(), lr=5e-3, betas=betas),
            optim.Adam(self.d.parameters(), lr=5e-3, betas=betas),
        ]


def arc(broken):
    angle = 3 * torch.rand(2048, generator=torch.Generator().manual_seed(2))
    points = torch.stack([2 + angle.cos(), -1 + 2 * angle.sin()], 1)
    return Gan(broken), *loaders(points, batch_size=128, val_batch_size=512)


class Early(Net):
    """The optimizer is made in the constructor, ``early`` before the new head is put on."""

    def __init__(self, early):
        super().__init__(convnet())
        if early:
            self.optimizer = optim.Adam(self.parameters(), lr=3e-3)
        self.net[-1] = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
        if not early:
            self.optimizer = optim.Adam(self.parameters(), lr=3e-3)

    def configure_optimizers(self):
        return self.optimizer


class Patches(nn.Module):
    """A vision transformer on 2 x 2 patches."""

    def __init__(self):
        super().__init__()
        self.embed_patches = nn.Conv2d(1, 32, 2, stride=2)
        self.where = nn.Parameter(0.1 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        tokens = self.embed_patches(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(tokens + self.where).mean(1))


def fine_tuned(broken):
    """Meant to freeze nothing but the patches, froze all but the head."""
    net = Patches()
    if broken:
        for name, p in net.named_parameters():
            p.requires_grad = name.startswith("head")
    return Net(net, 3e-3), *loaders(*images(), batch_size=48)


class Warmup(Net):
    """A linear warm-up; with ``whole`` the division forgets its fraction."""

    whole = False

    def configure_optimizers(self):
        opt = optim.AdamW(self.parameters(), lr=5e-3)

        def factor(step):
            return min(1, (step + 1) // 400 if self.whole else (step + 1) / 40)

        schedule = optim.lr_scheduler.LambdaLR(opt, factor)
        return [opt], [{"scheduler": schedule, "interval": "step"}]


def warmed_up(broken):
    model = Warmup(nn.Sequential(nn.Linear(30, 24), nn.SiLU(), nn.Linear(24, 2)))
    model.whole = broken
    return model, *loaders(*standardized("breast_cancer"))


class Copied(Net):
    """``snapshot``: the optimizer gets the parameters of a copy."""

    snapshot = False

    def configure_optimizers(self):
        net = copy.deepcopy(self.net) if self.snapshot else self.net
        return optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def copied(broken):
    model = Copied(convnet())
    model.snapshot = broken
    return model, *loaders(*images())


PAIRS = [
    pair("third_from_one", wine_from_one, "wrong_num_classes", error="out of bounds", steps=80),
    pair("third_vocabulary_head", vocabulary_head, "wrong_num_classes", steps=100),
    pair(
        "third_sigmoid_decoder",
        lambda broken: (Rebuild(nn.Sigmoid() if broken else nn.Identity()), *loaders(*images())),
        "output_range_mismatch",
        metric="val_mse",
    ),
    pair("third_tanh_price", prices, "output_range_mismatch", metric="val_mae"),
    pair(
        "third_cnn_no_zero",
        lambda broken: (ByHand(convnet(), clear=not broken), *loaders(*images())),
        "missing_zero_grad",
    ),
    pair(
        "third_eight_batches",
        accumulated,
        *("accumulation_unscaled", "lr_too_high"),
        metric="val_mse",
        steps=240,
    ),
    pair(
        "third_gan_detached",
        arc,
        *("no_grad_flow", "loss_detached", "weights_not_updating"),
        metric="val_gap",
    ),
    pair(
        "third_rounded_code",
        lambda b: (Rebuild(nn.Identity(), Rounded(not b)), *loaders(*images())),
        "no_grad_flow",
        metric="val_mse",
    ),
    pair(
        "third_decoder_only",
        lambda b: (Rebuild(nn.Identity(), only_decoder=b), *loaders(*images())),
        "params_not_in_optimizer",
        metric="val_mse",
    ),
    pair(
        "third_early_optimizer",
        lambda broken: (Early(broken), *loaders(*images())),
        "params_not_in_optimizer",
    ),
    pair("third_frozen_vit", fine_tuned, "frozen_params", metric="val_acc", steps=120),
    pair("third_whole_warmup", warmed_up, "weights_not_updating", "lr_too_low", steps=100),
    pair("third_copied_net", copied, "weights_not_updating", "params_not_in_optimizer"),
]
