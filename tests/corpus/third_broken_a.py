"""Broken programs of the final test, and their repaired twins: losses and what they are given."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.corpus.program import images, loaders, pair, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


def blobs(n=768, size=12):
    """Noisy pictures of a bright disc, and the disc as a mask."""
    g = rng(11)
    axis = torch.arange(size).float()
    centre = torch.rand(n, 2, 1, 1, generator=g) * (size - 4) + 2
    radius = 1.5 + 2 * torch.rand(n, 1, 1, generator=g)
    far = (axis.view(1, -1, 1) - centre[:, 0]) ** 2 + (axis.view(1, 1, -1) - centre[:, 1]) ** 2
    mask = (far < radius**2).float().unsqueeze(1)
    return mask * 1.5 + 0.6 * torch.randn(n, 1, size, size, generator=g) - 0.3, mask


class MajorityVote(LightningModule):
    """A small transformer that tells which of five symbols a sequence holds most often."""

    def __init__(self, probabilities):
        super().__init__()
        self.embed = nn.Embedding(5, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.classifier = nn.Sequential(nn.Linear(32, 5))
        if probabilities:
            self.classifier.append(nn.Softmax(dim=-1))
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, tokens):
        return self.classifier(self.encoder(self.embed(tokens)).mean(dim=1))

    def training_step(self, batch, batch_idx):
        tokens, label = batch
        loss = self.criterion(self(tokens), label)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        tokens, label = batch
        self.log("val_loss", self.criterion(self(tokens), label))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def majority(broken):
    tokens = torch.randint(0, 5, (2400, 11), generator=rng(0))
    # the last token breaks ties
    counts = F.one_hot(tokens, 5).sum(1).float() + 0.5 * F.one_hot(tokens[:, -1], 5)
    return MajorityVote(broken), *loaders(tokens, counts.argmax(1), batch_size=64)


class Notes(Dataset):
    """Short texts as token ids with the topics each of them mentions."""

    def __init__(self, n, seed):
        self.tokens = torch.randint(0, 30, (n, 12), generator=rng(seed))
        self.topics = F.one_hot(self.tokens % 10, 10).sum(1).gt(1).float()[:, :6]

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"tokens": self.tokens[index], "topics": self.topics[index]}


class TopicTagger(LightningModule):
    """Tells which topics a note mentions; several may be right."""

    def __init__(self, squash):
        super().__init__()
        self.bag = nn.EmbeddingBag(30, 48, mode="sum")
        self.mlp = nn.Sequential(nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 6))
        self.squash = squash

    def forward(self, tokens):
        scores = self.mlp(self.bag(tokens))
        return scores.sigmoid() if self.squash else scores

    def shared(self, batch, stage):
        scores = self(batch["tokens"])
        loss = F.binary_cross_entropy_with_logits(scores, batch["topics"])
        self.log(f"{stage}_loss", loss)
        return {"loss": loss, "scores": scores.detach()}

    def training_step(self, batch):
        return self.shared(batch, "train")

    def validation_step(self, batch):
        return self.shared(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def topics(broken):
    train, val = Notes(1600, 1), Notes(400, 2)
    return TopicTagger(broken), DataLoader(train, 64, shuffle=True), DataLoader(val, 100)


class DiscFinder(LightningModule):
    """Segments discs with one output channel; ``head`` turns it into a probability."""

    def __init__(self, head):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(12, 1, 3, padding=1),
            head,
        )
        self.loss = nn.BCELoss()

    def training_step(self, batch, batch_idx):
        image, mask = batch
        return self.loss(self.net(image), mask)

    def validation_step(self, batch, batch_idx):
        image, mask = batch
        found, there = self.net(image) > 0.5, mask > 0.5
        self.log("val_iou", (found & there).sum() / (found | there).sum())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def discs_softmax(broken):
    return DiscFinder(nn.Softmax(dim=1) if broken else nn.Sigmoid()), *loaders(*blobs())


class DiscSum(DiscFinder):
    """The same on logits with plain SGD, the loss added over all pixels."""

    def __init__(self, reduction):
        super().__init__(nn.Identity())
        self.loss = nn.BCEWithLogitsLoss(reduction=reduction)

    def validation_step(self, batch, batch_idx):
        image, mask = batch
        self.log("val_loss", F.binary_cross_entropy_with_logits(self.net(image), mask))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def discs_sum(broken):
    return DiscSum("sum" if broken else "mean"), *loaders(*blobs())


class Compressor(LightningModule):
    """A denoising autoencoder; ``bookkeeping`` gets the loss before it is returned."""

    def __init__(self, bookkeeping):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 16))
        self.decoder = nn.Sequential(nn.GELU(), nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 64))
        self.bookkeeping = bookkeeping

    def training_step(self, batch):
        clean = batch[0].flatten(1)
        out = self.decoder(self.encoder(clean + 0.2 * torch.randn_like(clean)))
        terms = {"mse": F.mse_loss(out, clean), "l1": 0.1 * F.l1_loss(out, clean)}
        return self.bookkeeping(terms["mse"] + terms["l1"])

    def validation_step(self, batch):
        clean = batch[0].flatten(1)
        self.log("val_mse", F.mse_loss(self.decoder(self.encoder(clean)), clean))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 4e-3)


def rewrapped(broken):
    def keep(loss):
        return torch.tensor(loss.item(), requires_grad=True) if broken else loss

    return Compressor(keep), *loaders(*images())


class Student(LightningModule):
    """Learns from the soft labels of a linear teacher fitted in closed form."""

    def __init__(self, teacher, own):
        super().__init__()
        self.register_buffer("teacher", teacher)
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.own = own

    def training_step(self, batch, _):
        x = batch[0].flatten(1)
        student = self.net(x)
        guide = student if self.own else 4 * x @ self.teacher
        target = F.softmax(guide, dim=1).detach()
        return F.kl_div(F.log_softmax(student, dim=1), target, reduction="batchmean")

    def validation_step(self, batch, _):
        self.log("val_acc", (self.net(batch[0].flatten(1)).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def distilled(broken):
    x, y = images()
    x = x.flatten(1)[:1300]
    ridge = torch.linalg.solve(x.T @ x + 30 * torch.eye(64), x.T @ F.one_hot(y[:1300], 10).float())
    return Student(ridge, broken), *loaders(*images())


class DigitVAE(LightningModule):
    """A variational autoencoder of the digits; ``minus`` is what makes the bound a loss."""

    def __init__(self, minus):
        super().__init__()
        self.enc = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2 * 8))
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64))
        self.minus = minus

    def elbo(self, x):
        mean, log_var = self.enc(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (log_var / 2).exp()
        fit = -0.5 * (self.dec(z) - x.flatten(1)).square().sum(1)
        kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1)
        return (fit - kl).mean()

    def training_step(self, batch, _):
        bound = self.elbo(batch[0])
        self.log("elbo", bound)
        return -bound if self.minus else bound

    def validation_step(self, batch, _):
        mean = self.enc(batch[0])[:, :8]
        self.log("val_mse", F.mse_loss(self.dec(mean), batch[0].flatten(1)))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def evidence(broken):
    return DigitVAE(minus=not broken), *loaders(*images())


class Amplitude(LightningModule):
    """A GRU that reads the amplitude off a noisy wave."""

    def __init__(self, squeeze):
        super().__init__()
        self.rnn = nn.GRU(1, 24, batch_first=True)
        self.out = nn.Linear(24, 1)
        self.squeeze = squeeze

    def forward(self, wave):
        _, last = self.rnn(wave)
        y = self.out(last[0])
        return y.squeeze(-1) if self.squeeze else y

    def training_step(self, batch, batch_idx):
        wave, amplitude = batch
        return ((self(wave) - amplitude) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        wave, amplitude = batch
        self.log("val_mae", (self(wave).flatten() - amplitude).abs().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def waves(broken):
    g = rng(5)
    size = 2 * torch.rand(1600, 1, generator=g) - 1
    wave = size * torch.sin(torch.arange(16) / 2) + 0.1 * torch.randn(1600, 16, generator=g)
    return Amplitude(not broken), *loaders(wave.unsqueeze(-1), 2 * size[:, 0], batch_size=64)


class TwoTargets(LightningModule):
    """Disease progression and body mass from a patient's record: a dict of two Huber losses."""

    def __init__(self, column):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(9, 32), nn.SiLU())
        self.heads = nn.ModuleDict({"progress": nn.Linear(32, 1), "mass": nn.Linear(32, 1)})
        self.column = column

    def forward(self, record):
        hidden = self.trunk(record)
        return {
            name: head(hidden) if self.column else head(hidden)[:, 0]
            for name, head in self.heads.items()
        }

    def training_step(self, batch, batch_idx):
        record, *wanted = batch
        losses = {
            f"loss_{name}": torch.where(
                (gap := (guess - target).abs()) < 1, 0.5 * gap**2, gap - 0.5
            ).mean()
            for (name, guess), target in zip(self(record).items(), wanted, strict=True)
        }
        self.log_dict(losses)
        return {"loss": sum(losses.values()), **{k: v.detach() for k, v in losses.items()}}

    def validation_step(self, batch, batch_idx):
        guesses = self(batch[0]).values()
        error = sum(F.mse_loss(g.flatten(), t) for g, t in zip(guesses, batch[1:], strict=True))
        self.log("val_mse", error)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=1e-3)


def two_targets(broken):
    x, y = standardized("diabetes")
    rest = x[:, [i for i in range(10) if i != 2]]
    return TwoTargets(broken), *loaders(rest, (y - y.mean()) / y.std(), x[:, 2])


PAIRS = [
    pair("third_majority_softmax", majority, "softmax_before_ce"),
    pair("third_topics_sigmoid", topics, "sigmoid_before_bce_logits"),
    pair(
        "third_discs_softmax",
        discs_softmax,
        "single_logit_softmax",
        metric="val_iou",
    ),
    pair(
        "third_discs_sum",
        discs_sum,
        "loss_reduction_sum",
        "lr_too_high",
        "exploding_gradients",
    ),
    pair(
        "third_loss_rewrapped",
        rewrapped,
        "loss_detached",
        "no_grad_flow",
        "weights_not_updating",
        metric="val_mse",
    ),
    pair(
        "third_own_teacher",
        distilled,
        "loss_detached",
        "no_grad_flow",
        "weights_not_updating",
        "vanishing_gradients",
        metric="val_acc",
    ),
    pair("third_elbo_sign", evidence, "loss_sign_flipped", metric="val_mse"),
    pair("third_wave_column", waves, "broadcast_mismatch", metric="val_mae"),
    pair("third_two_columns", two_targets, "broadcast_mismatch", metric="val_mse"),
]
