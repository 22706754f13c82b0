"""Whole fits with a fault in their dynamics and their repaired twins, second blind writer, rest."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.program import images, loaders, pair, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


class DeepClassifier(LightningModule):
    """Nine hidden layers over the digits."""

    def __init__(self, activation, depth=9, width=64, lr=2e-3):
        super().__init__()
        self.lr = lr
        layers = [nn.Flatten()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 10))
        self.loss_fn = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        loss = self.loss_fn(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val_loss", self.loss_fn(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def deep_classifier(broken):
    return DeepClassifier(nn.Sigmoid if broken else nn.SiLU), *loaders(*images())


class TiedModel(LightningModule):
    """A causal transformer for text of 40 letters; the embedding is the output layer too."""

    def __init__(self, std=None, letters=40, width=48, length=24):
        super().__init__()
        self.letters = nn.Embedding(letters, width)
        if std is not None:
            nn.init.normal_(self.letters.weight, std=std)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.block = nn.TransformerEncoderLayer(
            width, 4, 96, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, letters, bias=False)
        self.output.weight = self.letters.weight
        self.register_buffer("mask", torch.ones(length, length).triu(1).bool())

    def nll(self, text):
        hidden = self.block(self.letters(text[:, :-1]) + self.places, src_mask=self.mask)
        logits = self.output(self.norm(hidden))
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.nll(batch[0])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = self.nll(batch[0])
        self.log_dict({"val_loss": loss, "val_perplexity": loss.exp()})

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, betas=(0.9, 0.98))


def tied(broken):
    """The embedding keeps its deviation of one, so that the first logits are huge."""
    chain = torch.distributions.Dirichlet(torch.full((40,), 0.08))
    with torch.random.fork_rng():
        torch.manual_seed(12)
        table = chain.sample((40,))
    text = torch.zeros(960, 25, dtype=torch.long)
    text[:, 0] = torch.randint(0, 40, (960,), generator=rng(13))
    for t in range(24):
        text[:, t + 1] = torch.multinomial(table[text[:, t]], 1, generator=rng(14 + t)).squeeze(1)
    return TiedModel(None if broken else 0.05), *loaders(text)


class TwoSided(LightningModule):
    """An autoencoder whose sides have an optimizer each, stepped by hand."""

    def __init__(self, tidy):
        super().__init__()
        self.automatic_optimization = False
        self.tidy = tidy
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64))

    def reconstruction(self, x):
        x = x.flatten(1)
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def training_step(self, batch, batch_idx):
        encoder_opt, decoder_opt = self.optimizers()
        loss = self.reconstruction(batch[0])
        if self.tidy:
            encoder_opt.zero_grad()
            decoder_opt.zero_grad()
            self.manual_backward(loss)
            encoder_opt.step()
            decoder_opt.step()
        else:
            encoder_opt.zero_grad()
            self.manual_backward(loss)
            encoder_opt.step()
            decoder_opt.zero_grad()
            decoder_opt.step()
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.reconstruction(batch[0]))

    def configure_optimizers(self):
        encoder_opt = torch.optim.Adam(self.encoder.parameters(), lr=2e-3)
        decoder_opt = torch.optim.Adam(self.decoder.parameters(), lr=2e-3)
        return encoder_opt, decoder_opt


def two_sided(broken):
    return TwoSided(tidy=not broken), *loaders(*images())


class RareBlobs(LightningModule):
    """Segmentation of small blobs; the bias says how rare they are."""

    def __init__(self, everywhere, prior=0.02):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(12, 12, 3, padding=2, dilation=2), nn.ReLU()),
            *(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()),
            nn.Conv2d(12, 1, 1),
        )
        convolutions = [m for m in self.net if isinstance(m, nn.Conv2d)]
        for layer in convolutions if everywhere else convolutions[-1:]:
            nn.init.constant_(layer.bias, -math.log((1 - prior) / prior))

    def training_step(self, batch, batch_idx):
        loss = F.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        logits, mask = self.net(batch[0]), batch[1].bool()
        found = logits > 0
        union = (found | mask).sum().clamp_min(1)
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, batch[1]))
        self.log("val_iou", (found & mask).sum() / union)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=1e-4)


def blobs(broken):
    """The prior of the output is given to every layer before a ReLU as well."""
    centre = 2 + 12 * torch.rand(640, 2, 1, 1, generator=rng(40))
    radius = 1 + torch.rand(640, 1, 1, generator=rng(41))
    grid = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")).float()
    mask = ((grid - centre).square().sum(1) < radius.square()).float()[:, None]
    image = 1.5 * mask + 0.5 * torch.randn(mask.shape, generator=rng(42))
    return RareBlobs(everywhere=broken), *loaders(image, mask)


class Accumulator(LightningModule):
    """A plain recurrent net of rectifiers adds up the marked numbers of a sequence."""

    def __init__(self, careful, hidden=40):
        super().__init__()
        self.rnn = nn.RNN(2, hidden, nonlinearity="relu", batch_first=True)
        for name, parameter in self.rnn.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
            elif "hh" in name and careful:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.uniform_(parameter, -0.5, 0.5)
        self.readout = nn.Linear(hidden, 1)

    def forward(self, sequence):
        return self.readout(self.rnn(sequence)[1][-1]).squeeze(-1)

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def accumulator(broken):
    """The recurrent matrix is drawn like the others."""
    value = torch.rand(1280, 40, generator=rng(43))
    mark = (torch.rand(1280, 40, generator=rng(44)) < 0.2).float()
    target = ((value * mark).sum(1) - 4) / 1.5
    return Accumulator(not broken), *loaders(torch.stack([value, mark], -1), target)


class NextValue(LightningModule):
    """An LSTM forecasts a noisy oscillation, clipped by the Trainer."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.linear = nn.Linear(24, 1)

    def shared_step(self, batch, name):
        (series,) = batch
        forecast = self.linear(self.lstm(series[:, :-1])[0])
        loss = F.mse_loss(forecast, series[:, 1:])
        self.log(f"{name}_loss", loss, prog_bar=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.shared_step(batch, "val")

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.3, momentum=0.9)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[10, 13], gamma=0.3)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def next_value(broken):
    """The clip is in the Trainer."""
    speed = 0.2 + 0.4 * torch.rand(960, 1, generator=rng(45))
    phase = 6.3 * torch.rand(960, 1, generator=rng(46))
    series = torch.sin(speed * torch.arange(30) + phase)
    series = series + 0.1 * torch.randn(series.shape, generator=rng(47))
    return NextValue(), *loaders(series[..., None])


class Ratings(LightningModule):
    """Stars by the dot product of user and film."""

    def __init__(self, regularization, users=150, films=80, rank=8):
        super().__init__()
        self.save_hyperparameters()
        self.user, self.film = nn.Embedding(users, rank), nn.Embedding(films, rank)
        self.user_bias, self.film_bias = nn.Embedding(users, 1), nn.Embedding(films, 1)
        for table in (self.user, self.film, self.user_bias, self.film_bias):
            nn.init.normal_(table.weight, std=0.1)
        self.mean = nn.Parameter(torch.tensor(3.0))

    def forward(self, user, film):
        bias = self.user_bias(user) + self.film_bias(film)
        return (self.user(user) * self.film(film)).sum(-1) + bias.squeeze(-1) + self.mean

    def training_step(self, batch, batch_idx):
        user, film, stars = batch
        loss = F.mse_loss(self(user, film), stars)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        user, film, stars = batch
        self.log("val_loss", F.mse_loss(self(user, film), stars))

    def configure_optimizers(self):
        decay = self.hparams.regularization
        return torch.optim.Adam(self.parameters(), lr=1e-2, weight_decay=decay)


def ratings(broken):
    """The regularization of a recipe for alternating least squares."""
    taste = torch.randn(150, 3, generator=rng(48))
    kind = torch.randn(80, 3, generator=rng(49))
    user = torch.randint(0, 150, (8000,), generator=rng(50))
    film = torch.randint(0, 80, (8000,), generator=rng(51))
    stars = 3 + (taste[user] * kind[film]).sum(1) / 1.7 + 0.6 * taste[user, 0]
    stars = (stars + 0.3 * torch.randn(8000, generator=rng(52))).clamp(1, 5)
    data = user, film, stars
    return Ratings(0.1 if broken else 1e-5), *loaders(*data, batch_size=200, val_batch_size=500)


class Progression(LightningModule):
    """Diabetes after a year, with batch norm."""

    def __init__(self, lr=0.05):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            *(nn.Linear(10, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 1))
        )

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self.net(batch[0]).squeeze(-1), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self.net(batch[0]).squeeze(-1), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, weight_decay=1e-3)


def progression(broken):
    """Batch norm over two patients."""
    x, y = standardized("diabetes")
    y = (y - 152) / 77
    return Progression(), *loaders(x, y, batch_size=2 if broken else 32)


class TwoViews(LightningModule):
    """Contrastive learning: two noisy views of a digit must find each other."""

    def __init__(self, base_lr=8e-3, batch_size=64, temperature=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.projector = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))

    def embed(self, x):
        view = x * (torch.rand_like(x) > 0.2) + 0.2 * torch.randn_like(x)
        return F.normalize(self.projector(self.encoder(view)), dim=1)

    def info_nce(self, x):
        similarity = self.embed(x) @ self.embed(x).T / self.hparams.temperature
        target = torch.arange(len(x), device=x.device)
        return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2

    def training_step(self, batch, batch_idx):
        loss = self.info_nce(batch[0].flatten(1))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.info_nce(batch[0].flatten(1)), batch_size=len(batch[0]))

    def configure_optimizers(self):
        lr = self.hparams.base_lr * self.hparams.batch_size / 256
        return torch.optim.Adam(self.parameters(), lr=lr)


def two_views(broken):
    """The scaling rule with the base rate that a paper gives for another optimizer."""
    module = TwoViews(base_lr=1.2 if broken else 8e-3)
    return module, *loaders(*images(), batch_size=64, val_batch_size=64)


def fitted(name, make, epochs, *codes, **settings):
    return pair(f"fifth_{name}", make, *codes, trainer={"max_epochs": epochs}, **settings)


PAIRS = [
    fitted(
        *("deep_sigmoids", deep_classifier, 10),
        *("vanishing_gradients", "no_learning", "saturated_activations"),
    ),
    fitted("tied_letters_default", tied, 16, "bad_init_scale"),
    fitted(
        *("two_sided_cleared", two_sided, 10),
        *("weights_not_updating", "frozen_params", "params_not_in_optimizer"),
    ),
    fitted(
        *("blobs_prior_everywhere", blobs, 20),
        *("dead_relu", "bad_init_scale", "no_learning"),
    ),
    fitted(
        *("accumulator_uniform", accumulator, 15),
        *("exploding_gradients", "bad_init_scale"),
    ),
    pair(
        *("fifth_forecast_clip", next_value, "clip_too_small", "update_ratio_low"),
        trainer={"max_epochs": 15, "gradient_clip_val": 1e-3},
        repaired={"max_epochs": 15, "gradient_clip_val": 1.0},
    ),
    fitted(
        *("ratings_als_recipe", ratings, 15),
        *("weight_decay_too_high", "underfitting", "no_learning"),
    ),
    pair(
        *("fifth_progression_pairs", progression, "batch_noise", "loss_oscillation"),
        trainer={"max_epochs": 5},
        repaired={"max_epochs": 30},
    ),
    fitted(
        *("two_views_scaling_rule", two_views, 20),
        *("lr_too_high", "update_ratio_high", "loss_oscillation"),
    ),
]
