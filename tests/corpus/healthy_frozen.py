"""Healthy programs: frozen, adapted or unused parameters and gradients of their own."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.healthy_shared import digits, loaders
from tests.corpus.program import Program


def low_and_high():
    """Digits 0 to 4 for pretraining, 5 to 9 (as 0 to 4) for the task."""
    x, y = digits()
    return (x[y < 5], y[y < 5]), (x[y >= 5], y[y >= 5] - 5)


def pretrained_trunk():
    (x, y), _ = low_and_high()
    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 48),
        nn.ReLU(),
        nn.Dropout(0.1),
    )
    net = nn.Sequential(trunk, nn.Linear(48, 5))
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for part in torch.arange(len(y)).split(64) * 8:
        optimizer.zero_grad()
        F.cross_entropy(net(x[part]), y[part]).backward()
        optimizer.step()
    return trunk


class Transfer(LightningModule):
    """A pretrained trunk, frozen and kept in eval mode; only the new head learns."""

    def __init__(self):
        super().__init__()
        self.trunk = pretrained_trunk()
        self.trunk.requires_grad_(False)
        self.head = nn.Linear(48, 5)

    def train(self, mode=True):
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            features = self.trunk(x)
        return self.head(features)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.head.parameters(), lr=1e-2)


class FineTune(LightningModule):
    """Trunk at 1e-4 in one group and a new head at 1e-2 in another; BatchNorm stays in eval."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(pretrained_trunk(), nn.Linear(48, 5))

    def on_train_epoch_start(self):
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [
                {"params": self.model[0].parameters(), "lr": 1e-4},
                {"params": self.model[1].parameters(), "lr": 1e-2},
            ]
        )


class LoRALinear(nn.Module):
    def __init__(self, base, rank=6):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


class LoRA(LightningModule):
    """Adapters beside frozen layers; B starts at zero, so A has zero gradient at step 0."""

    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5))
        (x, y), _ = low_and_high()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(50):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        self.net = nn.Sequential(net[0], LoRALinear(net[1]), net[2], LoRALinear(net[3]))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        trainable = filter(lambda p: p.requires_grad, self.parameters())
        return torch.optim.Adam(trainable, lr=1e-2)


class RandomFeatures(LightningModule):
    """A random first layer in a parameter group of lr 0, an extreme learning machine."""

    def __init__(self):
        super().__init__()
        self.random = nn.Linear(64, 256)
        self.readout = nn.Linear(256, 10)

    def forward(self, x):
        return self.readout(torch.relu(self.random(x.flatten(1))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        groups = [
            {"params": self.random.parameters(), "lr": 0.0, "weight_decay": 0.0},
            {"params": self.readout.parameters()},
        ]
        return torch.optim.AdamW(groups, lr=1e-2)


class LateAuxiliary(LightningModule):
    """The auxiliary head joins after the first epoch; until then it has no gradient."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.digit = nn.Linear(48, 10)
        self.ink = nn.Linear(48, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        h = self.body(x)
        loss = F.cross_entropy(self.digit(h), y)
        if self.current_epoch >= 1:
            loss = loss + F.mse_loss(self.ink(h).squeeze(1), x.mean((1, 2, 3)))
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.digit(self.body(x)).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Experts(LightningModule):
    """Each example goes to one expert; one that got no example has no gradient."""

    def __init__(self, experts=8):
        super().__init__()
        self.gate = nn.Linear(64, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)) for _ in range(experts)
        )

    def forward(self, x):
        x = x.flatten(1)
        weight, chosen = self.gate(x).softmax(1).max(1)
        out = x.new_zeros(len(x), 10)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                out[mine] = expert(x[mine]) * weight[mine, None]
        return out

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Binarised(LightningModule):
    """Binary activations; the straight-through gradient is wrong on purpose."""

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.where(x >= 0, 1.0, -1.0)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return grad * (x.abs() <= 1)

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 96), nn.Linear(96, 10)
        self.bn = nn.BatchNorm1d(96)

    def forward(self, x):
        return self.fc2(self.Sign.apply(self.bn(self.fc1(x.flatten(1)))))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Quantised(LightningModule):
    """Weights rounded to four bits in the forward, learned in full precision (detach trick)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 10)

    def fake_quant(self, w):
        step = w.detach().abs().max() / 7
        return w + ((w / step).round().clamp(-7, 7) * step - w).detach()

    def forward(self, x):
        x = F.relu(F.linear(x.flatten(1), self.fake_quant(self.a.weight), self.a.bias))
        return F.linear(x, self.fake_quant(self.b.weight), self.b.bias)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Swish(torch.autograd.Function):
    """x * sigmoid(x) that keeps only its input; the derivative is right."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad_output * (s * (1 + x * (1 - s)))


class MemorySaving(LightningModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.fc = nn.Linear(256, 10)

    def forward(self, x):
        return self.fc(F.avg_pool2d(Swish.apply(self.conv(x)), 2).flatten(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def on_digits(module):
    return lambda: (module(), *loaders(*digits()))


# seeds 0 to 2                   metric            untrained             trained
# frozen_trunk                   val_acc           0.152 to 0.237        0.768 to 0.853
# fine_tuned                     val_acc           0.152 to 0.237        0.875 to 0.929
# lora                           val_acc           0.188 to 0.214        0.969 to 0.973
# group_with_lr_zero             val_acc           0.0622 to 0.189       0.944 to 0.956
# unused_in_first_epoch          val_acc           0.0822 to 0.113       0.922 to 0.933
# top_one_experts                val_acc           0.0667 to 0.218       0.938 to 0.942
# straight_through_sign          val_acc           0.0578 to 0.104       0.94 to 0.958
# quantised_weights              val_acc           0.0778 to 0.136       0.944 to 0.951
# own_autograd_function          val_acc           0.156 to 0.189        0.947 to 0.96
PROGRAMS = [
    Program(
        "frozen_trunk_of_features",
        lambda: (Transfer(), *loaders(*low_and_high()[1])),
        metric="val_acc",
        steps=300,
    ),
    Program("fine_tuned", lambda: (FineTune(), *loaders(*low_and_high()[1])), metric="val_acc"),
    Program("lora", lambda: (LoRA(), *loaders(*low_and_high()[1])), metric="val_acc"),
    Program("group_with_lr_zero", on_digits(RandomFeatures), metric="val_acc"),
    Program("unused_in_first_epoch", on_digits(LateAuxiliary), metric="val_acc"),
    Program("top_one_experts", on_digits(Experts), metric="val_acc", steps=200),
    Program("straight_through_sign", on_digits(Binarised), metric="val_acc"),
    Program("quantised_weights", on_digits(Quantised), metric="val_acc"),
    Program("own_autograd_function", on_digits(MemorySaving), metric="val_acc"),
]
