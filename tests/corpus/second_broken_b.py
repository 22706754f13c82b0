"""Broken programs of a second hand: outputs, optimizer steps by hand, and modes."""

import dataclasses

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from tests.corpus.program import images, loaders, pair, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class IrisNet(LightningModule):
    """The three species, by a table as its author numbered it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 3))
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.criterion(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def iris_numbered(broken):
    x, y = standardized("iris")
    return IrisNet(), *loaders(x, y + 1 if broken else y, batch_size=16)


class Segmenter(LightningModule):
    """Every pixel in one of three classes; a border that nobody labelled is 255."""

    def __init__(self, **criterion):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1)
        )
        self.criterion = nn.CrossEntropyLoss(**criterion)

    def training_step(self, batch, batch_idx):
        picture, mask = batch
        return self.criterion(self.net(picture), mask)

    def validation_step(self, batch, batch_idx):
        picture, mask = batch
        self.log("val_loss", self.criterion(self.net(picture), mask))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def void_border(broken):
    picture, _ = images()
    mask = torch.bucketize(picture[:, 0], torch.tensor([-0.5, 0.7]))
    mask[:, 0] = mask[:, -1] = 255
    module = Segmenter() if broken else Segmenter(ignore_index=255)
    return module, *loaders(picture, mask)


class DigitNet(LightningModule):
    """A classifier head as wide as its author's last project needed it."""

    def __init__(self, num_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten())
        self.classifier = nn.Linear(12 * 36, num_classes)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.classifier(self.features(x)), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.classifier(self.features(x)), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def wide_head(broken):
    return DigitNet(600 if broken else 10), *loaders(*images())


class Regressor(LightningModule):
    """Targets of mean 0 behind whatever the last layer is."""

    def __init__(self, net, lr=5e-3):
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("train_mse", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", F.mse_loss(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def positive_returns(broken):
    x = torch.randn(900, 8, generator=seeded(11))
    y = (x[:, :1] * x[:, 1:2] + x[:, 2:3]) / 2**0.5
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1))
    if broken:
        net.append(nn.Softplus())
    return Regressor(net), *loaders(x, y)


class LastState(nn.Module):
    """The next value of a series by the last state of an LSTM."""

    def __init__(self, squash):
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.out = nn.Linear(32, 1)
        self.squash = squash

    def forward(self, series):
        value = self.out(self.lstm(series)[0][:, -1])
        return torch.tanh(value) if self.squash else value


def swing_forecast(broken):
    phase = 6.3 * torch.rand(1000, 1, generator=seeded(12))
    pace = 0.3 + 0.5 * torch.rand(1000, 1, generator=seeded(13))
    wave = 2.5 * torch.sin(phase + pace * torch.arange(17))
    return Regressor(LastState(broken), 1e-2), *loaders(wave[:, :16, None], wave[:, 16:])


def box_in_pixels(broken):
    g = seeded(14)
    centre = torch.randint(3, 13, (900, 2), generator=g)
    half = torch.randint(1, 4, (900, 2), generator=g)
    grid = torch.arange(16)
    inside = (grid - centre[..., None]).abs() <= half[..., None]
    picture = (inside[:, 0, :, None] & inside[:, 1, None, :]).float()
    box = torch.cat([centre, half], 1).float()
    head = nn.Sigmoid() if broken else nn.Identity()
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 4), head)
    return Regressor(net), *loaders(picture * 2 - 0.4, box)


class CloudGAN(LightningModule):
    """Points of a cloud; judged by how far the generated mean and deviation are off."""

    def __init__(self, clear):
        super().__init__()
        self.automatic_optimization = False
        self.clear = clear
        self.gen = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        opt_g, opt_d = self.optimizers()
        fake = self.gen(torch.randn(len(real), 4))
        loss_d = F.softplus(-self.critic(real)) + F.softplus(self.critic(fake.detach()))
        if self.clear:
            opt_d.zero_grad()
        self.manual_backward(loss_d.mean())
        opt_d.step()
        loss_g = F.softplus(-self.critic(fake)).mean()
        if self.clear:
            opt_g.zero_grad()
        self.manual_backward(loss_g)
        opt_g.step()

    def validation_step(self, batch, batch_idx):
        (real,) = batch
        fake = self.gen(torch.randn(2000, 4, generator=seeded(15)))
        gap = (fake.mean(0) - real.mean(0)).abs() + (fake.std(0) - real.std(0)).abs()
        self.log("val_gap", gap.sum())

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.gen.parameters(), 2e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.critic.parameters(), 5e-3, betas=(0.5, 0.9)),
        ]


def cloud_gan(broken):
    cloud = torch.tensor([1.2, -0.8]) + 0.6 * torch.randn(2000, 2, generator=seeded(17))
    return CloudGAN(clear=not broken), *loaders(cloud, batch_size=64, val_batch_size=500)


class HandStepped(LightningModule):
    """Steps by hand, after every batch or after some."""

    def __init__(self, net, loss_fn, lr, clear=True, every=1, divide=True):
        super().__init__()
        self.automatic_optimization = False
        self.lr, self.clear, self.every, self.divide = lr, clear, every, divide
        self.net, self.loss_fn = net, loss_fn

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        loss = self.loss_fn(self.net(batch[0]), batch[1])
        self.manual_backward(loss / self.every if self.divide else loss)
        if (batch_idx + 1) % self.every == 0:
            opt.step()
            if self.clear:
                opt.zero_grad()
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss_fn(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class RowLSTM(nn.Module):
    """Digits by an LSTM over the rows."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.fc = nn.Linear(32, 10)

    def forward(self, image):
        return self.fc(self.lstm(image[:, 0])[0].mean(1))


def lstm_uncleared(broken):
    return HandStepped(RowLSTM(), F.cross_entropy, 0.2, clear=not broken), *loaders(*images())


def eight_at_a_time(broken):
    x = torch.randn(1366, 12, generator=seeded(18))
    x = (x + 1.5 * torch.randn(1366, 1, generator=seeded(19))) / 3.25**0.5
    y = x @ torch.randn(12, 1, generator=seeded(20)) + (2 * x[:, :1]).tanh()
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 1))
    module = HandStepped(net, F.mse_loss, 0.03, every=8, divide=not broken)
    return module, *loaders(x, y / y.std(), batch_size=16)


class DeepNormed(LightningModule):
    """Ten normalised layers; an early call to eval() stays for good where nothing undoes it."""

    def __init__(self, eval_at_start=False, reports=True, back_to_train=True):
        super().__init__()
        self.eval_at_start, self.reports = eval_at_start, reports
        self.back_to_train = back_to_train
        layers = [nn.Flatten()]
        for i in range(10):
            layers += [nn.Linear(64 if i == 0 else 40, 40), nn.BatchNorm1d(40), nn.Sigmoid()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(40, 10)

    def on_train_start(self):
        if self.eval_at_start:
            self.body.eval()

    def training_step(self, batch, batch_idx):
        if self.reports and batch_idx % 10 == 0:
            self.report(batch)
        return F.cross_entropy(self.head(self.body(batch[0])), batch[1])

    @torch.no_grad()
    def report(self, batch):
        self.eval()
        self.log("train_acc", (self.head(self.body(batch[0])).argmax(1) == batch[1]).float().mean())
        if self.back_to_train:
            self.train()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.head(self.body(batch[0])), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


@dataclasses.dataclass
class Pixels:
    """A batch of digits."""

    image: torch.Tensor
    label: torch.Tensor


def collate(rows):
    return Pixels(torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))


class DropNet(LightningModule):
    """Dropout by the function; dataclass batches."""

    def __init__(self, always):
        super().__init__()
        self.always = always
        self.one, self.two = nn.Linear(64, 128), nn.Linear(128, 10)

    def forward(self, image):
        hidden = F.relu(self.one(image.flatten(1)))
        return self.two(F.dropout(hidden, 0.5, training=self.always or self.training))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch.image), batch.label)

    def validation_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch.image), batch.label)
        self.log("val_loss", loss, batch_size=len(batch.label))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def functional_dropout(broken):
    parts = loaders(*images())
    train, val = (
        DataLoader(p.dataset, 32, collate_fn=collate, shuffle=p is parts[0]) for p in parts
    )
    return DropNet(always=broken), train, val


class SmallBatches(LightningModule):
    """A convolutional net that is validated four images at a time."""

    def __init__(self, keep_mode):
        super().__init__()
        self.keep_mode = keep_mode
        self.conv = nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
        self.mlp = nn.Sequential(nn.Linear(576, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.mlp(self.conv(x)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def on_validation_epoch_start(self):
        if not self.keep_mode:
            self.train()

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def four_at_a_time(broken):
    module = SmallBatches(keep_mode=not broken)
    return module, *loaders(*images(), val_batch_size=4)


PAIRS = [
    pair("species_from_one", iris_numbered, "wrong_num_classes", error="Target 3 is out of bounds"),
    pair("void_is_255", void_border, "wrong_num_classes", error="Target 255 is out of bounds"),
    pair("head_of_600", wide_head, "wrong_num_classes", steps=40),
    pair("softplus_returns", positive_returns, "output_range_mismatch", metric="val_mse"),
    pair("tanh_of_swings", swing_forecast, "output_range_mismatch", metric="val_mse"),
    pair("boxes_in_pixels", box_in_pixels, "output_range_mismatch", metric="val_mse"),
    pair("cloud_gan", cloud_gan, "missing_zero_grad", metric="val_gap", steps=250),
    pair("lstm_by_hand", lstm_uncleared, "missing_zero_grad"),
    pair("eight_microbatches", eight_at_a_time, "accumulation_unscaled", "lr_too_high", steps=240),
    pair(
        "eval_at_start",
        lambda broken: (DeepNormed(eval_at_start=broken, reports=False), *loaders(*images())),
        "eval_mode_in_training",
    ),
    pair(
        "eval_for_a_report",
        lambda broken: (DeepNormed(back_to_train=not broken), *loaders(*images())),
        "eval_mode_in_training",
    ),
    pair("functional_dropout", functional_dropout, "train_mode_in_validation"),
    pair("train_for_validation", four_at_a_time, "train_mode_in_validation", metric="val_acc"),
]
