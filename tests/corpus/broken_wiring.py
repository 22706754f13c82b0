"""Programs whose parameters, modes or steps are wired wrongly."""

import itertools

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.broken_losses import on, progression, wine
from tests.corpus.program import images, pair


class ManualDigits(LightningModule):
    """Steps by hand and forgets to clear the gradients."""

    def __init__(self, broken=False):
        super().__init__()
        self.automatic_optimization = False
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.broken = broken

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        if not self.broken:
            opt.zero_grad()
        self.manual_backward(loss)
        opt.step()
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Adversarial(LightningModule):
    """Two-dimensional GAN; the critic's optimizer is never cleared of the generator's gradients."""

    def __init__(self, broken=False):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.broken = broken

    def score(self, x, real):
        logits = self.critic(x)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn_like(x))
        if not self.broken:
            opt_d.zero_grad()
        self.manual_backward(self.score(x, 1.0) + self.score(fake.detach(), 0.0))
        opt_d.step()
        opt_g.zero_grad()
        self.manual_backward(self.score(fake, 1.0))
        opt_g.step()

    def validation_step(self, batch, batch_idx):
        fake = self.generator(torch.randn(1000, 2))
        self.log("val_gap", (fake.mean(0) - batch[0].mean(0)).norm())

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=5e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=5e-3, betas=(0.5, 0.9)),
        ]


class OneSidedGAN(Adversarial):
    """Both optimizers were given the critic."""

    def __init__(self, broken=False):
        super().__init__()
        self.swapped = broken

    def configure_optimizers(self):
        network = self.critic if self.swapped else self.generator
        return (
            torch.optim.Adam(network.parameters(), lr=5e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=5e-3, betas=(0.5, 0.9)),
        )


def cloud():
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(800, 2, generator=generator) * 0.5 + torch.tensor([3.0, -2.0]),)


class Accumulating(LightningModule):
    """Adds up eight batches by hand; the sum is not divided by eight."""

    def __init__(self, broken=False):
        super().__init__()
        self.automatic_optimization = False
        self.fc1, self.fc2 = nn.Linear(13, 32), nn.Linear(32, 3)
        self.every, self.broken = 8, broken

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.manual_backward(loss if self.broken else loss / self.every)
        if (batch_idx + 1) % self.every == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0, momentum=0.9)


class NormCNN(LightningModule):
    """BatchNorm that was put into eval mode: raw pixels go through unnormalised."""

    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm2d(1),
            nn.Conv2d(1, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )
        if broken:
            self.net.eval()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x * 3 + 8), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.net(x * 3 + 8), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class PredictsWhileTraining(LightningModule):
    """Looks at its own predictions every few steps and stays in eval mode."""

    def __init__(self, broken=False):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.BatchNorm1d(10), nn.Linear(10, 64), nn.Linear(64, 1)
        self.broken = broken

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(self.norm(x * 9)))).squeeze(1)

    def on_train_batch_start(self, batch, batch_idx):
        self.eval()
        with torch.no_grad():
            self.log("mean_prediction", self(batch[0]).mean())
        if not self.broken:
            self.train()

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TrainsInValidation(LightningModule):
    """A shared step that switches to training mode whatever the stage."""

    def __init__(self, broken=False):
        super().__init__()
        hidden = [nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5)]
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))
        self.broken = broken

    def _step(self, batch, stage):
        if self.broken:
            self.train()
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log(f"{stage}_loss", loss, on_epoch=True, on_step=False)
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class TrainsNormInValidation(LightningModule):
    """One validation example at a time through a BatchNorm that is live."""

    def __init__(self, broken=False):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)
        self.broken = broken

    def forward(self, x):
        return self.head(F.relu(self.bn(self.conv(x))).amax((2, 3)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        if self.broken:
            self.bn.train()
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)


class Frozen(LightningModule):
    """Freezes a trunk that nobody has trained."""

    def __init__(self, broken=False):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
        self.head = nn.Linear(4, 10)
        if broken:
            self.trunk.requires_grad_(False)

    def forward(self, x):
        return self.head(F.relu(self.trunk(x)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=1e-2)


class NoGradTrunk(Frozen):
    """Extracts features under no_grad, a leftover of a pretrained trunk."""

    def __init__(self, broken=False):
        super().__init__()
        self.grad = not broken

    def forward(self, x):
        with torch.set_grad_enabled(self.grad and torch.is_grad_enabled()):
            features = self.trunk(x)
        return self.head(F.relu(features))


class HeadLeftOut(LightningModule):
    """An optimizer over the backbone alone."""

    def __init__(self, broken=False):
        super().__init__()
        self.backbone = nn.LSTM(8, 24, batch_first=True)
        self.head = nn.Linear(24, 10)
        nn.init.zeros_(self.head.bias)
        self.broken = broken

    def training_step(self, batch, batch_idx):
        out, _ = self.backbone(batch[0].squeeze(1))
        return F.cross_entropy(self.head(out[:, -1]), batch[1])

    def validation_step(self, batch, batch_idx):
        out, _ = self.backbone(batch[0].squeeze(1))
        self.log("val_loss", F.cross_entropy(self.head(out[:, -1]), batch[1]))

    def configure_optimizers(self):
        parts = [self.backbone] if self.broken else [self.backbone, self.head]
        params = itertools.chain.from_iterable(p.parameters() for p in parts)
        return torch.optim.Adam(params, lr=3e-3)


class PlainList(LightningModule):
    """Layers in a Python list are no part of the module."""

    def __init__(self, broken=False):
        super().__init__()
        layers = [nn.Linear(10, 16), nn.Linear(16, 16), nn.Linear(16, 1)]
        self.layers = layers if broken else nn.ModuleList(layers)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.silu(layer(x))
        return self.scale * self.layers[-1](x).squeeze(-1)

    def training_step(self, batch, batch_idx):
        return F.huber_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


PAIRS = [
    pair("no_zero_grad", on(ManualDigits, images), "missing_zero_grad"),
    pair("no_zero_grad_gan", on(Adversarial, cloud), "missing_zero_grad", metric="val_gap"),
    pair("one_sided_gan", on(OneSidedGAN, cloud), "params_not_in_optimizer", "weights_not_updating",
         metric="val_gap"),
    pair("sum_of_batches", on(Accumulating, wine, batch_size=8), "accumulation_unscaled",
         "lr_too_high"),
    pair("batchnorm_eval", on(NormCNN, images), "eval_mode_in_training", steps=60),
    pair("stays_in_eval", on(PredictsWhileTraining, progression), "eval_mode_in_training",
         metric="val_mse"),
    pair("dropout_in_val", on(TrainsInValidation, images), "train_mode_in_validation"),
    pair("batchnorm_in_val", on(TrainsNormInValidation, images, val_batch_size=2),
         "train_mode_in_validation"),
    pair("frozen_trunk", on(Frozen, images), "frozen_params"),
    pair("no_grad_trunk", on(NoGradTrunk, images), "no_grad_flow", "frozen_params",
         "loss_detached"),
    pair("head_left_out", on(HeadLeftOut, images), "params_not_in_optimizer"),
    pair("plain_list", on(PlainList, progression), "params_not_in_optimizer",
         metric="val_mse"),
]  # fmt: skip
