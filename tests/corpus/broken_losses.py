"""Programs whose fault is the loss, what goes into it, or what is reported of it."""

import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.program import images, loaders, pair, standardized


class DigitsMLP(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 10)
        self.broken = broken

    def forward(self, x):
        x = F.relu(self.fc1(x.flatten(1)))
        x = self.fc2(x)
        return F.softmax(x, dim=1) if self.broken else x

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class DigitsCNN(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        layers = [
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        ]
        if broken:
            layers.append(nn.Softmax(dim=1))
        self.model = nn.Sequential(*layers)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(10, average="micro")

    def training_step(self, batch, batch_idx):
        return self.criterion(self.model(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.accuracy(self.model(batch[0]), batch[1])
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def tags():
    """Eight labels per example, each seldom there."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1200, 20, generator=generator)
    return x, (x @ torch.randn(20, 8, generator=generator) > 5).float()


class Tagger(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 8))
        self.broken = broken

    def forward(self, x):
        return torch.sigmoid(self.body(x)) if self.broken else self.body(x)

    def _step(self, batch, stage):
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self(x), y)
        self.log(f"{stage}_loss", loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def blobs(channels=1):
    """Noisy 12 x 12 pictures with a bright disc, and its mask."""
    generator = torch.Generator().manual_seed(9)
    grid = torch.stack(torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")).float()
    centre = torch.rand(400, 2, 1, 1, generator=generator) * 12
    mask = ((grid - centre).pow(2).sum(1, keepdim=True) < 9).float()
    return mask + 0.4 * torch.randn(400, channels, 12, 12, generator=generator), mask


class UNetLike(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 1, 1))
        self.up = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU())
        self.head = nn.Conv2d(9, 1, 1)
        self.act = nn.Sigmoid() if broken else nn.Identity()
        self.loss = nn.BCEWithLogitsLoss()

    def forward(self, x):
        return self.act(self.head(torch.cat([self.up(self.down(x)), x], 1)))

    def training_step(self, batch, batch_idx):
        image, mask = batch
        loss = self.loss(self(image), mask)
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        image, mask = batch
        self.log("val_loss", self.loss(self(image), mask))

    def configure_optimizers(self):
        return {"optimizer": torch.optim.AdamW(self.parameters(), lr=5e-3)}


class Tumour(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 1))
        self.squash = nn.Softmax(dim=1) if broken else nn.Sigmoid()

    def forward(self, x):
        return self.squash(self.net(x)).squeeze(1)

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy(self(batch[0]), batch[1].float())

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", ((self(batch[0]) > 0.5) == batch[1].bool()).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class WineLikelihood(LightningModule):
    """Cross-entropy by hand, from the log-probabilities."""

    def __init__(self, broken=False):
        super().__init__()
        self.l1, self.l2 = nn.Linear(13, 32), nn.Linear(32, 3)
        self.sign = 1 if broken else -1

    def forward(self, x):
        return self.l2(self.l1(x).relu()).log_softmax(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.sign * (F.one_hot(y, 3) * self(x)).sum(-1).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.nll_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


class GaussianRegression(LightningModule):
    """Predicts mean and log-variance; the loss is the Gaussian negative log-likelihood."""

    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
        self.broken = broken

    def nll(self, batch):
        x, y = batch
        mean, log_var = self.net(x).clamp(-5, 5).unbind(1)
        log_likelihood = -0.5 * (log_var + (y - mean) ** 2 / log_var.exp())
        return log_likelihood.mean() if self.broken else -log_likelihood.mean()

    def training_step(self, batch, batch_idx):
        return self.nll(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self.net(batch[0])[:, 0], batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def progression():
    x, y = standardized("diabetes")
    return x, (y - y.mean()) / y.std()


class DigitsAutoencoder(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))
        self.criterion = nn.MSELoss(reduction="sum" if broken else "mean")

    def forward(self, x):
        return self.decoder(self.encoder(x.flatten(1)))

    def training_step(self, batch, batch_idx):
        x, _ = batch
        return self.criterion(self(x), x.flatten(1))

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[0].flatten(1)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class WineSum(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch, batch_idx):
        losses = F.cross_entropy(self.model(batch[0]), batch[1], reduction="none")
        return losses.sum() if self.hparams.broken else losses.mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


class ReportsWrong(LightningModule):
    """Trains well and reports otherwise: the winner is taken over the wrong dimension."""

    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.class_dim = 0 if broken else 1

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        x, y = batch
        predicted = self.net(x).argmax(self.class_dim)
        self.log("val_acc", sum(p == t for p, t in zip(predicted, y, strict=False)) / len(y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class ReportsBroadcast(LightningModule):
    """The accuracy compares a column with a row."""

    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 1))
        self.broken = broken

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.net(x).squeeze(1), y.float())

    def validation_step(self, batch, batch_idx):
        x, y = batch
        guess = (self.net(x) > 0).long()
        if not self.broken:
            guess = guess.squeeze(1)
        self.log("val_acc", (guess == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def on(module, data, **settings):
    return lambda broken: (module(broken), *loaders(*data(), **settings))


def wine():
    return standardized("wine")


def tumours():
    return standardized("breast_cancer")


PAIRS = [
    pair("softmax_mlp", on(DigitsMLP, images), "softmax_before_ce", metric="val_acc"),
    pair("softmax_cnn", on(DigitsCNN, images), "softmax_before_ce", metric="val_acc", steps=80),
    pair("sigmoid_tagger", on(Tagger, tags), "sigmoid_before_bce_logits"),
    pair("sigmoid_unet", on(UNetLike, blobs, batch_size=16), "sigmoid_before_bce_logits"),
    pair("one_logit_softmax", on(Tumour, tumours), "single_logit_softmax", metric="val_acc"),
    pair("sign_onehot", on(WineLikelihood, wine), "loss_sign_flipped"),
    pair("sign_gaussian", on(GaussianRegression, progression), "loss_sign_flipped",
         metric="val_mse"),
    pair("sum_autoencoder", on(DigitsAutoencoder, images), "loss_reduction_sum", "lr_too_high",
         metric="val_mse"),
    pair("sum_wine", on(WineSum, wine, batch_size=64), "loss_reduction_sum", "lr_too_high"),
    pair("metric_wrong_dim", on(ReportsWrong, images), "metric_wrong", metric="val_acc",
         note="trains well; only the report is wrong"),
    pair("metric_broadcast", on(ReportsBroadcast, tumours), "metric_wrong", metric="val_acc",
         note="trains well; only the report is wrong"),
]  # fmt: skip
