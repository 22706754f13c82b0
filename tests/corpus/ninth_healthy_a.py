"""Twenty-six healthy programs, many with something that looks odd at first sight.

Each of them trains well. What a hasty reader may object to stands in the program's note.
"""

import copy
import functools
import math
import random

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from .program import Program, bundled, images, loaders


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- 1. A language model over characters -------------------------------------------------------

NOUNS = [
    "otter",
    "lantern",
    "bridge",
    "kettle",
    "sparrow",
    "wagon",
    "meadow",
    "clock",
    "ladder",
    "harbour",
]
ADJECTIVES = ["quiet", "green", "rusty", "small", "bright", "hollow", "early", "heavy"]
VERBS = ["follows", "carries", "watches", "repairs", "paints", "avoids"]
PLACES = ["mill", "river", "market", "station", "garden", "tower"]


@functools.cache
def chatter(count, seed):
    """Sentences of a toy grammar as character codes, and the size of the alphabet."""
    rng = random.Random(seed)
    parts = []
    for _ in range(count):
        sentence = f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} "
        if rng.random() < 0.5:
            sentence += f"{rng.randint(2, 9)} {rng.choice(NOUNS)}s "
        else:
            sentence += f"a {rng.choice(NOUNS)} "
        if rng.random() < 0.6:
            sentence += f"near the {rng.choice(PLACES)} "
        parts.append(sentence[:-1] + ". ")
    alphabet = "abcdefghijklmnopqrstuvwxyz 0123456789."
    return torch.tensor([alphabet.index(c) for c in "".join(parts)]), len(alphabet)


class CausalBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        b, t, w = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, t, w))
        return x + self.mlp(self.norm2(x))


class TiedCharModel(LightningModule):
    def __init__(self, vocabulary, context=48, width=48):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(CausalBlock(width, 4), CausalBlock(width, 4))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, codes):
        x = self.tokens(codes) + self.positions[: codes.shape[1]]
        return self.head(self.norm(self.blocks(x)))

    def loss(self, batch):
        (codes,) = batch
        logits = self(codes[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), codes[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("val_loss", loss, prog_bar=True)
        self.log("val_bits_per_char", loss / math.log(2))

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.dim() > 1]
        vectors = [p for p in self.parameters() if p.dim() <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=4e-3,
            betas=(0.9, 0.98),
        )
        total, warm = int(self.trainer.estimated_stepping_batches), 60

        def rate(step):
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / (total - warm))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def char_language_model():
    text, vocabulary = chatter(1500, 5)
    windows = text.unfold(0, 49, 36)
    cut = len(windows) * 4 // 5
    train = DataLoader(TensorDataset(windows[:cut]), 16, shuffle=True, drop_last=True)
    val = DataLoader(TensorDataset(windows[cut + 2 :]), 128)
    return TiedCharModel(vocabulary), train, val


# --- 2. A new head on a pretrained backbone, unfrozen from the top down -------------------------


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.top = nn.Sequential(
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.Conv2d(48, 48, 3, stride=2, padding=1),
            nn.BatchNorm2d(48),
            nn.ReLU(),
        )

    def forward(self, x):
        return self.top(self.stem(x)).mean((2, 3))


@functools.cache
def low_digit_weights():
    """A backbone that has learnt to tell the digits below five, as if downloaded."""
    x, y = images()
    x, y = x[y < 5], y[y < 5]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        backbone, head = Backbone(), nn.Linear(48, 5)
        parameters = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=3e-3)
        for _ in range(12):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(head(backbone(x[rows])), y[rows]).backward()
                optimizer.step()
    return backbone.state_dict()


class GradualUnfreezing(LightningModule):
    """The head alone for four epochs, then with the upper part, from epoch eight on all of it."""

    def __init__(self, weights):
        super().__init__()
        self.backbone = Backbone()
        self.backbone.load_state_dict(weights)
        self.head = nn.Linear(48, 5)
        self.backbone.requires_grad_(False)

    def forward(self, x):
        return self.head(self.backbone(x))

    def on_train_epoch_start(self):
        if self.current_epoch >= 4:
            self.backbone.top.requires_grad_(True)
        if self.current_epoch >= 8:
            self.backbone.stem.requires_grad_(True)
        # statistics of the batch normalisation stay those of the pretraining
        self.backbone.eval()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val/loss", F.cross_entropy(logits, y))
        self.log("val/acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(
            [
                {"params": self.backbone.stem.parameters(), "lr": 1e-4},
                {"params": self.backbone.top.parameters(), "lr": 5e-4},
                {"params": self.head.parameters(), "lr": 1e-2},
            ],
            weight_decay=1e-2,
        )
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)]


def gradual_unfreezing():
    x, y = images()
    high = y >= 5
    train, val = loaders(x[high], y[high] - 5, batch_size=16)
    return GradualUnfreezing(low_digit_weights()), train, val


# --- 3. Low-rank adapters on a frozen network ---------------------------------------------------


class LowRank(nn.Module):
    """A frozen linear layer and a trainable low-rank correction that starts at nothing."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


def plain_mlp():
    return nn.Sequential(
        nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10)
    )


@functools.cache
def upright_weights():
    """An MLP trained on the digits as they are."""
    x, y = images()
    x = x.flatten(1)
    with torch.random.fork_rng():
        torch.manual_seed(12)
        net = plain_mlp()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
        for _ in range(10):
            for rows in torch.randperm(len(x) * 3 // 4).split(32):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows], label_smoothing=0.1).backward()
                optimizer.step()
    return net.state_dict()


class AdaptedDigits(LightningModule):
    def __init__(self, weights, rank=8):
        super().__init__()
        net = plain_mlp()
        net.load_state_dict(weights)
        for i in (0, 2, 4):
            net[i] = LowRank(net[i], rank, alpha=16)
        self.net = net

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log_dict(
            {
                "val_loss": F.cross_entropy(logits, y),
                "val_acc": (logits.argmax(1) == y).float().mean(),
            }
        )

    def configure_optimizers(self):
        trainable = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
        return [optimizer], [scheduler]


def low_rank_adapters():
    x, y = images()
    sideways = x.transpose(2, 3).flatten(1)
    train, val = loaders(sideways, y, batch_size=16)
    return AdaptedDigits(upright_weights()), train, val


# --- 4. A deep ReZero network under a one-cycle rate --------------------------------------------


@functools.cache
def spirals(count, seed):
    g = seeded(seed)
    labels = torch.randint(3, (count,), generator=g)
    t = torch.rand(count, generator=g).sqrt()
    angle = 3.6 * t + labels * (2 * math.pi / 3)
    points = torch.stack([t * angle.cos(), t * angle.sin()], 1)
    points = points + 0.06 * torch.randn(count, 2, generator=g)
    return points / points.std(0), labels


class ReZeroBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * self.inner(x)


class DeepSpirals(LightningModule):
    def __init__(self, blocks=14, width=32, steps=700):
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(
            nn.Linear(2, width),
            *(ReZeroBlock(width) for _ in range(blocks)),
            nn.Linear(width, 3),
        )

    def training_step(self, batch, batch_idx):
        points, labels = batch
        loss = F.cross_entropy(self.net(points), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        points, labels = batch
        logits = self.net(points)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_acc", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=4e-3, total_steps=self.steps
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def rezero_one_cycle():
    train, val = loaders(*spirals(5120, 21), batch_size=64, val_batch_size=256)
    return DeepSpirals(steps=12 * len(train)), train, val


# --- 5. Sequence to sequence with teacher forcing -----------------------------------------------

PAD, GO = 0, 1


@functools.cache
def reversals(count, seed):
    """Strings of three to seven of eight symbols, padded, and the same reversed."""
    g = seeded(seed)
    lengths = torch.randint(3, 8, (count, 1), generator=g)
    symbols = torch.randint(2, 10, (count, 7), generator=g)
    place = torch.arange(7).expand(count, 7)
    source = symbols.where(place < lengths, torch.tensor(PAD))
    target = source.gather(1, (lengths - 1 - place) % 7)
    return source, target.where(place < lengths, torch.tensor(PAD)), lengths[:, 0]


class Reverser(LightningModule):
    def __init__(self, width=64):
        super().__init__()
        self.embed = nn.Embedding(10, 32, padding_idx=PAD)
        self.encoder = nn.GRU(32, width // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.GRU(32, width, batch_first=True)
        self.start = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.head = nn.Linear(2 * width, 10)

    def encode(self, source, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(source), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, last = self.encoder(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=7)
        return states, torch.tanh(self.start(torch.cat([last[0], last[1]], 1)))[None]

    def decode(self, previous, states, hidden, source):
        out, hidden = self.decoder(self.embed(previous), hidden)
        scores = self.query(out) @ states.transpose(1, 2) / out.shape[-1] ** 0.5
        scores = scores.masked_fill((source == PAD)[:, None], -1e9)
        return self.head(torch.cat([out, scores.softmax(-1) @ states], -1)), hidden

    def teacher_forced(self, batch):
        source, target, lengths = batch
        states, hidden = self.encode(source, lengths)
        previous = torch.cat([torch.full_like(target[:, :1], GO), target[:, :-1]], 1)
        logits, _ = self.decode(previous, states, hidden, source)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD)

    def training_step(self, batch, batch_idx):
        loss = self.teacher_forced(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        source, target, lengths = batch
        self.log("val/loss", self.teacher_forced(batch))
        states, hidden = self.encode(source, lengths)
        symbol, said = torch.full_like(target[:, :1], GO), []
        for _ in range(7):
            logits, hidden = self.decode(symbol, states, hidden, source)
            symbol = logits.argmax(-1)
            said.append(symbol)
        right = (torch.cat(said, 1) == target) | (target == PAD)
        self.log("val/sequence_acc", right.all(1).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)
        return [optimizer], [scheduler]


def seq2seq_reversal():
    train, val = loaders(*reversals(20000, 31), batch_size=125, val_batch_size=500)
    return Reverser(), train, val


# --- 6. Segmentation with a Dice loss and batches of eight --------------------------------------


@functools.cache
def ellipses(count, seed):
    """Noisy pictures of one to three bright ellipses and a bright bar that is not wanted."""
    g = seeded(seed)
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    pictures, masks = [], []
    for _ in range(count):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        for _ in range(int(torch.randint(1, 4, (), generator=g))):
            cy, cx = (5 + 22 * torch.rand(2, generator=g)).tolist()
            ry, rx = (2.5 + 4 * torch.rand(2, generator=g)).tolist()
            mask |= ((ys - cy) / ry) ** 2 + ((xs - cx) / rx) ** 2 < 1
        row = int(torch.randint(1, 29, (), generator=g))
        bar = torch.zeros(32, 32, dtype=torch.bool)
        bar[row : row + 2] = True
        picture = (mask | bar).float() + 0.35 * torch.randn(32, 32, generator=g)
        pictures.append((picture - picture.mean()) / picture.std())
        masks.append(mask.float())
    return torch.stack(pictures)[:, None], torch.stack(masks)[:, None]


def double_conv(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class SmallUNet(LightningModule):
    def __init__(self):
        super().__init__()
        self.enter = double_conv(1, 8)
        self.down = double_conv(8, 16)
        self.bottom = double_conv(16, 24)
        self.up2 = double_conv(40, 16)
        self.up1 = double_conv(24, 8)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        a = self.enter(x)
        b = self.down(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([b, F.interpolate(c, scale_factor=2)], 1))
        a = self.up1(torch.cat([a, F.interpolate(b, scale_factor=2)], 1))
        return self.head(a)

    @staticmethod
    def dice_loss(logits, mask):
        p = logits.sigmoid()
        both = (p * mask).sum((1, 2, 3))
        return (1 - (2 * both + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)).mean()

    def training_step(self, batch, batch_idx):
        x, mask = batch
        loss = self.dice_loss(self(x), mask)
        self.log("train/dice_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, mask = batch
        logits = self(x)
        self.log("val/dice_loss", self.dice_loss(logits, mask))
        found, wanted = logits > 0, mask > 0.5
        overlap = (found & wanted).sum((1, 2, 3)) / (found | wanted).sum((1, 2, 3))
        self.log("val/iou", overlap.mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=14, power=0.9)
        return [optimizer], [scheduler]


def unet_dice():
    train, val = loaders(*ellipses(560, 41), batch_size=8, val_batch_size=35)
    return SmallUNet(), train, val


# --- 7. A rare class under the focal loss -------------------------------------------------------


@functools.cache
def rare_events(count, seed):
    """Twelve features; about one row in twenty-five is positive, most of them foreseeable."""
    g = seeded(seed)
    x = torch.randn(count, 12, generator=g)
    score = 2.2 * x[:, 0] + 1.6 * x[:, 1] * x[:, 2] + 1.4 * x[:, 3].abs() - 1.2 * x[:, 4]
    chance = torch.sigmoid(2.0 * (score - 5.6))
    return x, torch.bernoulli(chance, generator=g)


def auroc(scores, labels):
    ranks = scores.argsort().argsort().double() + 1
    positives = labels.sum().double()
    negatives = len(labels) - positives
    wins = ranks[labels > 0.5].sum() - positives * (positives + 1) / 2
    return (wins / (positives * negatives)).float()


class RareEvents(LightningModule):
    def __init__(self, rate):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )
        nn.init.normal_(self.net[-1].weight, std=0.01)
        nn.init.constant_(self.net[-1].bias, math.log(rate / (1 - rate)))
        self.seen = []

    def forward(self, x):
        return self.net(x).squeeze(-1)

    @staticmethod
    def focal(logits, y, gamma=2.0, alpha=0.75):
        ce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        weight = torch.where(y > 0.5, alpha, 1 - alpha)
        return (weight * (1 - torch.exp(-ce)) ** gamma * ce).mean()

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.focal(self(x), y)
        self.log("train_focal", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_focal", self.focal(logits, y))
        self.seen.append((logits, y))

    def on_validation_epoch_end(self):
        logits, y = (torch.cat(part) for part in zip(*self.seen, strict=True))
        self.seen.clear()
        self.log("val_auroc", auroc(logits, y))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def focal_rare_class():
    x, y = rare_events(20000, 51)
    train, val = loaders(x, y, batch_size=128, val_batch_size=1000)
    return RareEvents(float(y.mean())), train, val


# --- 8. Mixup, label smoothing, shifts and dropout ----------------------------------------------


class MixedDigits(LightningModule):
    """Its loss in training stays far above the one in validation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.GroupNorm(8, 48),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(48 * 16, 10),
        )

    def augment(self, x):
        dy, dx = torch.randint(-1, 2, (2,)).tolist()
        return x.roll((dy, dx), (2, 3)) + 0.1 * torch.randn_like(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x, y = self.augment(x), F.one_hot(y, 10).float()
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        other = torch.randperm(len(x), device=x.device)
        x = share * x + (1 - share) * x[other]
        y = share * y + (1 - share) * y[other]
        loss = F.cross_entropy(self.net(x), y, label_smoothing=0.1)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(
            self.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25)
        return [optimizer], [scheduler]


def mixup_smoothing():
    train, val = loaders(*images(), batch_size=32)
    return MixedDigits(), train, val


# --- 9. A generative adversarial network, two optimizers ----------------------------------------


@functools.cache
def eight_blobs(count, seed):
    g = seeded(seed)
    angle = torch.randint(8, (count,), generator=g) * (math.pi / 4)
    centres = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)
    return (centres + 0.12 * torch.randn(count, 2, generator=g),)


def energy_distance(a, b):
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


class BlobGAN(LightningModule):
    def __init__(self, epochs):
        super().__init__()
        self.automatic_optimization = False
        self.epochs = epochs
        self.generator = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
        )
        self.critic = nn.Sequential(
            nn.Linear(2, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 1),
        )
        self.register_buffer("fixed", torch.randn(1000, 8, generator=seeded(7)))

    def forward(self, z):
        return self.generator(z)

    def training_step(self, batch, batch_idx):
        (real,) = batch
        generator_optimizer, critic_optimizer = self.optimizers()
        fake = self(torch.randn(len(real), 8, device=real.device))

        real = real.clone().requires_grad_()
        judged = self.critic(real)
        slope = torch.autograd.grad(judged.sum(), real, create_graph=True)[0]
        critic_loss = (
            F.softplus(-judged).mean()
            + F.softplus(self.critic(fake.detach())).mean()
            + 0.1 * slope.square().sum(1).mean()
        )
        critic_optimizer.zero_grad()
        self.manual_backward(critic_loss)
        critic_optimizer.step()

        generator_loss = F.softplus(-self.critic(fake)).mean()
        generator_optimizer.zero_grad()
        self.manual_backward(generator_loss)
        generator_optimizer.step()
        self.log_dict({"g_loss": generator_loss, "d_loss": critic_loss}, prog_bar=True)

    def on_train_epoch_end(self):
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def validation_step(self, batch, batch_idx):
        self.log("val_energy", energy_distance(self(self.fixed), batch[0]))

    def configure_optimizers(self):
        optimizers = [
            torch.optim.Adam(net.parameters(), lr=rate, betas=(0.5, 0.99))
            for net, rate in ((self.generator, 1e-3), (self.critic, 2e-3))
        ]
        schedulers = [
            torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.05, self.epochs) for o in optimizers
        ]
        return optimizers, schedulers


def gan_two_optimizers():
    train, val = loaders(*eight_blobs(12000, 61), batch_size=128, val_batch_size=3000)
    return BlobGAN(epochs=25), train, val


# --- 10. A variational autoencoder whose KL term is warmed up -----------------------------------


class DigitVAE(LightningModule):
    def __init__(self, latent=6, warm_up=250):
        super().__init__()
        self.warm_up = warm_up
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 96), nn.SiLU(), nn.Linear(96, 64))

    def terms(self, x):
        mean, log_var = self.encoder(2 * x - 1).chunk(2, 1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        reconstruction = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none")
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
        return reconstruction.sum(1).mean(), kl.sum(1).mean()

    def training_step(self, batch, batch_idx):
        reconstruction, kl = self.terms(batch[0])
        beta = min(1.0, self.global_step / self.warm_up)
        loss = reconstruction + beta * kl
        self.log_dict({"train/loss": loss, "train/kl": kl, "train/beta": beta})
        return loss

    def validation_step(self, batch, batch_idx):
        reconstruction, kl = self.terms(batch[0])
        self.log_dict(
            {
                "val/neg_elbo": reconstruction + kl,
                "val/reconstruction": reconstruction,
                "val/kl": kl,
            }
        )

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [24, 32], gamma=0.3)
        return [optimizer], [scheduler]


def vae_kl_warmup():
    x, _ = bundled("digits")
    train, val = loaders(x / 16, batch_size=64, val_batch_size=450)
    return DigitVAE(), train, val


# --- 11. Denoising diffusion with an average of the weights -------------------------------------


@functools.cache
def moons(count, seed, noise=0.08):
    g = seeded(seed)
    t = math.pi * torch.rand(count, generator=g)
    upper = torch.rand(count, generator=g) < 0.5
    a = torch.stack([t.cos(), t.sin()], 1)
    b = torch.stack([1 - t.cos(), 0.5 - t.sin()], 1)
    points = torch.where(upper[:, None], a, b) + noise * torch.randn(count, 2, generator=g)
    return ((points - points.mean(0)) / points.std(0),)


class Denoiser(nn.Module):
    def __init__(self, width=96):
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(6) * math.pi / 2)
        self.net = nn.Sequential(
            nn.Linear(2 + 12, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x, t):
        phase = t[:, None] * self.frequencies
        return self.net(torch.cat([x, phase.sin(), phase.cos()], 1))


class MoonDiffusion(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = Denoiser()
        self.average = copy.deepcopy(self.model).requires_grad_(False)

    @staticmethod
    def loss(model, x, t, noise):
        keep = torch.cos(t * math.pi / 2)[:, None]
        noisy = keep * x + torch.sin(t * math.pi / 2)[:, None] * noise
        return F.mse_loss(model(noisy, t), noise)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        t = torch.rand(len(x), device=x.device)
        loss = self.loss(self.model, x, t, torch.randn_like(x))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        decay = min(0.99, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - decay)

    def validation_step(self, batch, batch_idx):
        (x,) = batch
        g = seeded(100 + batch_idx)
        t, noise = torch.rand(len(x), generator=g), torch.randn(x.shape, generator=g)
        self.log("val_loss", self.loss(self.average, x, t.to(x), noise.to(x)))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=4e-3, weight_decay=1e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=24)]


def diffusion_ema():
    train, val = loaders(*moons(16000, 71), batch_size=256, val_batch_size=2000)
    return MoonDiffusion(), train, val


# --- 12. A normalizing flow that starts as the identity -----------------------------------------


@functools.cache
def pinwheel(count, seed):
    g = seeded(seed)
    arm = torch.randint(5, (count,), generator=g) * (2 * math.pi / 5)
    radial = 1 + 0.3 * torch.randn(count, generator=g)
    tangential = 0.1 * torch.randn(count, generator=g)
    angle = arm + 0.25 * torch.exp(radial)
    x = radial * angle.cos() - tangential * angle.sin()
    y = radial * angle.sin() + tangential * angle.cos()
    return (torch.stack([x, y], 1),)


class Coupling(nn.Module):
    def __init__(self, keep, width=48):
        super().__init__()
        self.keep = keep
        self.net = nn.Sequential(
            nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        fixed, moved = x[:, self.keep], x[:, 1 - self.keep]
        scale, shift = self.net(fixed[:, None]).unbind(1)
        scale = 2 * torch.tanh(scale / 2)
        moved = moved * torch.exp(scale) + shift
        order = (fixed, moved) if self.keep == 0 else (moved, fixed)
        return torch.stack(order, 1), scale


class PinwheelFlow(LightningModule):
    def __init__(self, layers=8):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(i % 2) for i in range(layers))

    def forward(self, x):
        """Negative log-likelihood of each row."""
        log_det = torch.zeros(len(x), device=x.device)
        for layer in self.layers:
            x, gained = layer(x)
            log_det = log_det + gained
        return 0.5 * x.square().sum(1) + math.log(2 * math.pi) - log_det

    def training_step(self, batch, batch_idx):
        loss = self(batch[0]).mean()
        self.log("nll", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_nll", self(batch[0]).mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 900, eta_min=1e-5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def flow_identity_start():
    train, val = loaders(*pinwheel(16000, 81), batch_size=200, val_batch_size=2000)
    return PinwheelFlow(), train, val


# --- 13. Contrastive learning, where the loss depends on the size of the batch -------------------


class ContrastiveDigits(LightningModule):
    def __init__(self, bank, bank_labels, temperature=0.2):
        super().__init__()
        self.temperature = temperature
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 64),
        )
        self.projector = nn.Sequential(nn.ReLU(), nn.Linear(64, 32))
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("bank_labels", bank_labels, persistent=False)

    def view(self, x):
        shifted = torch.stack(
            [
                picture.roll((int(dy), int(dx)), (1, 2))
                for picture, (dy, dx) in zip(x, torch.randint(-1, 2, (len(x), 2)), strict=True)
            ]
        )
        hidden = (torch.rand_like(shifted) < 0.15).float()
        return shifted * (1 - hidden) + 0.2 * torch.randn_like(shifted)

    def loss(self, x):
        both = torch.cat([self.view(x), self.view(x)])
        z = F.normalize(self.projector(self.encoder(both)), dim=1)
        alike = z @ z.T / self.temperature
        alike.fill_diagonal_(-1e9)
        partner = torch.arange(len(both), device=x.device).roll(len(x))
        return F.cross_entropy(alike, partner)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch[0])
        self.log("train/info_nce", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/info_nce", self.loss(x))
        bank = F.normalize(self.encoder(self.bank), dim=1)
        nearest = (F.normalize(self.encoder(x), dim=1) @ bank.T).topk(5, 1).indices
        voted = self.bank_labels[nearest].mode(1).values
        self.log("val/knn_acc", (voted == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=60)
        return [optimizer], [scheduler]


def info_nce_large_batch():
    x, y = images()
    train, val = loaders(x, y, batch_size=192, val_batch_size=450)
    return ContrastiveDigits(x[:1347], y[:1347]), train, val


# --- 14. BYOL: a target network that gets no gradient -------------------------------------------


@functools.cache
def waveforms(count, seed):
    """Sine, square, saw-tooth and pulse waves of random pitch and phase."""
    g = seeded(seed)
    kind = torch.randint(4, (count,), generator=g)
    cycles = 2 + 3 * torch.rand(count, 1, generator=g)
    phase = (torch.linspace(0, 1, 64) * cycles + torch.rand(count, 1, generator=g)) % 1.0
    kinds = torch.stack(
        [
            torch.sin(2 * math.pi * phase) * 1.4,
            (phase < 0.5).float() * 2 - 1,
            (phase * 2 - 1) * 1.7,
            (phase < 0.15).float() * 2.8 - 0.42,
        ],
        1,
    )
    waves = kinds[torch.arange(count), kind]
    return (waves + 0.5 * torch.randn(count, 64, generator=g))[:, None], kind


def projector(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, outputs)
    )


class BootstrapWaves(LightningModule):
    def __init__(self, bank, bank_kinds, total):
        super().__init__()
        self.total = total
        self.encoder = nn.Sequential(
            nn.Conv1d(1, 16, 7, stride=2, padding=3),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, 32, 5, stride=2, padding=2),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
        )
        self.online = nn.Sequential(self.encoder, projector(32, 32))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = projector(32, 32)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("bank_kinds", bank_kinds, persistent=False)

    def view(self, x):
        x = x.roll(int(torch.randint(64, ())), 2)
        gain = 0.7 + 0.6 * torch.rand(len(x), 1, 1, device=x.device)
        return gain * x + 0.2 * torch.randn_like(x)

    def half(self, a, b):
        guess = F.normalize(self.predictor(self.online(a)), dim=1)
        with torch.no_grad():
            wanted = F.normalize(self.target(b), dim=1)
        return 2 - 2 * (guess * wanted).sum(1).mean()

    def loss(self, x):
        a, b = self.view(x), self.view(x)
        return self.half(a, b) + self.half(b, a)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch[0])
        self.log("byol_loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        done = min(1.0, self.global_step / self.total)
        decay = 1 - 0.03 * (math.cos(math.pi * done) + 1) / 2
        with torch.no_grad():
            pairs = zip(self.target.parameters(), self.online.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - decay)

    def validation_step(self, batch, batch_idx):
        x, kind = batch
        self.log("val_byol_loss", self.loss(x))
        distance = torch.cdist(self.encoder(x), self.encoder(self.bank))
        nearest = distance.topk(7, 1, largest=False).indices
        voted = self.bank_kinds[nearest].mode(1).values
        self.log("val_knn_acc", (voted == kind).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        learnt = [*self.online.parameters(), *self.predictor.parameters()]
        optimizer = torch.optim.AdamW(learnt, lr=2e-3, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.total)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def byol_ema_target():
    x, kind = waveforms(4000, 91)
    train, val = loaders(x, kind, batch_size=125, val_batch_size=1000)
    return BootstrapWaves(x[:1000], kind[:1000], total=24 * len(train)), train, val


# --- 15. Prices in full, raw inputs, normalised inside the model --------------------------------


@functools.cache
def houses(count, seed):
    g = seeded(seed)
    area = 60 + 180 * torch.rand(count, generator=g)
    year = torch.randint(1900, 2021, (count,), generator=g).float()
    rooms = (area / 35 + torch.randn(count, generator=g)).round().clamp_min(1)
    distance = 25 * torch.rand(count, generator=g)
    plot = 1500 * torch.rand(count, generator=g)
    price = 1900 * area + 350 * (year - 1900) + 9000 * rooms + 60 * plot
    price = price * torch.exp(-0.035 * distance) * torch.where(year < 1930, 1.15, 1.0)
    price = price * torch.exp(0.06 * torch.randn(count, generator=g))
    return torch.stack([area, year, rooms, distance, plot], 1), price


class HousePrices(LightningModule):
    def __init__(self, x, price):
        super().__init__()
        self.register_buffer("x_mean", x.mean(0))
        self.register_buffer("x_std", x.std(0))
        self.register_buffer("price_mean", price.mean())
        self.register_buffer("price_std", price.std())
        self.net = nn.Sequential(
            nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, x):
        z = self.net((x - self.x_mean) / self.x_std).squeeze(-1)
        return z * self.price_std + self.price_mean

    def training_step(self, batch, batch_idx):
        x, price = batch
        loss = F.l1_loss(self(x), price)
        self.log("train_mae", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, price = batch
        guess = self(x)
        self.log("val_mae", F.l1_loss(guess, price), prog_bar=True)
        self.log("val_relative_error", ((guess - price).abs() / price).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8)
        return [optimizer], [scheduler]


def prices_in_full():
    x, price = houses(8000, 101)
    train, val = loaders(x, price, batch_size=64, val_batch_size=500)
    return HousePrices(x[:6000], price[:6000]), train, val


# --- 16. A forecast with its own uncertainty, split by time -------------------------------------


@functools.cache
def demand(length, seed):
    """48 hours of a seasonal series with the clock of each next hour, and the hour to come."""
    g = seeded(seed)
    hours = torch.arange(float(length))
    day, week = 2 * math.pi * hours / 24, 2 * math.pi * hours / 168
    slow = torch.zeros(length)
    pushes = torch.randn(length, generator=g)
    for i in range(1, length):
        slow[i] = 0.9 * slow[i - 1] + 0.05 * pushes[i]
    spread = 0.03 + 0.09 * (torch.sin(day) > 0).float()
    series = torch.sin(day) + 0.5 * torch.sin(2 * day + 1) + 0.3 * torch.sin(week) + slow
    series = series + spread * torch.randn(length, generator=g)
    series = series / series.std()
    clock = torch.stack([day.sin(), day.cos(), week.sin(), week.cos()])
    known = torch.cat([series[None, :-1], clock[:, 1:]])
    return known.unfold(1, 48, 1).permute(1, 2, 0), series[48:]


class DemandForecast(LightningModule):
    def __init__(self, width=32):
        super().__init__()
        self.rnn = nn.GRU(5, width, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, past):
        _, last = self.rnn(past)
        mean, raw = self.head(last[-1]).unbind(1)
        return mean, F.softplus(raw) + 1e-3

    def nll(self, batch):
        past, following = batch
        mean, spread = self(past)
        return -torch.distributions.Normal(mean, spread).log_prob(following).mean(), mean

    def training_step(self, batch, batch_idx):
        loss, _ = self.nll(batch)
        self.log("train/nll", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, mean = self.nll(batch)
        self.log("val/nll", loss)
        self.log("val/rmse", F.mse_loss(mean, batch[1]).sqrt())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
        return [optimizer], [scheduler]


def forecast_negative_nll():
    past, following = demand(6000, 111)
    cut = 4500
    train = TensorDataset(past[:cut], following[:cut])
    val = TensorDataset(past[cut + 48 :], following[cut + 48 :])
    return DemandForecast(), DataLoader(train, 64, shuffle=True), DataLoader(val, 500)


# --- 17. Discrete hazards of censored lifetimes, in bfloat16 ------------------------------------


@functools.cache
def lifetimes(count, seed):
    """Covariates, the interval (of ten) of the event or of the loss to follow-up, and which."""
    g = seeded(seed)
    x = torch.randn(count, 8, generator=g)
    risk = torch.exp(0.9 * x[:, 0] - 0.7 * x[:, 1] + 0.6 * x[:, 2] * (x[:, 3] > 0) - 2.2)
    life = -torch.log(torch.rand(count, generator=g)) / risk
    follow = 14 * torch.rand(count, generator=g)
    time = torch.minimum(life, follow).clamp(max=9.99)
    event = (life <= follow) & (life < 9.99)
    return x, time.long(), event.float()


class Hazards(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))

    def likelihood(self, batch):
        x, interval, event = batch
        logits = self.net(x)
        place = torch.arange(10, device=x.device)
        died = (place == interval[:, None]).float() * event[:, None]
        at_risk = (place < interval[:, None]).float() + died
        losses = F.binary_cross_entropy_with_logits(logits.float(), died, reduction="none")
        return (losses * at_risk).sum(1).mean()

    def training_step(self, batch, batch_idx):
        loss = self.likelihood(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.likelihood(batch), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)


def censored_hazards():
    train, val = loaders(*lifetimes(16000, 121), batch_size=128, val_batch_size=1000)
    return Hazards(), train, val


# --- 18. Policy gradients on a contextual bandit ------------------------------------------------


class Contexts(IterableDataset):
    """Batches of fresh situations; there is no end to them, an epoch is a hundred."""

    def __iter__(self):
        for _ in range(100):
            yield torch.randn(128, 6)


class BanditPolicy(LightningModule):
    """REINFORCE with a learnt baseline; what is minimised is no measure of success."""

    def __init__(self):
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 5))
        self.baseline = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 1))
        self.register_buffer("arms", torch.randn(6, 5, generator=seeded(131)) / 6**0.5)

    def expected(self, context):
        return context @ self.arms + 0.5 * torch.cos(2 * context[:, :5])

    def training_step(self, context, batch_idx):
        choice = torch.distributions.Categorical(logits=self.policy(context))
        arm = choice.sample()
        reward = self.expected(context).gather(1, arm[:, None]).squeeze(1)
        reward = reward + 0.3 * torch.randn_like(reward)
        value = self.baseline(context).squeeze(1)
        advantage = (reward - value).detach()
        policy_loss = -(advantage * choice.log_prob(arm)).mean()
        loss = policy_loss + 0.5 * F.mse_loss(value, reward) - 0.005 * choice.entropy().mean()
        self.log_dict({"loss": loss, "reward": reward.mean()}, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        (context,) = batch
        expected = self.expected(context)
        got = (self.policy(context).softmax(1) * expected).sum(1)
        self.log("val_regret", (expected.max(1).values - got).mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        return [optimizer], [scheduler]


def bandit_policy_gradient():
    situations = TensorDataset(torch.randn(2000, 6, generator=seeded(132)))
    return (
        BanditPolicy(),
        DataLoader(Contexts(), batch_size=None),
        DataLoader(situations, batch_size=1000),
    )


# --- 19. Sets of points, a hand-written Lion ----------------------------------------------------


class Lion(torch.optim.Optimizer):
    """Steps of the sign of a momentum: small rate, large decoupled weight decay."""

    def __init__(self, params, lr=3e-4, betas=(0.9, 0.99), weight_decay=0.3):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (fast, slow) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                direction = torch.lerp(p.grad, momentum, fast).sign_()
                p.mul_(1 - lr * group["weight_decay"]).add_(direction, alpha=-lr)
                momentum.lerp_(p.grad, 1 - slow)
        return loss


@functools.cache
def point_sets(count, seed):
    """Sixteen points each, of a ring, a line, a cross or a blob, in any order and pose."""
    g = seeded(seed)
    kind = torch.randint(4, (count,), generator=g)
    u = torch.rand(count, 16, generator=g) * 2 - 1
    zero = torch.zeros_like(u)
    swap = torch.rand(count, 16, generator=g) < 0.5
    kinds = torch.stack(
        [
            torch.stack([torch.cos(math.pi * u), torch.sin(math.pi * u)], -1),
            torch.stack([1.5 * u, zero], -1),
            torch.stack([torch.where(swap, 1.3 * u, zero), torch.where(swap, zero, 1.3 * u)], -1),
            0.7 * torch.randn(count, 16, 2, generator=g),
        ],
        1,
    )
    points = kinds[torch.arange(count), kind]
    a = 2 * math.pi * torch.rand(count, generator=g)
    turn = torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], 1).view(-1, 2, 2)
    points = points @ turn + 0.2 * torch.randn(count, 16, 2, generator=g)
    return points + 0.3 * torch.randn(count, 1, 2, generator=g), kind


class SetBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, query, points):
        x = self.norm1(query + self.attend(query, points, points, need_weights=False)[0])
        return self.norm2(x + self.mlp(x))


class SetClassifier(LightningModule):
    def __init__(self, width=32):
        super().__init__()
        self.enter = nn.Linear(2, width)
        self.blocks = nn.ModuleList([SetBlock(width, 4), SetBlock(width, 4)])
        self.seed = nn.Parameter(torch.randn(1, 1, width))
        self.pool = SetBlock(width, 4)
        self.head = nn.Linear(width, 4)

    def forward(self, points):
        x = self.enter(points)
        for block in self.blocks:
            x = block(x, x)
        return self.head(self.pool(self.seed.expand(len(x), -1, -1), x)[:, 0])

    def training_step(self, batch, batch_idx):
        points, kind = batch
        loss = F.cross_entropy(self(points), kind)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        points, kind = batch
        logits = self(points)
        self.log("val_loss", F.cross_entropy(logits, kind), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == kind).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = Lion(self.parameters(), lr=8e-4, weight_decay=0.3)
        total, warm = int(self.trainer.estimated_stepping_batches), 40
        scheduler = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.02, total_iters=warm),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - warm),
            ],
            milestones=[warm],
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def point_sets_lion():
    train, val = loaders(*point_sets(12000, 141), batch_size=100, val_batch_size=500)
    return SetClassifier(), train, val


# --- 20. Two tasks that weigh themselves --------------------------------------------------------


@functools.cache
def two_tasks(count, seed):
    g = seeded(seed)
    x = torch.randn(count, 10, generator=g)
    level = torch.tanh(x[:, 0] + 0.5 * x[:, 1]) + 0.4 * torch.sin(x[:, 2])
    amount = level + 0.05 * torch.randn(count, generator=g)
    logits = torch.stack([2 * level, x[:, 3] + x[:, 4], -2 * level * x[:, 5].sign()], 1)
    kind = (1.5 * logits).softmax(1).multinomial(1, generator=g).squeeze(1)
    return x, amount, kind


class TwoTasks(LightningModule):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
        self.amount = nn.Linear(64, 1)
        self.kind = nn.Linear(64, 3)
        self.log_vars = nn.Parameter(torch.zeros(2))

    def losses(self, batch):
        x, amount, kind = batch
        shared = self.trunk(x)
        logits = self.kind(shared)
        mse = F.mse_loss(self.amount(shared).squeeze(1), amount)
        ce = F.cross_entropy(logits, kind)
        precise = torch.exp(-self.log_vars)
        total = 0.5 * precise[0] * mse + precise[1] * ce + 0.5 * self.log_vars.sum()
        return total, mse, ce, (logits.argmax(1) == kind).float().mean()

    def training_step(self, batch, batch_idx):
        total, mse, ce, _ = self.losses(batch)
        self.log_dict({"train/total": total, "train/mse": mse, "train/ce": ce})
        return total

    def validation_step(self, batch, batch_idx):
        total, mse, ce, acc = self.losses(batch)
        self.log_dict({"val/total": total, "val/mse": mse, "val/ce": ce, "val/acc": acc})

    def configure_optimizers(self):
        weights = [p for name, p in self.named_parameters() if name != "log_vars"]
        optimizer = torch.optim.AdamW(
            [
                {"params": weights, "lr": 3e-3, "weight_decay": 0.01},
                {"params": [self.log_vars], "lr": 2e-2, "weight_decay": 0.0},
            ]
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
        return [optimizer], [scheduler]


def self_weighing_tasks():
    train, val = loaders(*two_tasks(16000, 151), batch_size=200, val_batch_size=1000)
    return TwoTasks(), train, val


# --- 21. A differential equation, L-BFGS and double precision -----------------------------------


class DampedOscillator(LightningModule):
    """Solves u'' + 0.4 u' + 4 u = 0 with u(0) = 1 and u'(0) = 0; nothing is given but times."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
        )

    def forward(self, t):
        return 1 + t.square() * self.net(t / 3 - 1)

    def training_step(self, batch, batch_idx):
        t = batch[0].clone().requires_grad_()
        u = self(t)
        speed = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        push = torch.autograd.grad(speed.sum(), t, create_graph=True)[0]
        loss = (push + 0.4 * speed + 4 * u).square().mean()
        self.log("residual", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        (t,) = batch
        w = math.sqrt(4 - 0.04)
        exact = torch.exp(-0.2 * t) * (torch.cos(w * t) + 0.2 / w * torch.sin(w * t))
        self.log("val_error", F.mse_loss(self(t), exact).sqrt())

    def configure_optimizers(self):
        return torch.optim.LBFGS(
            self.parameters(),
            max_iter=8,
            history_size=50,
            tolerance_grad=1e-12,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )


def oscillator_lbfgs():
    times = TensorDataset(torch.linspace(0, 6, 120, dtype=torch.float64)[:, None])
    check = TensorDataset(torch.linspace(0.01, 5.99, 200, dtype=torch.float64)[:, None])
    return DampedOscillator(), DataLoader(times, 120), DataLoader(check, 200)


# --- 22. A graph network: one batch an epoch, its input the numbers of nodes ---------------------


@functools.cache
def communities(seed):
    """A graph of 800 nodes in four communities, with features that tell little by themselves."""
    g = seeded(seed)
    label = torch.arange(800) % 4
    likely = torch.where(label[:, None] == label[None], 0.022, 0.004)
    edges = torch.bernoulli(likely, generator=g).triu(1)
    edges = edges + edges.T + torch.eye(800)
    scale = edges.sum(1).rsqrt()
    features = torch.randn(800, 24, generator=g)
    features[:, :4] += 0.8 * F.one_hot(label, 4)
    order = torch.randperm(800, generator=g)
    return features, scale[:, None] * edges * scale[None], label, order


class GraphNet(LightningModule):
    def __init__(self, features, adjacency):
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.first = nn.Linear(features.shape[1], 32)
        self.second = nn.Linear(32, 4)

    def forward(self, nodes):
        x = F.dropout(self.features, 0.3, self.training)
        x = F.relu(self.adjacency @ self.first(x))
        x = F.dropout(x, 0.5, self.training)
        return (self.adjacency @ self.second(x))[nodes]

    def training_step(self, batch, batch_idx):
        nodes, label = batch
        loss = F.cross_entropy(self(nodes), label)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        nodes, label = batch
        logits = self(nodes)
        self.log("val_loss", F.cross_entropy(logits, label))
        self.log("val_acc", (logits.argmax(1) == label).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=5e-3)


def graph_full_batch():
    features, adjacency, label, order = communities(161)
    known, asked = order[:300], order[300:]
    train = DataLoader(TensorDataset(known, label[known]), len(known))
    val = DataLoader(TensorDataset(asked, label[asked]), len(asked))
    return GraphNet(features, adjacency), train, val


# --- 23. A sparse mixture of experts ------------------------------------------------------------


@functools.cache
def patchwork(count, seed):
    """A function made of four different ones, each in a quarter of the space."""
    g = seeded(seed)
    x = torch.randn(count, 6, generator=g)
    slopes = torch.randn(6, 4, generator=seeded(seed + 1)) / 6**0.5
    quarter = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
    y = (x @ slopes).gather(1, quarter[:, None]).squeeze(1)
    y = y + 0.5 * torch.sin(2 * x[:, 2]) * (quarter == 3)
    return x, y + 0.3 * torch.randn(count, generator=g)


class SwitchRegressor(LightningModule):
    def __init__(self, experts=6, width=48):
        super().__init__()
        self.enter = nn.Sequential(nn.Linear(6, width), nn.GELU())
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(experts)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        x = self.enter(x)
        chances = self.gate(x).softmax(1)
        top, chosen = chances.max(1)
        mixed = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().squeeze(1)
            if len(rows):
                mixed = mixed.index_add(0, rows, expert(x[rows]) * top[rows, None])
        share = F.one_hot(chosen, len(self.experts)).float().mean(0)
        balance = len(self.experts) * (share * chances.mean(0)).sum()
        return self.head(x + mixed).squeeze(1), balance, share

    def training_step(self, batch, batch_idx):
        x, y = batch
        guess, balance, _ = self(x)
        mse = F.mse_loss(guess, y)
        self.log_dict({"train/mse": mse, "train/balance": balance})
        return mse + 0.01 * balance

    def validation_step(self, batch, batch_idx):
        x, y = batch
        guess, _, share = self(x)
        self.log("val/mse", F.mse_loss(guess, y), prog_bar=True)
        self.log("val/busiest_expert", share.max())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=18)
        return [optimizer], [scheduler]


def switch_experts():
    train, val = loaders(*patchwork(16000, 171), batch_size=200, val_batch_size=1000)
    return SwitchRegressor(), train, val


# --- 24. Recommendations: sparse gradients, most rows rare --------------------------------------


@functools.cache
def ratings(count, seed):
    """Who rates what is long-tailed; some films are never rated at all."""
    g = seeded(seed)
    users, films = 500, 900
    popularity = 1 / torch.arange(1.0, films + 1)
    user = torch.randint(users, (count,), generator=g)
    film = popularity.multinomial(count, replacement=True, generator=g)
    taste = torch.randn(users, 3, generator=g)
    kind = torch.randn(films, 3, generator=g)
    warmth = 0.4 * torch.randn(users, generator=g)
    fame = 0.5 * torch.randn(films, generator=g)
    stars = 3.4 + warmth[user] + fame[film] + 0.35 * (taste[user] * kind[film]).sum(1)
    return user, film, stars + 0.5 * torch.randn(count, generator=g)


class Factors(LightningModule):
    def __init__(self, mean, rank=4):
        super().__init__()
        self.mean = mean
        self.user = nn.Embedding(500, rank, sparse=True)
        self.film = nn.Embedding(900, rank, sparse=True)
        self.user_bias = nn.Embedding(500, 1, sparse=True)
        self.film_bias = nn.Embedding(900, 1, sparse=True)
        for table in (self.user, self.film):
            nn.init.normal_(table.weight, std=0.1)
        for table in (self.user_bias, self.film_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user, film):
        u, f, ub, fb = self.user(user), self.film(film), self.user_bias(user), self.film_bias(film)
        penalty = sum(part.square().sum(1) for part in (u, f, ub, fb))
        return self.mean + (u * f).sum(1) + (ub + fb).squeeze(1), penalty.mean()

    def training_step(self, batch, batch_idx):
        user, film, stars = batch
        guess, penalty = self(user, film)
        mse = F.mse_loss(guess, stars)
        self.log("train_rmse", mse.sqrt(), on_step=False, on_epoch=True, prog_bar=True)
        return mse + 0.05 * penalty

    def validation_step(self, batch, batch_idx):
        user, film, stars = batch
        self.log("val_rmse", F.mse_loss(self(user, film)[0], stars).sqrt(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SparseAdam(list(self.parameters()), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, gamma=0.2)
        return [optimizer], [scheduler]


def sparse_factors():
    user, film, stars = ratings(80000, 181)
    train, val = loaders(user, film, stars, batch_size=500, val_batch_size=20000)
    return Factors(float(stars[:60000].mean())), train, val


# --- 25. A stream of labels that are hardly better than a coin ----------------------------------


def coin_like(count, generator=None):
    """The label follows a rule in five cases of eight, so no one can do better than 62.5 %."""
    x = torch.randn(count, 8, generator=generator)
    rule = x[:, 0] * x[:, 1] + 0.6 * x[:, 2] > 0
    kept = torch.rand(count, generator=generator) < 0.625
    return x, (rule == kept).float()


class CoinStream(IterableDataset):
    def __iter__(self):
        for _ in range(60):
            yield coin_like(1024)


class NearCoin(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self.net(x).squeeze(1), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x).squeeze(1)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y))
        self.log("val_acc", ((logits > 0) == (y > 0.5)).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16)
        return [optimizer], [scheduler]


def stream_near_coin():
    val = TensorDataset(*coin_like(20000, seeded(191)))
    return NearCoin(), DataLoader(CoinStream(), batch_size=None), DataLoader(val, 5000)


# --- 26. Plain gradient descent at a large rate, with warm restarts -----------------------------


class RestartedDigits(LightningModule):
    def __init__(self, cycle):
        super().__init__()
        self.cycle = cycle
        layers, channels = [], 1
        for width, stride in ((16, 1), (24, 2), (32, 2)):
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("train/rate", self.optimizers().param_groups[0]["lr"])
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.log("val/loss", F.cross_entropy(logits, y))
        self.log("val/acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.4, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, self.cycle)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def sgd_warm_restarts():
    train, val = loaders(*images(), batch_size=48)
    return RestartedDigits(cycle=5 * len(train)), train, val


PROGRAMS = [
    Program(
        "ninth_char_language_model",
        char_language_model,
        trainer={"max_epochs": 10, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
        note="tied embeddings, warm-up and cosine to zero, accumulation; entropy is the floor",
    ),
    Program(
        "ninth_gradual_unfreezing",
        gradual_unfreezing,
        trainer={"max_epochs": 20},
        metric="val/loss",
        note="backbone frozen at first, its batch norm in eval mode throughout, small rates for it",
    ),
    Program(
        "ninth_low_rank_adapters",
        low_rank_adapters,
        trainer={"max_epochs": 15},
        note="most weights frozen, zero-initialised factors, first loss far above chance",
    ),
    Program(
        "ninth_rezero_one_cycle",
        rezero_one_cycle,
        trainer={"max_epochs": 12},
        note="every residual branch starts at zero, so its weights get no gradient at step one",
    ),
    Program(
        "ninth_seq2seq_reversal",
        seq2seq_reversal,
        trainer={"max_epochs": 9, "gradient_clip_val": 0.5},
        metric="val/loss",
        note="teacher forcing feeds the shifted target, padding, clipping bites often",
    ),
    Program(
        "ninth_unet_dice",
        unet_dice,
        trainer={"max_epochs": 14},
        metric="val/iou",
        note="Dice loss alone, few positive pixels, batch norm with batches of eight",
    ),
    Program(
        "ninth_focal_rare_class",
        focal_rare_class,
        trainer={"max_epochs": 12},
        metric="val_auroc",
        note="4 % positives, focal loss tiny from the start because the bias starts at the prior",
    ),
    Program(
        "ninth_mixup_smoothing",
        mixup_smoothing,
        trainer={"max_epochs": 25},
        metric="val_acc",
        note="mixup, smoothing, shifts, dropout: training loss high and well above validation",
    ),
    Program(
        "ninth_gan_two_optimizers",
        gan_two_optimizers,
        trainer={"max_epochs": 25},
        metric="val_energy",
        note="manual optimization, two optimizers whose losses level off without falling",
    ),
    Program(
        "ninth_vae_kl_warmup",
        vae_kl_warmup,
        trainer={"max_epochs": 40},
        metric="val/neg_elbo",
        note="sum over pixels, targets between 0 and 1, KL weight raised over 250 steps",
    ),
    Program(
        "ninth_diffusion_ema",
        diffusion_ema,
        trainer={"max_epochs": 24},
        note="random noise and times, so a high noisy floor; averaged copy outside the optimizer",
    ),
    Program(
        "ninth_flow_identity_start",
        flow_identity_start,
        trainer={"max_epochs": 15},
        metric="val_nll",
        note="last layers of all couplings start at zero; likelihood loss",
    ),
    Program(
        "ninth_info_nce_large_batch",
        info_nce_large_batch,
        trainer={"max_epochs": 60, "check_val_every_n_epoch": 5},
        metric="val/info_nce",
        note="loss depends on the batch size, labels unused in training, seven steps an epoch",
    ),
    Program(
        "ninth_byol_ema_target",
        byol_ema_target,
        trainer={"max_epochs": 24, "check_val_every_n_epoch": 2},
        metric="val_knn_acc",
        note="target network without gradients, no negatives, labels unused in training",
    ),
    Program(
        "ninth_prices_in_full",
        prices_in_full,
        trainer={"max_epochs": 14},
        metric="val_mae",
        note="raw inputs and prices from the loader, scaled inside the model; loss in money",
    ),
    Program(
        "ninth_forecast_negative_nll",
        forecast_negative_nll,
        trainer={"max_epochs": 12},
        metric="val/nll",
        note="loss goes below zero; overlapping windows; split by time",
    ),
    Program(
        "ninth_censored_hazards",
        censored_hazards,
        trainer={"max_epochs": 8, "precision": "bf16-mixed"},
        note="bfloat16, masked sums, little to learn, validation below training by dropout",
    ),
    Program(
        "ninth_bandit_policy_gradient",
        bandit_policy_gradient,
        trainer={"max_epochs": 20},
        metric="val_regret",
        note="the loss is noise around no particular value; endless stream of fresh contexts",
    ),
    Program(
        "ninth_point_sets_lion",
        point_sets_lion,
        trainer={"max_epochs": 12},
        note="hand-written sign optimizer with weight decay 0.3",
    ),
    Program(
        "ninth_self_weighing_tasks",
        self_weighing_tasks,
        trainer={"max_epochs": 15},
        metric="val/total",
        note="learnt task weights, total below zero, one task noisy",
    ),
    Program(
        "ninth_oscillator_lbfgs",
        oscillator_lbfgs,
        trainer={
            "max_epochs": 320,
            "check_val_every_n_epoch": 20,
            "precision": "64-true",
        },
        metric="val_error",
        note="no targets, second derivatives, L-BFGS with several evaluations a step, one batch",
    ),
    Program(
        "ninth_graph_full_batch",
        graph_full_batch,
        trainer={"max_epochs": 400, "check_val_every_n_epoch": 10},
        metric="val_acc",
        note="inputs are numbers of nodes, one batch an epoch without shuffling, heavy dropout",
    ),
    Program(
        "ninth_switch_experts",
        switch_experts,
        trainer={"max_epochs": 18},
        metric="val/mse",
        note="each row visits one expert only; auxiliary balance loss",
    ),
    Program(
        "ninth_sparse_factors",
        sparse_factors,
        trainer={"max_epochs": 10},
        metric="val_rmse",
        note="sparse gradients, most rows unseen in a batch and some never seen; biases at zero",
    ),
    Program(
        "ninth_stream_near_coin",
        stream_near_coin,
        trainer={"max_epochs": 16},
        metric="val_acc",
        note="62 % is the best possible; the loss falls from 0.69 to 0.66 only; a stream",
    ),
    Program(
        "ninth_sgd_warm_restarts",
        sgd_warm_restarts,
        trainer={"max_epochs": 20},
        metric="val/loss",
        note="SGD without momentum at 0.4, rate thrown up again every five epochs",
    ),
]
