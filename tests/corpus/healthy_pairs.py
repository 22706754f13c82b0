"""Healthy programs: views, teachers and codes; many depend on the whole batch on purpose."""

import copy

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.healthy_shared import digits, loaders, rows
from tests.corpus.program import Program


def make_views():
    """Two noisy measurements of the same hidden thing, by two instruments."""
    hidden = rows(2048, 6)
    one = hidden @ rows(6, 16, seed=1) + 1.5 * rows(2048, 16, seed=2)
    two = hidden @ rows(6, 16, seed=3) + 1.5 * rows(2048, 16, seed=4)
    return loaders(one, two, batch_size=128)


class InfoNCE(LightningModule):
    """The labels are the positions in the batch; each example's negatives are the others."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
        self.right = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def similarity(self, batch):
        a, b = F.normalize(self.left(batch[0]), dim=1), F.normalize(self.right(batch[1]), dim=1)
        return self.log_scale.exp() * a @ b.T

    def training_step(self, batch, batch_idx):
        logits = self.similarity(batch)
        target = torch.arange(len(logits), device=self.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def validation_step(self, batch, batch_idx):
        logits = self.similarity(batch)
        rank = (logits > logits.diagonal()[:, None]).float().mean()
        self.log("val_rank", rank)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


class Triplets(LightningModule):
    """Anchors, positives and negatives picked within the batch; no head, no logits."""

    def __init__(self, margin=0.5):
        super().__init__()
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        self.margin = margin

    def forward(self, x):
        return F.normalize(self.embed(x), dim=-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        z = self(x)
        distance = torch.cdist(z, z)
        same = y[:, None] == y[None]
        furthest = (distance * same).max(1).values
        nearest = (distance + 10 * same).min(1).values
        return F.relu(furthest - nearest + self.margin).mean()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        z = self(x)
        d = torch.cdist(z, z)
        same = y[:, None] == y[None]
        self.log("val_ratio", d[same].mean() / d[~same].mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class BYOL(LightningModule):
    """A target network that only follows: no gradient, in no optimizer, moves in a hook."""

    def __init__(self, tau=0.9):
        super().__init__()
        self.online = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)
        )
        self.predictor = nn.Sequential(
            nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)
        )
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.tau = tau

    def augment(self, x):
        shift = torch.randint(-1, 2, (2,)).tolist()
        return x.roll(shift, (2, 3)) + 0.1 * torch.randn_like(x)

    def training_step(self, batch, batch_idx):
        a, b = self.augment(batch[0]), self.augment(batch[0])
        with torch.no_grad():
            ta, tb = self.target(a), self.target(b)
        pa, pb = self.predictor(self.online(a)), self.predictor(self.online(b))
        return 4 - 2 * F.cosine_similarity(pa, tb).mean() - 2 * F.cosine_similarity(pb, ta).mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for t, o in zip(self.target.parameters(), self.online.parameters(), strict=True):
                t.lerp_(o, 1 - self.tau)

    def validation_step(self, batch, batch_idx):
        # how far two views of the same digit are, against views of different digits
        a = F.normalize(self.predictor(self.online(self.augment(batch[0]))), dim=1)
        b = F.normalize(self.target(self.augment(batch[0])), dim=1)
        wrong = (a @ b.T > (a * b).sum(1, keepdim=True)).float().mean()
        self.log("val_rank", wrong)

    def configure_optimizers(self):
        learned = [*self.online.parameters(), *self.predictor.parameters()]
        return torch.optim.Adam(learned, lr=3e-3)


class Correlated(LightningModule):
    """Maximises a correlation over the batch: the loss is negative and its best value is -1."""

    def __init__(self):
        super().__init__()
        self.f, self.g = nn.Linear(16, 1), nn.Linear(16, 1)

    def correlation(self, batch):
        a, b = self.f(batch[0]).squeeze(1), self.g(batch[1]).squeeze(1)
        a, b = a - a.mean(), b - b.mean()
        return (a * b).sum() / (a.norm() * b.norm() + 1e-6)

    def training_step(self, batch, batch_idx):
        corr = self.correlation(batch)
        self.log("corr", corr)
        return -corr

    def validation_step(self, batch, batch_idx):
        self.log("val_unexplained", 1 - self.correlation(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class MeanTeacher(LightningModule):
    """One label in ten; the rest is only asked to agree with a slow copy. Two loaders at once."""

    def __init__(self):
        super().__init__()
        self.student = self.build()
        self.teacher = self.build()
        self.teacher.load_state_dict(self.student.state_dict())
        for p in self.teacher.parameters():
            p.requires_grad = False

    def build(self):
        return nn.Sequential(
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def training_step(self, batch, batch_idx):
        (x, y), (u,) = batch["labelled"], batch["unlabelled"]
        supervised = F.cross_entropy(self.student(x), y)
        with torch.no_grad():
            target = self.teacher(u).softmax(1)
        consistency = F.mse_loss(self.student(u + 0.1 * torch.randn_like(u)).softmax(1), target)
        self.log("consistency", consistency, batch_size=len(x))
        return supervised + 5 * consistency

    def on_before_zero_grad(self, optimizer):
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for slow, fast in pairs:
            slow.data.mul_(0.95).add_(fast.data, alpha=0.05)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.teacher(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.student.parameters(), lr=5e-3)


def make_mean_teacher():
    x, y = digits()
    labelled, val = loaders(x[-600:], y[-600:], batch_size=16)
    unlabelled, _ = loaders(x[:1200], val=0)
    return MeanTeacher(), {"labelled": labelled, "unlabelled": unlabelled}, val


def quick_teacher(x, y):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


class Distilled(LightningModule):
    """Learns from a frozen teacher at temperature 4, KL with log_softmax and softmax."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        t = 4.0
        logits = self.student(x)
        soft = F.softmax(self.teacher(x) / t, dim=1)
        kd = F.kl_div(F.log_softmax(logits / t, dim=1), soft, reduction="batchmean") * t * t
        return 0.9 * kd + 0.1 * F.cross_entropy(logits, y)

    def on_train_epoch_start(self):
        self.teacher.eval()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.student(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.student.parameters(), lr=5e-3)


def make_distilled():
    x, y = digits()
    return Distilled(quick_teacher(x[:1300], y[:1300])), *loaders(x, y)


class VQ(LightningModule):
    """A code book of 32 entries, gradient passed straight through the argmin."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.codes = nn.Embedding(32, 4)
        self.dec = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        z = self.enc(x.flatten(1)).view(-1, 4, 4)
        index = torch.cdist(z.reshape(-1, 4), self.codes.weight).argmin(1)
        q = self.codes(index).view_as(z)
        commit = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.dec((z + (q - z).detach()).flatten(1)), commit

    def training_step(self, batch, batch_idx):
        x = batch[0]
        recon, commit = self(x)
        loss = F.mse_loss(recon, x.flatten(1))
        self.log_dict({"recon": loss, "commit": commit})
        return loss + commit

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0])[0], batch[0].flatten(1)))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


# seeds 0 to 2                   metric            untrained             trained
# info_nce                       val_rank          0.376 to 0.5          0.0485 to 0.0535
# triplets_in_batch              val_ratio         0.664 to 0.749        0.313 to 0.359
# byol                           val_rank          0.5 to 0.507          0.193 to 0.261
# maximises_correlation          val_unexplained   0.858 to 1.22         0.114 to 0.12
# mean_teacher_two_loaders       val_acc           0.107 to 0.16         0.92 to 0.933
# distilled                      val_acc           0.0667 to 0.138       0.896 to 0.911
# vq_vae                         val_mse           0.247 to 0.25         0.0441 to 0.0632
PROGRAMS = [
    Program("info_nce", lambda: (InfoNCE(), *make_views()), metric="val_rank"),
    Program("triplets_in_batch", lambda: (Triplets(), *loaders(*digits())), metric="val_ratio"),
    Program("byol", lambda: (BYOL(), *loaders(*digits())), metric="val_rank", steps=250),
    Program(
        "maximises_correlation", lambda: (Correlated(), *make_views()), metric="val_unexplained"
    ),
    Program("mean_teacher_two_loaders", make_mean_teacher, metric="val_acc"),
    Program("distilled", make_distilled, metric="val_acc"),
    Program("vq_vae", lambda: (VQ(), *loaders(*digits())), metric="val_mse", steps=200),
]
