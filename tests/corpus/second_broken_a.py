"""Broken programs of a second hand: losses and what is fed to them."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn, optim

from tests.corpus.program import images, loaders, pair, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class RowReader(pl.LightningModule):
    """A GRU that reads a digit row by row."""

    def __init__(self, activation):
        super().__init__()
        self.rnn = nn.GRU(8, 48, batch_first=True)
        self.head = nn.Sequential(nn.Linear(48, 10), activation)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, image):
        _, hidden = self.rnn(image.squeeze(1))
        return self.head(hidden[-1])

    def training_step(self, batch, batch_idx):
        image, label = batch
        loss = self.criterion(self(image), label)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        image, label = batch
        self.log("val_acc", (self(image).argmax(1) == label).float().mean())

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=5e-3)


def row_reader(broken):
    last = nn.Softmax(dim=-1) if broken else nn.Identity()
    return RowReader(last), *loaders(*images())


class PatchTransformer(pl.LightningModule):
    """Four patches of a digit, one encoder layer, the mean of the tokens."""

    def __init__(self, probabilities, width=32):
        super().__init__()
        self.save_hyperparameters()
        self.patch = nn.Conv2d(1, width, kernel_size=4, stride=4)
        self.place = nn.Parameter(0.02 * torch.randn(1, 4, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.out = nn.Linear(width, 10)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        scores = self.out(self.layer(tokens).mean(1))
        return scores.softmax(-1) if self.hparams.probabilities else scores

    def step(self, batch, stage):
        x, y = batch
        loss = F.cross_entropy(self(x), y, label_smoothing=0.05)
        self.log(f"{stage}_loss", loss)
        return loss

    def training_step(self, batch, _):
        return self.step(batch, "train")

    def validation_step(self, batch, _):
        self.step(batch, "val")

    def configure_optimizers(self):
        return optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.01)


def patch_transformer(broken):
    return PatchTransformer(probabilities=broken), *loaders(*images(), batch_size=48)


class TopicTagger(pl.LightningModule):
    """Six independent tags of a document, of which each holds for about a third."""

    def __init__(self, squash):
        super().__init__()
        self.squash = squash
        self.body = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 6))
        self.loss_fn = nn.BCEWithLogitsLoss()

    def forward(self, words):
        out = self.body(words)
        if self.squash:
            out = torch.sigmoid(out)
        return out

    def training_step(self, batch, batch_idx):
        words, tags = batch
        return self.loss_fn(self(words), tags)

    def validation_step(self, batch, batch_idx):
        words, tags = batch
        self.log("val_loss", self.loss_fn(self(words), tags))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=3e-3)


def topic_tagger(broken):
    words = torch.randn(1200, 20, generator=seeded(1))
    scores = words @ torch.randn(20, 6, generator=seeded(2)) / 20**0.5
    return TopicTagger(squash=broken), *loaders(words, (scores > 0.4).float())


class SameDigit(pl.LightningModule):
    """Siamese: do two images show the same digit? Half of the pairs do."""

    def __init__(self, last):
        super().__init__()
        self.tower = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
        self.compare = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), *last)

    def forward(self, left, right):
        return self.compare((self.tower(left) - self.tower(right)).abs()).squeeze(1)

    def training_step(self, batch, batch_idx):
        left, right, same = batch
        return F.binary_cross_entropy_with_logits(self(left, right), same)

    def validation_step(self, batch, batch_idx):
        left, right, same = batch
        loss = F.binary_cross_entropy_with_logits(self(left, right), same)
        self.log_dict({"val_loss": loss})

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=2e-3)


def same_digit(broken):
    image, label = images()
    partner, draw = [], seeded(4)
    for row, digit in enumerate(label):
        pool = (label == digit) if row % 2 else (label != digit)
        pool = pool.nonzero().squeeze(1)
        partner.append(pool[torch.randint(len(pool), (), generator=draw)])
    partner = torch.stack(partner)
    same = (label == label[partner]).float()
    last = [nn.Sigmoid()] if broken else []
    return SameDigit(last), *loaders(image, image[partner], same)


class TumourNet(pl.LightningModule):
    """Benign or malignant from one output."""

    def __init__(self, final):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 1), final)

    def training_step(self, batch, batch_idx):
        x, y = batch
        p = self.net(x).squeeze(-1)
        loss = F.binary_cross_entropy(p, y.float())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        guess = self.net(x).squeeze(-1) > 0.5
        self.log("val_acc", (guess == y.bool()).float().mean())

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=5e-3)


def tumour(broken):
    final = nn.Softmax(dim=1) if broken else nn.Sigmoid()
    return TumourNet(final), *loaders(*standardized("breast_cancer"))


class PulseDetector(pl.LightningModule):
    """Whether a noisy series holds a pulse; dict batches."""

    def __init__(self, to_probability):
        super().__init__()
        self.to_probability = to_probability
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.score = nn.Linear(24, 1)

    def loss(self, batch):
        states, _ = self.lstm(batch["series"].unsqueeze(-1))
        chance = self.to_probability(self.score(states.amax(1)))
        return ((chance - batch["pulse"].unsqueeze(1)) ** 2).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_brier", self.loss(batch), batch_size=len(batch["pulse"]))

    def configure_optimizers(self):
        return {"optimizer": optim.Adam(self.parameters(), lr=1e-2)}


def pulse(broken):
    series = 0.5 * torch.randn(800, 20, generator=seeded(5))
    has = torch.randint(2, (800,), generator=seeded(6))
    at = torch.randint(3, 16, (800,), generator=seeded(7))
    for row in range(800):
        series[row, at[row] : at[row] + 3] += 2.5 * has[row]
    rows = [{"series": s, "pulse": p} for s, p in zip(series, has.float(), strict=True)]
    make = torch.utils.data.DataLoader
    module = PulseDetector((lambda z: z.softmax(-1)) if broken else torch.sigmoid)
    return module, make(rows[:600], 32, shuffle=True, drop_last=True), make(rows[600:], 100)


class WineClassifier(pl.LightningModule):
    """Collects the losses of its parts in a list before it returns their total."""

    def __init__(self, rewrap):
        super().__init__()
        self.rewrap = rewrap
        self.fc1, self.fc2 = nn.Linear(13, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        parts = [F.cross_entropy(logits, y), 1e-3 * logits.square().mean()]
        if self.rewrap:
            return torch.tensor([p.item() for p in parts], requires_grad=True).sum()
        return torch.stack(parts).sum()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=5e-3)


def rewrapped(broken):
    return WineClassifier(rewrap=broken), *loaders(*standardized("wine"))


class TotalLoss(pl.LightningModule):
    """Manual optimization of a total that starts at zero."""

    def __init__(self, live):
        super().__init__()
        self.automatic_optimization = False
        self.live = live
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        x, y = batch
        total = torch.zeros((), requires_grad=True)
        task = F.nll_loss(self.net(x).log_softmax(-1), y)
        if self.live:
            total = total + task
        else:
            total.data += task.data
        optimizer.zero_grad()
        self.manual_backward(total)
        optimizer.step()
        self.log("total", total.detach())

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(-1) == y).float().mean())

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def running_total(broken):
    return TotalLoss(live=not broken), *loaders(*images())


class DirectionNet(pl.LightningModule):
    """Predicts a direction in three dimensions; judged by the cosine."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign
        self.mlp = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 3))

    def agreement(self, batch):
        x, direction = batch
        return F.cosine_similarity(self.mlp(x), direction).mean()

    def training_step(self, batch, batch_idx):
        return self.sign * self.agreement(batch) + 1

    def validation_step(self, batch, batch_idx):
        self.log("val_angle_loss", 1 - self.agreement(batch))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), 3e-3)


def direction(broken):
    x = torch.randn(1000, 6, generator=seeded(8))
    target = torch.tanh(x @ torch.randn(6, 3, generator=seeded(9)))
    return DirectionNet(1 if broken else -1), *loaders(x, target)


class DigitVAE(pl.LightningModule):
    """A small variational autoencoder of the digits."""

    def __init__(self, kl_sign):
        super().__init__()
        self.kl_sign = kl_sign
        self.enc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * 8))
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def parts(self, x):
        mu, logvar = self.enc(x).chunk(2, dim=-1)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        recon = F.mse_loss(self.dec(z), x, reduction="none").sum(-1).mean()
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1).mean()
        return recon, kl

    def training_step(self, batch, _):
        recon, kl = self.parts(batch[0].flatten(1))
        self.log_dict({"recon": recon, "kl": kl})
        return (recon + self.kl_sign * kl) / 64

    def validation_step(self, batch, _):
        recon, kl = self.parts(batch[0].flatten(1))
        self.log("val_elbo_loss", (recon + kl) / 64)

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=3e-3)


def digit_vae(broken):
    return DigitVAE(-1.0 if broken else 1.0), *loaders(*images())


class ConvAutoencoder(pl.LightningModule):
    """Down to 2 x 2 and up again."""

    def __init__(self, reduction):
        super().__init__()
        self.loss = nn.MSELoss(reduction=reduction)
        self.down = nn.Sequential(nn.Conv2d(1, 16, 4, 4), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 1, 4, 4)

    def training_step(self, batch, batch_idx):
        image = batch[0]
        return self.loss(self.up(self.down(image)), image)

    def validation_step(self, batch, batch_idx):
        image = batch[0]
        self.log("val_mse", F.mse_loss(self.up(self.down(image)), image))

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def conv_autoencoder(broken):
    return ConvAutoencoder("sum" if broken else "mean"), *loaders(*images(), batch_size=64)


PAIRS = [
    pair("row_reader_gru", row_reader, "softmax_before_ce", metric="val_acc", steps=120),
    pair("patch_probabilities", patch_transformer, "softmax_before_ce", steps=120),
    pair("topic_tags", topic_tagger, "sigmoid_before_bce_logits"),
    pair("same_digit_pairs", same_digit, "sigmoid_before_bce_logits"),
    pair("tumour_probability", tumour, "single_logit_softmax", metric="val_acc"),
    pair("pulse_brier", pulse, "single_logit_softmax", metric="val_brier"),
    pair("parts_rewrapped", rewrapped, "loss_detached", "no_grad_flow", steps=100),
    pair("total_in_data", running_total, "loss_detached", "no_grad_flow", metric="val_acc"),
    pair("cosine_direction", direction, "loss_sign_flipped", metric="val_angle_loss"),
    pair("divergence_minus", digit_vae, "loss_sign_flipped", metric="val_elbo_loss"),
    pair(
        "pixels_added_up",
        conv_autoencoder,
        "loss_reduction_sum",
        "lr_too_high",
        metric="val_mse",
        steps=120,
    ),
]
