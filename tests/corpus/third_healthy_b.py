"""Healthy programs of the final test that only look odd: parameters, modes and optimizers."""

import copy
import warnings

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import Program, bundled, images, loaders, standardized


class Classify(LightningModule):
    """Digits or wines by cross-entropy; the programs below change the rest."""

    def __init__(self, net, make_optimizer=lambda ps: torch.optim.Adam(ps, lr=3e-3)):
        super().__init__()
        self.net, self.make_optimizer = net, make_optimizer

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        self.log("val_loss", F.cross_entropy(scores, y))
        self.log("val_acc", (scores.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def small(*extra):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), *extra, nn.Linear(64, 10))


def trains(net, optimizer=None, data=images, **kwargs):
    """What a `Program` wants: a classifier of the digits."""

    def make():
        args = (optimizer,) if optimizer else ()
        return Classify(net(), *args), *loaders(*data(), **kwargs)

    return make


class MeanTeacher(Classify):
    """A slow copy of the network, in no optimizer, teaches it to be consistent."""

    def __init__(self):
        super().__init__(small())
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x + 0.3 * torch.randn_like(x))
        agree = F.mse_loss(scores.softmax(1), self.teacher(x).softmax(1))
        return F.cross_entropy(scores, y) + 0.5 * agree

    def on_train_batch_end(self, *args):
        for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.05)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=3e-3)


class RandomFeatures(nn.Module):
    """A kernel machine: four hundred random cosines that stay as drawn, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(64, 400).requires_grad_(False)
        nn.init.normal_(self.project.weight, std=0.07)
        nn.init.uniform_(self.project.bias, 0, 6.2832)
        self.out = nn.Linear(400, 10)

    def forward(self, x):
        return self.out(torch.cos(self.project(x.flatten(1))))


class FixedTrunk(Classify):
    """Principal components with batch statistics of long ago, held in eval mode."""

    def __init__(self, x):
        super().__init__(nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 10)))
        self.trunk = nn.Sequential(nn.Linear(64, 24, bias=False), nn.BatchNorm1d(24))
        self.trunk[0].weight.data = torch.linalg.svd(x, full_matrices=False)[2][:24].clone()
        with torch.no_grad():
            codes = self.trunk[0](x)
        self.trunk[1].running_mean.copy_(codes.mean(0))
        self.trunk[1].running_var.copy_(codes.var(0))
        self.trunk.requires_grad_(False)

    def on_train_epoch_start(self):
        self.trunk.eval()

    def forward(self, x):
        with torch.no_grad():
            features = self.trunk(x.flatten(1))
        return self.net(features)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=3e-3)


class ByTurns(LightningModule):
    """Factors of a table of ratings: users move in even batches, items in odd ones."""

    def __init__(self):
        super().__init__()
        self.users, self.items = nn.Embedding(60, 4), nn.Embedding(50, 4)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.3)
        self.automatic_optimization = False

    def forward(self, user, item):
        return (self.users(user) * self.items(item)).sum(1)

    def training_step(self, batch, batch_idx):
        user, item, rating = batch
        loss = F.mse_loss(self(user, item), rating)
        optimizer = self.optimizers()[batch_idx % 2]
        self.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("loss", loss)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(*batch[:2]), batch[2]))

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), lr=5e-2) for part in (self.users, self.items)]


def ratings():
    g = torch.Generator().manual_seed(0)
    users, items = torch.randn(60, 2, generator=g), torch.randn(50, 2, generator=g)
    pairs = torch.randperm(3000, generator=g)
    user, item = pairs // 50, pairs % 50
    return ByTurns(), *loaders(user, item, (users[user] * items[item]).sum(1))


class ByExamples(Classify):
    """Gathers gradients of four batches, added up and divided once by the examples seen."""

    def __init__(self):
        super().__init__(small())
        self.automatic_optimization = False
        self.seen = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.manual_backward(F.cross_entropy(self(x), y, reduction="sum"))
        self.seen += len(x)
        if batch_idx % 4 == 3:
            for p in self.parameters():
                p.grad /= self.seen
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()
            self.seen = 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.8)


class Gates(nn.Module):
    """Residual branches behind gates that start at zero, and a head that does, too."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 48)
        self.branches = nn.ModuleList(nn.Linear(48, 48) for _ in range(6))
        self.gates = nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(48, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        h = self.first(x.flatten(1))
        for gate, branch in zip(self.gates, self.branches, strict=True):
            h = h + gate * torch.relu(branch(h))
        return self.head(h)


class Experts(nn.Module):
    """Sends each example to the one of eight experts that the router likes best."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(64, 8)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)) for _ in range(8)
        )

    def forward(self, x):
        x = x.flatten(1)
        weight, chosen = self.router(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 10)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().flatten()
            if len(rows):
                out[rows] = expert(x[rows]) * (0.5 + weight[rows, None])
        return out


class SignOf(torch.autograd.Function):
    """Plus or minus one; passes the gradient where the input is small, as binary nets do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class Binary(nn.Module):
    """A hidden layer of signs."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(64, 128), nn.BatchNorm1d(128), nn.Linear(128, 10)

    def forward(self, x):
        return self.b(SignOf.apply(self.norm(self.a(x.flatten(1)))))


class Reverse(torch.autograd.Function):
    """The identity; turns the gradient around."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -0.3 * grad


class Adversarial(Classify):
    """Digits whose features must not tell on which of two scanners they were read."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.ReLU(), nn.Linear(64, 10)))
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
        self.domain = nn.Sequential(nn.ReLU(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x):
        return self.net(self.features(x))

    def training_step(self, batch, batch_idx):
        x, y, scanner = batch
        h = self.features(x)
        hidden = F.cross_entropy(self.domain(Reverse.apply(h)), scanner)
        return F.cross_entropy(self.net(h), y) + 0.3 * hidden

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch[:2], batch_idx)


def scanners():
    x, y = images()
    scanner = torch.randint(0, 2, (len(x),), generator=torch.Generator().manual_seed(1))
    return Adversarial(), *loaders(x + 0.4 * scanner.view(-1, 1, 1, 1), y, scanner)


def full_batch():
    """All of the wines in every step, unshuffled, by L-BFGS."""
    x, y = standardized("wine")
    train = DataLoader(TensorDataset(x[:133], y[:133]), 133)
    val = DataLoader(TensorDataset(x[133:], y[133:]), 45)
    net = nn.Sequential(nn.Linear(13, 8), nn.Tanh(), nn.Linear(8, 3))
    return Classify(net, lambda ps: torch.optim.LBFGS(ps, lr=0.5, max_iter=4)), train, val


class Skips(Classify):
    """Returns nothing for every third batch, as if it had been found empty."""

    def on_fit_start(self):
        warnings.filterwarnings("ignore", ".*returned `None`.*on purpose")

    def training_step(self, batch, batch_idx):
        if batch_idx % 3 == 2:
            return None
        return super().training_step(batch, batch_idx)


class Later(Classify):
    """An auxiliary head that is trained only from the fortieth step on."""

    def __init__(self):
        super().__init__(small())
        self.aux = nn.Linear(64, 64)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_step >= 40:
            hidden = self.net[:3](batch[0])
            loss = loss + 0.1 * F.mse_loss(self.aux(hidden), batch[0].flatten(1))
        return loss


class Sampled(Classify):
    """Keeps dropout on in validation, and averages thirty samples of it."""

    def __init__(self):
        super().__init__(small(nn.Dropout(0.2)))

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.net[3].train()
        p = torch.stack([self(x).softmax(1) for _ in range(30)]).mean(0)
        self.net[3].eval()
        self.log("val_acc", (p.argmax(1) == y).float().mean())


class FromZero(Classify):
    """The learning rate begins at exactly zero and goes up and down in a cosine."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-2, weight_decay=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 - 0.5 * torch.cos(torch.tensor(step * 0.0419)).item()
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def unit_pixels():
    x, y = bundled("digits")
    return F.normalize(x - x.mean(0), dim=1) / 4, y


def fitted_trunk():
    x, y = images()
    return FixedTrunk(x[:1347].flatten(1)), *loaders(x, y)


def by_name(module):
    return lambda: (module(), *loaders(*images()))


ACC = {"metric": "val_acc"}
PROGRAMS = [
    Program("third_mean_teacher", by_name(MeanTeacher), **ACC),
    Program("third_random_features", trains(RandomFeatures), **ACC),
    Program("third_fixed_trunk", fitted_trunk, **ACC),
    Program("third_by_turns", ratings),
    Program("third_by_examples", by_name(ByExamples), **ACC),
    Program("third_zero_gates", trains(Gates), **ACC),
    Program("third_experts", trains(Experts), **ACC),
    Program("third_binary_units", trains(Binary), **ACC),
    Program("third_reversed_gradient", scanners, **ACC),
    Program("third_full_batch", full_batch, steps=100),
    Program("third_skips", lambda: (Skips(small()), *loaders(*images())), **ACC),
    Program("third_later_head", by_name(Later), **ACC),
    Program("third_sampled", by_name(Sampled), **ACC),
    Program("third_from_zero", lambda: (FromZero(small()), *loaders(*images())), **ACC),
    Program(
        "third_lr_of_12",
        trains(
            lambda: nn.Linear(64, 10), lambda ps: torch.optim.SGD(ps, lr=12.0), data=unit_pixels
        ),
    ),
    Program(
        "third_always_clipped",
        trains(small, lambda ps: torch.optim.SGD(ps, lr=2.0)),
        trainer={"gradient_clip_val": 0.1},
        **ACC,
    ),
    Program(
        "third_four_at_a_time",
        trains(small, lambda ps: torch.optim.RMSprop(ps, lr=2e-3), batch_size=16),
        trainer={"accumulate_grad_batches": 4},
        **ACC,
    ),
    Program("third_ordinary_mlp", trains(small), **ACC),
]
