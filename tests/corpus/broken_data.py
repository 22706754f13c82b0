"""Programs whose fault is in the data, mostly in how a Dataset or a loader hands it out."""

import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from tests.corpus.program import bundled, images, loaders, pair, standardized


class Net(LightningModule):
    """A classifier as in a hundred notebooks."""

    def __init__(self, features=64, classes=10, lr=1e-2, adam=True):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(features, 48), nn.ReLU(), nn.Linear(48, classes)
        )

    def forward(self, x):
        return self.net(x)

    def _step(self, batch, stage):
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        accuracy = (logits.argmax(1) == y).float().mean()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_acc": accuracy}, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "val")

    def configure_optimizers(self):
        if self.hparams.adam:
            return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Regressor(LightningModule):
    def __init__(self, lr=1e-2):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 1))
        self.loss_fn, self.lr = nn.MSELoss(), lr
        self.net[0].initialize_parameters(torch.zeros(1, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss_fn(self.net(x).squeeze(-1), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", self.loss_fn(self.net(x).squeeze(-1), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Pictures(Dataset):
    """Digits as a dict; what ``item`` does wrong is the fault."""

    def __init__(self, first, last, item):
        x, y = images()
        self.x, self.y, self.item = x[first:last], y[first:last], item

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        x, y = self.item(self.x, self.y, i)
        return {"x": x, "y": y}


def right(x, y, i):
    return x[i], y[i]


def label_after(x, y, i):
    return x[i], y[i - 1]


def always_first(x, y, i):
    return x[0], y[i]


def dicts(item):
    train, val = Pictures(0, 1300, item), Pictures(1300, None, item)
    return Net(), DataLoader(train, 32, shuffle=True), DataLoader(val, 128)


def shuffled_apart(broken):
    """Shuffles images and labels, with one order or with two."""
    x, y = images()
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(1300, generator=generator)
    other = torch.randperm(1300, generator=generator) if broken else order
    x, y = torch.cat([x[order], x[1300:]]), torch.cat([y[other], y[1300:]])
    return Net(), *loaders(x, y)


def integer_division(broken):
    """8-bit pixels to [0, 1]: // or /."""
    x, y = bundled("digits")
    x = (x * 15).to(torch.uint8)
    x = (x // 255).float() if broken else x / 255
    return Net(), *loaders(x, y)


def eight_bit(broken):
    x, y = bundled("digits")
    x = x * 16 if broken else x / 16
    return Net(lr=0.1, adam=False), *loaders(x, y)


def raw_wine(broken):
    """Proline is in the hundreds, hue about one."""
    x, y = bundled("wine") if broken else standardized("wine")
    return Net(13, 3, lr=0.05, adam=False), *loaders(x, y)


def income(broken):
    """A table with one column of another unit."""
    x, y = standardized("diabetes")
    if broken:
        x = x * torch.tensor([1.0] * 9 + [1e4])
    return Regressor(), *loaders(x, (y - y.mean()) / y.std())


def gaps(broken):
    """Missing values; the repaired twin fills them."""
    x, y = standardized("breast_cancer")
    x = x.clone()
    x[5::40, 3] = float("nan")
    x[400:] = x[400:].nan_to_num()
    return Net(30, 2), *loaders(x if broken else x.nan_to_num(), y)


def missing_targets(broken):
    """Missing targets; the repaired twin leaves those rows out."""
    x, y = standardized("diabetes")
    y = (y - y.mean()) / y.std()
    y[:300:50] = float("nan")
    keep = torch.ones_like(y).bool() if broken else ~y.isnan()
    return Regressor(), *loaders(x[keep], y[keep])


def only_train_scaled(broken):
    """The scaler was applied to the training part alone."""
    raw, y = bundled("wine")
    scaled, _ = standardized("wine")
    cut = len(y) * 3 // 4
    x = torch.cat([scaled[:cut], raw[cut:]]) if broken else scaled
    return Net(13, 3), *loaders(x, y)


def other_transform(broken):
    """Validation pictures come in [0, 255], training pictures in [0, 1]."""
    x, y = bundled("digits")
    x = (x / 16).view(-1, 1, 8, 8)
    cut = len(y) * 3 // 4
    x = torch.cat([x[:cut], x[cut:] * (255 if broken else 1)])
    return Net(), *loaders(x, y)


def frauds():
    """One case in a hundred is a fraud, and looks only a little different."""
    generator = torch.Generator().manual_seed(12)
    y = (torch.arange(6000) % 100 == 7).long()[torch.randperm(6000, generator=generator)]
    x = torch.randn(6000, 6, generator=generator) + 1.0 * y[:, None] * torch.ones(6)
    return x, y


class Fraud(LightningModule):
    """Judged by the mean of the two classes' recalls."""

    def __init__(self, weight=None):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU())
        self.head = nn.Linear(24, 2)
        self.criterion = nn.CrossEntropyLoss(weight=weight)
        self.recall = torchmetrics.classification.MulticlassRecall(2, average="macro")

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        return self.criterion(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.recall.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self):
        self.log("val_balanced_acc", self.recall.compute())
        self.recall.reset()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def imbalanced_weights(broken):
    weight = None if broken else torch.tensor([0.01, 0.99])
    return Fraud(weight), *loaders(*frauds(), batch_size=64, val_batch_size=500)


def imbalanced_sampler(broken):
    train, val = loaders(*frauds(), batch_size=64, val_batch_size=500)
    if not broken:
        labels = train.dataset.tensors[1]
        weight = torch.where(labels == 1, 0.99, 0.01)
        train = DataLoader(train.dataset, 64, sampler=WeightedRandomSampler(weight, len(labels)))
    return Fraud(), train, val


def by_class(broken):
    """Files were listed folder by folder and the loader does not shuffle."""
    x, y = images()
    order = torch.cat([y[:1300].argsort(), torch.arange(1300, len(y))])
    x, y = x[order], y[order]
    return Net(), *loaders(x, y, shuffle=not broken)


def by_target(broken):
    """Rows sorted by the value to be predicted."""
    generator = torch.Generator().manual_seed(13)
    x = torch.rand(6400, 10, generator=generator)
    y = (3 * x[:, 0] * x[:, 1]).sin() + 2 * (x[:, 2] - 0.5) ** 2 + x[:, 3] + x[:, 4] / 2
    x, y = (x - 0.5) / 0.29, (y - y.mean()) / y.std()
    order = torch.cat([y[:4800].argsort(), torch.arange(4800, len(y))])
    return Regressor(), *loaders(x[order], y[order], shuffle=not broken)


PAIRS = [
    pair("label_after", lambda b: dicts(label_after if b else right), "label_mismatch"),
    pair("shuffled_apart", shuffled_apart, "label_mismatch"),
    pair("always_first", lambda b: dicts(always_first if b else right), "constant_input",
         metric="val_acc"),
    pair("integer_division", integer_division, "constant_input", metric="val_acc"),
    pair("eight_bit_pixels", eight_bit, "unnormalized_input", metric="val_acc"),
    pair("raw_wine", raw_wine, "unnormalized_input", metric="val_acc"),
    pair("column_of_1e4", income, "unnormalized_input", metric="val_mse"),
    pair("nan_features", gaps, "nan_in_data", "non_finite"),
    pair("nan_targets", missing_targets, "nan_in_data", "non_finite", metric="val_mse"),
    pair("only_train_scaled", only_train_scaled, "train_val_mismatch", metric="val_acc"),
    pair("other_transform", other_transform, "train_val_mismatch"),
    pair("fraud_weights", imbalanced_weights, "class_imbalance", metric="val_balanced_acc"),
    pair("fraud_sampler", imbalanced_sampler, "class_imbalance", metric="val_balanced_acc"),
    pair("sorted_by_class", by_class, "unshuffled_data", metric="val_acc"),
    pair("sorted_by_target", by_target, "unshuffled_data", metric="val_mse"),
]  # fmt: skip
