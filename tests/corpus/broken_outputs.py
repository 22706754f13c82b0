"""Programs whose outputs do not fit the loss: shapes, ranges, classes, levels, infinities."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.broken_losses import blobs, on, progression, tumours, wine
from tests.corpus.program import bundled, images, pair


class Detached(LightningModule):
    """Makes a fresh tensor of the loss, which then 'requires grad' and leads nowhere."""

    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(13, 24), nn.GELU(), nn.Linear(24, 3))
        self.criterion = nn.CrossEntropyLoss()
        self.broken = broken

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self.net(batch[0]), batch[1])
        if self.broken:
            loss = torch.tensor(loss.item(), requires_grad=True)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.criterion(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class DetachedRaises(Detached):
    def training_step(self, batch, batch_idx):
        loss = self.criterion(self.net(batch[0]), batch[1])
        return loss.detach() if self.broken else loss


class TwoHeads(LightningModule):
    """Reconstructs and classifies; the classification loss joins as a number."""

    def __init__(self, broken=False):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.decoder, self.classifier = nn.Linear(32, 64), nn.Linear(32, 10)
        self.broken = broken

    def forward(self, x):
        z = self.encoder(x)
        return self.decoder(z), self.classifier(z)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x_hat, logits = self(x)
        rec = F.mse_loss(x_hat, x.flatten(1))
        ce = F.cross_entropy(logits, y)
        self.log_dict({"rec": rec, "ce": ce})
        return {"loss": rec + (ce.item() if self.broken else ce), "rec": rec.detach()}

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x)[1].argmax(-1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Column(LightningModule):
    """Squared error of a column against a row."""

    def __init__(self, broken=False):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(10, 32), nn.Linear(32, 1)
        self.broken = broken

    def forward(self, x):
        y_hat = self.fc2(F.relu(self.fc1(x)))
        return y_hat if self.broken else y_hat.squeeze(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = ((self(x) - y) ** 2).mean()
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0]).view(-1), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class ColumnModule(Column):
    """The same through nn.MSELoss, which warns and goes on."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.MSELoss()(self(x), y)


class Segmenter(LightningModule):
    """Flattens class maps for the loss; classes must be moved to the end before."""

    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
        self.broken = broken

    def loss(self, logits, mask):
        if not self.broken:
            logits = logits.permute(0, 2, 3, 1)
        return F.cross_entropy(logits.reshape(-1, 2), mask.long().reshape(-1))

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        image, mask = batch
        hit = (self.net(image).argmax(1, keepdim=True) == 1) & (mask == 1)
        either = (self.net(image).argmax(1, keepdim=True) == 1) | (mask == 1)
        self.log("val_iou", hit.sum() / either.sum().clamp_min(1))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class RowsGRU(LightningModule):
    """Reads the rows of a digit; nn.GRU wants (time, batch, features)."""

    def __init__(self, broken=False):
        super().__init__()
        self.gru, self.head = nn.GRU(8, 32), nn.Linear(32, 10)
        self.broken = broken

    def forward(self, x):
        rows = x.squeeze(1)
        rows = rows.reshape(8, -1, 8) if self.broken else rows.transpose(0, 1)
        _, h = self.gru(rows)
        return self.head(h[-1])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return [torch.optim.Adam(self.parameters(), lr=1e-2)]


class Rectified(LightningModule):
    def __init__(self, broken=False):
        super().__init__()
        layers = [nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1)]
        self.mlp = nn.Sequential(*layers, nn.ReLU()) if broken else nn.Sequential(*layers)

    def _shared(self, batch, name):
        loss = F.mse_loss(self.mlp(batch[0]).squeeze(1), batch[1])
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self._shared(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self._shared(batch, "val_loss")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class SquashedAutoencoder(LightningModule):
    """Pixels of mean 0 and deviation 1 cannot come out of a sigmoid."""

    def __init__(self, broken=False):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 1, 1))
        self.dec = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1))
        self.out = torch.sigmoid if broken else nn.Identity()

    def forward(self, x):
        return self.out(self.dec(self.enc(x)))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class TanhRegression(LightningModule):
    """Predicts the brightness of a digit's lower half, 0 to 16, through a tanh."""

    def __init__(self, broken=False):
        super().__init__()
        self.hidden, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
        self.broken = broken

    def forward(self, x):
        x = self.last(F.elu(self.hidden(x)))
        return torch.tanh(x) if self.broken else x

    def training_step(self, batch, batch_idx):
        return F.smooth_l1_loss(self(batch[0] / 16), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_mae", F.l1_loss(self(batch[0] / 16), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def halves():
    pixels, _ = bundled("digits")
    return pixels[:, :32], pixels[:, 32:]


class Classes(LightningModule):
    """Ten digits; ``classes`` outputs."""

    def __init__(self, classes, scale=1.0):
        super().__init__()
        self.scale = scale
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        return self.head(self.net(x)) * self.scale

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class LogOfZero(LightningModule):
    """Probabilities first, their logarithm after: zero for a confident net."""

    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))
        self.broken = broken

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x * 30)
        logp = logits.softmax(1).log() if self.broken else logits.log_softmax(1)
        return -logp[torch.arange(len(y)), y].mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.net(batch[0] * 30).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-2)


class Distances(LightningModule):
    """Pulls digits of one class together; every digit's distance to itself is the root of 0."""

    def __init__(self, broken=False):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
        self.eps = 0.0 if broken else 1e-8

    def contrastive(self, batch):
        x, y = batch
        z = self.embed(x / 16)
        distance = ((z[:, None] - z[None]).pow(2).sum(-1) + self.eps).sqrt()
        same = (y[:, None] == y[None]).float()
        return (same * distance**2 + (1 - same) * F.relu(2 - distance) ** 2).mean()

    def training_step(self, batch, batch_idx):
        return self.contrastive(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.contrastive(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class ScaledPixels(LightningModule):
    """Standardises every pixel of the batch; the corners are always blank."""

    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.broken = broken
        self.register_buffer("mean", bundled("digits")[0].mean(0))
        self.register_buffer("std", bundled("digits")[0].std(0))

    def forward(self, x):
        std = self.std if self.broken else self.std.clamp_min(0.1)
        return self.net((x - self.mean) / std)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def classes(broken, right, wrong):
    return on(lambda b: Classes(wrong if b else right), images)(broken)


def pixels():
    return bundled("digits")


NO_GRAD = "element 0 of tensors does not require grad"
PAIRS = [
    pair("loss_as_number", on(Detached, wine), "loss_detached", "no_grad_flow"),
    pair("loss_detach", on(DetachedRaises, wine), "loss_detached", "no_grad_flow", error=NO_GRAD),
    pair("second_loss_item", on(TwoHeads, images), "loss_detached", "no_grad_flow",
         metric="val_acc"),
    pair("column_row", on(Column, progression), "broadcast_mismatch", metric="val_mse"),
    pair("column_row_module", on(ColumnModule, progression), "broadcast_mismatch",
         metric="val_mse"),
    pair("class_map_reshape", on(Segmenter, blobs), "dims_scrambled", metric="val_iou"),
    pair("rows_reshape", on(RowsGRU, images), "dims_scrambled", "batch_leakage"),
    pair("relu_output", on(Rectified, progression), "output_range_mismatch"),
    pair("sigmoid_output", on(SquashedAutoencoder, images), "output_range_mismatch",
         metric="val_mse"),
    pair("tanh_output", on(TanhRegression, halves), "output_range_mismatch", metric="val_mae"),
    pair("too_few_classes", lambda b: classes(b, 10, 9), "wrong_num_classes",
         error="Target 9 is out of bounds"),
    pair("thousand_classes", lambda b: classes(b, 10, 1000), "wrong_num_classes", steps=25),
    pair("temperature", on(lambda b: Classes(10, 100.0 if b else 1.0), images),
         "loss_not_at_chance", "bad_init_scale", "lr_too_high"),
    pair("log_of_zero", on(LogOfZero, tumours), "non_finite", metric="val_acc"),
    pair("root_of_zero", on(Distances, pixels), "non_finite"),
    pair("zero_deviation", on(ScaledPixels, pixels), "non_finite", "nan_in_data"),
]  # fmt: skip
