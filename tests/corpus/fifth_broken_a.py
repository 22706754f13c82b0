"""Whole programs with one fault in code or data and their repaired twins, a fifth set, first."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.corpus.program import images, loaders, pair, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


def shapes(count, size=16):
    """Pictures of a bright disc and a bright square on noise, and which pixel is what."""
    draw = rng(11)
    axis = torch.arange(size).float()
    row, column = axis.view(1, -1, 1), axis.view(1, 1, -1)
    centre = torch.randint(3, size - 3, (4, count, 1, 1), generator=draw).float()
    disc = (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= 9
    square = ((row - centre[2]).abs() <= 2) & ((column - centre[3]).abs() <= 2)
    mask = torch.zeros(count, size, size, dtype=torch.long)
    mask[disc] = 1
    mask[square] = 2
    picture = (mask > 0).float() + 0.35 * torch.randn(count, size, size, generator=draw)
    return picture.unsqueeze(1), mask


def double_conv(cin, cout):
    return nn.Sequential(
        *(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(True)),
        *(nn.Conv2d(cout, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(True)),
    )


class TinyUNet(nn.Module):
    def __init__(self, classes, final):
        super().__init__()
        self.inc, self.down = double_conv(1, 8), double_conv(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge = double_conv(16, 8)
        self.outc = nn.Sequential(nn.Conv2d(8, classes, 1), final)

    def forward(self, x):
        high = self.inc(x)
        low = self.down(F.max_pool2d(high, 2))
        return self.outc(self.merge(torch.cat([high, self.up(low)], 1)))


class Segmenter(LightningModule):
    def __init__(self, final):
        super().__init__()
        self.unet = TinyUNet(3, final)
        self.loss_fn = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        image, mask = batch
        loss = self.loss_fn(self.unet(image), mask)
        self.log("loss/train", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        image, mask = batch
        out = self.unet(image)
        found = out.argmax(1)
        self.log("val_loss", self.loss_fn(out, mask))
        both = ((found == mask) & (mask > 0)).sum()
        self.log("val_iou", both / ((found > 0) | (mask > 0)).sum())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=1e-4)


def segmentation(broken):
    final = nn.Softmax(dim=1) if broken else nn.Identity()
    return Segmenter(final), *loaders(*shapes(480), batch_size=24)


class Tagger(LightningModule):
    """Several tags at once."""

    def __init__(self, features, tags, hidden, squash):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(0.1)
        )
        self.tags = nn.Linear(hidden, tags)
        self.squash = squash

    def forward(self, x):
        scores = self.tags(self.encoder(x))
        return torch.sigmoid(scores) if self.squash else scores

    def step(self, batch, stage):
        out = self(batch["x"])
        loss = F.binary_cross_entropy_with_logits(out, batch["tags"])
        self.log(f"{stage}_loss", loss, on_step=False, on_epoch=True, batch_size=len(out))
        return {"loss": loss, "out": out.detach()}

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        return self.step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def tags(broken):
    x = torch.randn(1600, 20, generator=rng(21))
    mixed = x @ torch.randn(20, 8, generator=rng(22)) / 20**0.5 - 0.6
    noise = 0.2 * torch.randn(mixed.shape, generator=rng(23))
    y = (mixed + noise > 0).float()
    rows = [{"x": a, "tags": b} for a, b in zip(x, y, strict=True)]
    train = DataLoader(rows[:1200], batch_size=40, shuffle=True)
    return Tagger(20, 8, 64, squash=broken), train, DataLoader(rows[1200:], batch_size=200)


class RentalCounts(LightningModule):
    """How many bikes are rented in an hour."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign
        self.hour, self.day = nn.Embedding(24, 6), nn.Embedding(7, 3)
        self.mlp = nn.Sequential(nn.Linear(11, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.rate = nn.Linear(48, 1)

    def forward(self, hour, day, weather):
        h = torch.cat([self.hour(hour), self.day(day), weather], dim=-1)
        return torch.distributions.Poisson(F.softplus(self.rate(self.mlp(h))).squeeze(-1) + 1e-4)

    def training_step(self, batch, batch_idx):
        *inputs, count = batch
        likelihood = self(*inputs).log_prob(count)
        loss = self.sign * likelihood.mean()
        self.log("objective", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        *inputs, count = batch
        self.log("val_mae", (self(*inputs).mean - count).abs().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def rentals(broken):
    hour = torch.randint(0, 24, (1800,), generator=rng(31))
    day = torch.randint(0, 7, (1800,), generator=rng(32))
    weather = torch.randn(1800, 2, generator=rng(33))
    log_rate = 1 + torch.sin(hour / 24 * 6.283 - 2) + 0.4 * (day < 5) + 0.3 * weather[:, 0]
    count = torch.poisson(log_rate.exp(), generator=rng(34))
    return RentalCounts(1.0 if broken else -1.0), *loaders(hour, day, weather, count)


class LogCosh(nn.Module):
    def forward(self, prediction, target):
        error = prediction - target
        return (error + F.softplus(-2 * error) - 0.6931).mean()


class Progression(LightningModule):
    def __init__(self, squeeze):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(10, 24), nn.Linear(24, 12), nn.Linear(12, 1)
        self.drop = nn.Dropout(0.1)
        self.objective, self.squeeze = LogCosh(), squeeze

    def forward(self, x):
        x = self.drop(torch.tanh(self.fc1(x)))
        x = self.fc3(torch.tanh(self.fc2(x)))
        return x.squeeze(-1) if self.squeeze else x

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.objective(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        guess = self(x)
        self.log("val_loss", self.objective(guess, y))
        self.log("val_mae", (guess.flatten() - y).abs().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3, weight_decay=1e-3)


def progression(broken):
    x, y = standardized("diabetes")
    return Progression(not broken), *loaders(x, (y - y.mean()) / y.std(), batch_size=16)


class DigitVAE(LightningModule):
    def __init__(self, latent, out_act, beta=0.2):
        super().__init__()
        self.beta = beta
        self.enc = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU())
        self.mu, self.logvar = nn.Linear(96, latent), nn.Linear(96, latent)
        self.dec = nn.Sequential(nn.Linear(latent, 96), nn.ReLU(), nn.Linear(96, 64), out_act)

    def elbo(self, x):
        h = self.enc(x)
        mu, logvar = self.mu(h), self.logvar(h).clamp(-8, 8)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp() if self.training else mu
        reconstruction = (self.dec(z) - x.flatten(1)).square().sum(1).mean()
        divergence = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1).mean()
        return reconstruction, divergence

    def training_step(self, batch, batch_idx):
        reconstruction, divergence = self.elbo(batch[0])
        loss = reconstruction + self.beta * divergence
        self.log_dict({"recon": reconstruction, "kl": divergence, "loss": loss})
        return {"loss": loss, "kl": divergence.detach()}

    def validation_step(self, batch, batch_idx):
        reconstruction, divergence = self.elbo(batch[0])
        self.log("val_recon", reconstruction)
        self.log("val_loss", reconstruction + self.beta * divergence)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def vae(broken):
    pictures, _ = images()
    return DigitVAE(12, nn.Sigmoid() if broken else nn.Identity()), *loaders(pictures)


class DigitPairs(Dataset):
    """Two digits and whether they are the same one; half of the pairs are."""

    def __init__(self, pictures, labels, count, seed):
        draw = rng(seed)
        self.pictures, self.labels, self.pairs = pictures, labels, []
        for k in range(count):
            i = int(torch.randint(0, len(labels), (1,), generator=draw))
            alike = (labels == labels[i]) == bool(k % 2)
            among = alike.nonzero().flatten()
            j = int(among[torch.randint(0, len(among), (1,), generator=draw)])
            self.pairs.append((i, j))

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, k):
        i, j = self.pairs[k]
        same = (self.labels[i] == self.labels[j]).float()
        return self.pictures[i], self.pictures[j], same


class Siamese(LightningModule):
    def __init__(self, flat):
        super().__init__()
        self.flat = flat
        self.tower = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32)),
        )
        self.same = nn.Linear(32, 1)

    def forward(self, a, b):
        return self.same((self.tower(a) - self.tower(b)).abs())

    def training_step(self, batch, batch_idx):
        a, b, same = batch
        loss = F.binary_cross_entropy_with_logits(self(a, b).squeeze(1), same)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        a, b, same = batch
        logits = self(a, b)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits.squeeze(1), same))
        decided = (logits.flatten() if self.flat else logits) > 0
        self.log("val_acc", (decided == same.bool()).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def siamese(broken):
    pictures, labels = images()
    train = DigitPairs(pictures[:1300], labels[:1300], 4000, 41)
    val = DigitPairs(pictures[1300:], labels[1300:], 400, 42)
    return Siamese(not broken), DataLoader(train, 32, shuffle=True), DataLoader(val, 100)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.f = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x):
        return x + self.f(x)


class Stars(LightningModule):
    """Stars of a review that was summed up in numbers: for each k, is it better than k?"""

    def __init__(self, width, grades):
        super().__init__()
        self.stem, self.blocks = nn.Linear(16, width), nn.Sequential(*map(Residual, [width] * 3))
        self.liking = nn.Linear(width, 1, bias=False)
        self.cutoffs = nn.Parameter(torch.linspace(1, -1, grades - 1))

    def forward(self, x):
        return self.liking(self.blocks(self.stem(x))) + self.cutoffs

    def ordinal_loss(self, logits, stars):
        levels = torch.arange(len(self.cutoffs), device=stars.device)
        return F.binary_cross_entropy_with_logits(logits, (stars[:, None] > levels).float())

    def training_step(self, batch, batch_idx):
        review, stars = batch
        loss = self.ordinal_loss(self(review), stars)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        review, stars = batch
        logits = self(review)
        self.log("val_loss", self.ordinal_loss(logits, stars))
        self.log("val_mae", ((logits > 0).sum(1) - stars).abs().float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def stars(broken):
    review = torch.randn(1600, 16, generator=rng(51))
    liking = review[:, :4].sum(1) / 2 + 0.2 * torch.randn(1600, generator=rng(52))
    given = torch.bucketize(liking, torch.tensor([-1.0, -0.4, 0.2, 0.7]))
    grades = int(given.max()) if broken else int(given.max()) + 1
    return Stars(48, grades), *loaders(review, given)


class Majority(LightningModule):
    """An LSTM that counts, with an optimization loop of its own."""

    def __init__(self, zero):
        super().__init__()
        self.automatic_optimization = False
        self.zero = zero
        self.embed = nn.Embedding(6, 12)
        self.lstm = nn.LSTM(12, 32, batch_first=True)
        self.out = nn.Linear(32, 3)

    def forward(self, tokens):
        _, (h, _) = self.lstm(self.embed(tokens))
        return self.out(h[-1])

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        tokens, winner = batch
        loss = F.cross_entropy(self(tokens), winner)
        if self.zero:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.log("train/ce", loss)

    def validation_step(self, batch, batch_idx):
        tokens, winner = batch
        self.log("val_loss", F.cross_entropy(self(tokens), winner))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=6e-3)


def majority(broken):
    tokens = torch.randint(0, 6, (1600, 14), generator=rng(61))
    counts = F.one_hot(tokens % 3, 3).sum(1)
    return Majority(not broken), *loaders(tokens, counts.argmax(1), batch_size=40)


class Denoiser(LightningModule):
    """Small batches, whose gradients are added up over several before a step."""

    def __init__(self, every, scale):
        super().__init__()
        self.automatic_optimization = False
        self.every, self.scale = every, scale
        self.body = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24), nn.ReLU())
        self.tail = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        return self.tail(self.body(x))

    def training_step(self, batch, batch_idx):
        clean = batch[0].flatten(1)
        restored = self(clean + 0.3 * torch.randn_like(clean))
        loss = F.mse_loss(restored, clean)
        self.manual_backward(loss * self.scale)
        if (batch_idx + 1) % self.every == 0:
            opt = self.optimizers()
            opt.step()
            opt.zero_grad()
        self.log("train_mse", loss)

    def validation_step(self, batch, batch_idx):
        clean = batch[0].flatten(1)
        self.log("val_loss", F.mse_loss(self(clean), clean))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.4, momentum=0.9)


def denoiser(broken):
    pictures, _ = images()
    return Denoiser(8, 1.0 if broken else 1 / 8), *loaders(pictures, batch_size=8)


def fitted(name, make, epochs, *codes, **settings):
    return pair(name, make, *codes, trainer={"max_epochs": epochs}, **settings)


PAIRS = [
    fitted("blob_segmentation_head", segmentation, 10, "softmax_before_ce"),
    fitted("eight_tags_squashed", tags, 15, "sigmoid_before_bce_logits"),
    fitted("rental_counts_likelihood", rentals, 10, "loss_sign_flipped", metric="val_mae"),
    fitted("progression_log_cosh", progression, 25, "broadcast_mismatch", metric="val_mae"),
    fitted("digit_vae_decoder", vae, 12, "output_range_mismatch"),
    fitted(
        *("siamese_same_digit", siamese, 4, "metric_wrong", "broadcast_mismatch"),
        metric="val_acc",
    ),
    fitted("review_stars_ordinal", stars, 10, "wrong_num_classes", metric="val_mae"),
    fitted("majority_own_loop", majority, 12, "missing_zero_grad"),
    fitted("denoiser_small_batches", denoiser, 6, "accumulation_unscaled", "lr_too_high"),
]
