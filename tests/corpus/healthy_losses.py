"""Healthy programs: classification losses that a naive check takes for mistakes."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.healthy_shared import digits, loaders, rows, table
from tests.corpus.program import Program


class LogSoftmaxNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.fc1(x.flatten(1)))
        return F.log_softmax(self.fc2(x), dim=1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class ProbabilityNet(LightningModule):
    """Returns probabilities, takes the log itself."""

    def __init__(self, hidden=64, lr=3e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10), nn.Softmax(dim=1)
        )
        self.criterion = nn.NLLLoss()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        probabilities = self(images)
        loss = self.criterion(torch.log(probabilities + 1e-8), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_acc", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class TumourNet(LightningModule):
    """Sigmoid in the model, BCELoss on probabilities, targets reshaped to the output."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 1), nn.Sigmoid())
        self.loss = nn.BCELoss()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss(self.layers(x), y.float().unsqueeze(1))

    def validation_step(self, batch, batch_idx):
        x, y = batch
        p = self.layers(x).squeeze(1)
        self.log("val_loss", F.binary_cross_entropy(p, y.float()))
        self.log("val_acc", ((p > 0.5) == (y == 1)).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class SoftTargets(LightningModule):
    """The targets are what five annotators said, as fractions; the loss has a floor far above 0."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))

    def training_step(self, batch, batch_idx):
        x, votes = batch
        return F.cross_entropy(self.net(x), votes)

    def validation_step(self, batch, batch_idx):
        x, votes = batch
        logp = F.log_softmax(self.net(x), dim=1)
        self.log("val_kl", F.kl_div(logp, votes, reduction="batchmean"))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def make_soft_targets():
    x = rows(1024, 12)
    logits = 1.5 * x[:, :4] + x[:, 4:8] * x[:, 8:]
    generator = torch.Generator().manual_seed(3)
    votes = torch.multinomial(logits.softmax(1), 5, replacement=True, generator=generator)
    return SoftTargets(), *loaders(x, F.one_hot(votes, 4).float().mean(1))


class SmoothedAndWeighted(LightningModule):
    """Label smoothing together with class weights."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 10))
        weight = torch.tensor([1.0, 1, 1, 1, 1, 2, 2, 3, 3, 5])
        self.ce = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.2)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.ce(self.net(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=0.05)


class Scribbles(LightningModule):
    """Bright or dark, per pixel; nine pixels of ten are not labelled (255)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 3, 3, padding=1)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y, ignore_index=255)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        known = y != 255
        self.log("val_acc", (self.net(x).argmax(1) == y)[known].float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_scribbles():
    images, _ = digits()
    smooth = F.avg_pool2d(images, 3, 1, 1).squeeze(1)
    labels = (smooth > 0.2).long() + (smooth > 0.5).long()
    hidden = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.9
    return Scribbles(), *loaders(images, labels.masked_fill(hidden, 255))


class Mixup(LightningModule):
    def __init__(self, alpha=0.4):
        super().__init__()
        self.beta = torch.distributions.Beta(alpha, alpha)
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        return self.head(self.cnn(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        lam = self.beta.sample().item()
        other = torch.randperm(len(x), device=x.device)
        logits = self(lam * x + (1 - lam) * x[other])
        return lam * F.cross_entropy(logits, y) + (1 - lam) * F.cross_entropy(logits, y[other])

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class FocalDetector(LightningModule):
    """Rare positives, RetinaNet's focal loss and its prior in the bias: starts near zero."""

    def __init__(self, gamma=2.0, alpha=0.75, prior=0.03):
        super().__init__()
        self.gamma, self.alpha = gamma, alpha
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
        nn.init.constant_(self.net[-1].bias, -math.log((1 - prior) / prior))

    def focal(self, logit, y):
        bce = F.binary_cross_entropy_with_logits(logit, y, reduction="none")
        p = torch.sigmoid(logit)
        pt = torch.where(y == 1, p, 1 - p)
        at = torch.where(y == 1, self.alpha, 1 - self.alpha)
        return (at * (1 - pt) ** self.gamma * bce).mean()

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.focal(self.net(x).squeeze(-1), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_focal", self.focal(self.net(x).squeeze(-1), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_focal():
    x = rows(2048, 10)
    return FocalDetector(), *loaders(x, (x[:, 0] + x[:, 1] > 2.6).float())


class StructuredHinge(LightningModule):
    """CS231n's multiclass SVM, written as its notes write it."""

    def __init__(self, reg=1e-3):
        super().__init__()
        self.reg = reg
        self.W = nn.Parameter(torch.randn(65, 10) * 1e-4)

    def forward(self, x):
        x = x.flatten(1)
        return torch.cat([x, torch.ones(len(x), 1, device=x.device)], 1) @ self.W

    def training_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        right = scores.gather(1, y[:, None])
        margins = (scores - right + 1).clamp(min=0)
        margins = margins.scatter(1, y[:, None], 0.0)
        return margins.sum() / len(x) + self.reg * (self.W**2).sum()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class OneHotBCE(LightningModule):
    """Ten sigmoids for one class of ten, summed over the classes: starts at 10 ln 2."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        target = F.one_hot(y, 10).float()
        loss = F.binary_cross_entropy_with_logits(self.net(x), target, reduction="none")
        return loss.sum(1).mean()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class CosineHead(LightningModule):
    """Normalised features and class vectors, times 16: starts above ln 10."""

    def __init__(self, scale=16.0):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.classes = nn.Parameter(torch.randn(10, 32))
        self.scale = scale

    def forward(self, x):
        cosine = F.normalize(self.body(x), dim=1) @ F.normalize(self.classes, dim=1).T
        return self.scale * cosine

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y, reduction="sum") / x.shape[0]
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def on_digits(module):
    return lambda: (module(), *loaders(*digits()))


# seeds 0 to 2                   metric            untrained             trained
# log_softmax_then_cross_entropy val_acc           0.0778 to 0.149       0.931 to 0.938
# softmax_then_log_then_nll      val_acc           0.0778 to 0.149       0.931 to 0.938
# sigmoid_then_bce               val_loss          0.64 to 0.798         0.0862 to 0.101
# soft_targets                   val_kl            0.758 to 0.777        0.318 to 0.325
# smoothed_and_weighted          val_acc           0.0667 to 0.107       0.911 to 0.92
# most_pixels_ignored            val_acc           0.19 to 0.377         0.963 to 0.965
# mixup                          val_acc           0.1 to 0.122          0.909 to 0.931
# focal_by_hand                  val_focal         0.0659 to 0.0739      0.00285 to 0.00372
# weston_watkins_by_hand         val_acc           0.0556 to 0.109       0.944 to 0.964
# one_hot_bce_summed             val_acc           0.0689 to 0.1         0.887 to 0.909
# cosine_head_sum_over_batch     val_acc           0.0822 to 0.102       0.96 to 0.971
PROGRAMS = [
    Program("log_softmax_then_cross_entropy", on_digits(LogSoftmaxNet), metric="val_acc"),
    Program("softmax_then_log_then_nll", on_digits(ProbabilityNet), metric="val_acc"),
    Program(
        "sigmoid_then_bce",
        lambda: (TumourNet(), *loaders(*table("breast_cancer"))),
        note="right loss for probabilities",
    ),
    Program("soft_targets", make_soft_targets, metric="val_kl", note="the loss has a floor"),
    Program("smoothed_and_weighted", on_digits(SmoothedAndWeighted), metric="val_acc", steps=250),
    Program("most_pixels_ignored", make_scribbles, metric="val_acc"),
    Program("mixup", on_digits(Mixup), metric="val_acc"),
    Program("focal_by_hand", make_focal, metric="val_focal", steps=200),
    Program("weston_watkins_by_hand", on_digits(StructuredHinge), metric="val_acc"),
    Program("one_hot_bce_summed", on_digits(OneHotBCE), metric="val_acc"),
    Program("cosine_head_sum_over_batch", on_digits(CosineHead), metric="val_acc"),
]
