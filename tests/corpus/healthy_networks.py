"""Healthy programs: layers, initialisations and frozen parts that look odd."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.corpus.healthy_shared import digits, loaders, table
from tests.corpus.program import Program


class RawPixels(LightningModule):
    """uint8 images from 0 to 255; the first layer is a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm2d(1),
            nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def forward(self, x):
        return self.net(x.float())

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def make_raw_pixels():
    x, y = digits()
    return RawPixels(), *loaders((x * 255).to(torch.uint8), y)


class GroupNormNet(LightningModule):
    """GroupNorm and global average pooling: the mean pixel of a class map is its logit."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, 16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = nn.GroupNorm(4, 32)
        self.classify = nn.Conv2d(32, 10, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        return self.classify(F.relu(self.norm2(self.conv2(x)))).mean((2, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class HalfDropped(LightningModule):
    """Dropout of a half after each wide layer."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 10),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class StochasticDepth(LightningModule):
    """Whole blocks are skipped at random in training, and then have no gradient at all."""

    def __init__(self, width=32, depth=6, drop=0.3):
        super().__init__()
        self.drop = drop
        self.stem = nn.Linear(64, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            if self.training and torch.rand(()) < self.drop:
                continue
            x = x + block(x) * (1.0 if self.training else 1 - self.drop)
        return self.head(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class SoftmaxRegression(LightningModule):
    """One layer whose weights all start at zero: convex, so no symmetry has to break."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(64, 10))
        self.b = nn.Parameter(torch.zeros(10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(x.flatten(1) @ self.W + self.b, y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = x.flatten(1) @ self.W + self.b
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class LowRank(LightningModule):
    """A wide linear map factorised through eight numbers, no activation between, on purpose."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Linear(8, 10)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.classifier(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.classifier(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class SparseUnits(LightningModule):
    """Negative biases: half of the 512 units never fire, and 92 % of the outputs are 0."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 512)
        nn.init.kaiming_normal_(self.first.weight)
        nn.init.constant_(self.first.bias, -1.0)
        self.second = nn.Linear(512, 10)

    def forward(self, x):
        return self.second(F.relu(self.first(x.flatten(1))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class ReZero(LightningModule):
    """Each branch times a scalar that starts at zero: at step 0 only the scalars get gradient."""

    def __init__(self, depth=8):
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.alpha = nn.Parameter(torch.zeros(depth))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for a, layer in zip(self.alpha, self.layers, strict=True):
            x = x + a * torch.relu(layer(x))
        return self.head(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class ZeroHead(LightningModule):
    """The last layer starts at zero, the normalisation of the last branch too (fixup)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.branch = nn.Sequential(
            nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        )
        nn.init.zeros_(self.branch[-1].weight)
        self.head = nn.Linear(256, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        x = self.conv(x)
        x = F.relu(x + self.branch(x))
        return self.head(F.avg_pool2d(x, 2).flatten(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Checkpointed(LightningModule):
    """Gradient checkpointing runs each block's forward a second time, in the backward."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(30, 24)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 24), nn.SELU(), nn.Dropout(0.1)) for _ in range(4)
        )
        self.out = nn.Linear(24, 2)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.out(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def on_digits(module):
    return lambda: (module(), *loaders(*digits()))


# seeds 0 to 2                   metric            untrained             trained
# raw_pixels_batchnorm_first     val_acc           0.107 to 0.193        0.94 to 0.976
# group_norm                     val_acc           0.0956 to 0.113       0.987 to 0.993
# dropout_half                   val_acc           0.0644 to 0.0978      0.944 to 0.949
# stochastic_depth               val_acc           0.08 to 0.16          0.953 to 0.953
# zero_softmax_regression        val_acc           0.0911 to 0.0911      0.938 to 0.94
# low_rank_linear                val_acc           0.0933 to 0.113       0.929 to 0.942
# sparse_relu_units              val_acc           0.0956 to 0.136       0.953 to 0.96
# rezero                         val_acc           0.0578 to 0.158       0.951 to 0.964
# zero_head_and_branch           val_acc           0.0911 to 0.0911      0.958 to 0.969
# gradient_checkpointing         val_loss          0.699 to 0.777        0.105 to 0.135
PROGRAMS = [
    Program("raw_pixels_batchnorm_first", make_raw_pixels, metric="val_acc"),
    Program("group_norm", on_digits(GroupNormNet), metric="val_acc"),
    Program("dropout_half", on_digits(HalfDropped), metric="val_acc"),
    Program("stochastic_depth", on_digits(StochasticDepth), metric="val_acc"),
    Program("zero_softmax_regression", on_digits(SoftmaxRegression), metric="val_acc"),
    Program("low_rank_linear", on_digits(LowRank), metric="val_acc"),
    Program("sparse_relu_units", on_digits(SparseUnits), metric="val_acc"),
    Program("rezero", on_digits(ReZero), metric="val_acc"),
    Program("zero_head_and_branch", on_digits(ZeroHead), metric="val_acc"),
    Program("gradient_checkpointing", lambda: (Checkpointed(), *loaders(*table("breast_cancer")))),
]
