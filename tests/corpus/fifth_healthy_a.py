"""Healthy whole fits, a fifth blind set, first third: textbook classifiers."""

import sklearn.datasets
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn, optim
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

from tests.corpus.program import Program, bundled, images, loaders, standardized


def rng(seed):
    return torch.Generator().manual_seed(seed)


class DigitsMLP(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(dim=1) == y).float().mean())

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=1e-3)


def digits_mlp():
    x, y = bundled("digits")
    return DigitsMLP(), *loaders(x / 16, y)


class Classifier(LightningModule):
    """The usual wrapper: any network that ends in logits, and a way to make its optimizer."""

    def __init__(self, model, optimizer=None, smoothing=0.0):
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer or (lambda params: optim.Adam(params, lr=1e-3))
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = self.criterion(self(inputs), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        outputs = self(inputs)
        self.log("val_loss", self.criterion(outputs, labels))
        self.log("val_acc", (outputs.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return self.make_optimizer(self.model.parameters())


def wine_mlp():
    net = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))
    return Classifier(net), *loaders(*standardized("wine"), batch_size=16)


def iris_softmax():
    regression = nn.Linear(4, 3)
    module = Classifier(regression, lambda params: optim.SGD(params, lr=0.1))
    return module, *loaders(*standardized("iris"), batch_size=16)


class Tumors(LightningModule):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(30, 16), nn.Linear(16, 1)
        self.loss_fn = nn.BCEWithLogitsLoss()

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x))).squeeze(1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss_fn(self(x), y.float())

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logit = self(x)
        self.log("val_loss", self.loss_fn(logit, y.float()))
        self.log("val_acc", ((logit > 0) == (y == 1)).float().mean())

    def configure_optimizers(self):
        return optim.Adam(self.parameters())


class Progression(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch, _):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("loss/train", loss)
        return loss

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", F.mse_loss(self.net(x), y))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=1e-3, weight_decay=1e-3)


def diabetes_mlp():
    x, y = standardized("diabetes")
    return Progression(), *loaders(x, ((y - y.mean()) / y.std())[:, None])


def digits_cnn():
    cnn = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    return Classifier(cnn), *loaders(*images())


def dropout_cnn():
    """Half of the features are dropped in training only: validation has the lower loss."""
    cnn = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Dropout2d(0.25), nn.Flatten(), nn.Linear(128, 64), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(64, 10)),
    )
    return Classifier(cnn), *loaders(*images())


class RowTransformer(nn.Module):
    """Reads an image's rows as the words of a sentence."""

    def __init__(self, d_model=32):
        super().__init__()
        self.embed = nn.Linear(8, d_model)
        self.pos = nn.Parameter(torch.randn(1, 8, d_model) * 0.02)
        layer = nn.TransformerEncoderLayer(d_model, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(d_model, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.squeeze(1)) + self.pos).mean(1))


class Sentiment(LightningModule):
    """Whether good words outnumber the bad ones in a sentence of any length."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.classifier = nn.Linear(32, 2)

    def common_step(self, batch):
        words = self.embedding(batch["ids"])
        packed = pack_padded_sequence(words, batch["length"], True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        logits = self.classifier(hidden[-1])
        right = (logits.argmax(-1) == batch["label"]).float().mean()
        return F.cross_entropy(logits, batch["label"]), right

    def training_step(self, batch, batch_idx):
        loss, acc = self.common_step(batch)
        self.log("train_acc", acc, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch, batch_idx):
        loss, acc = self.common_step(batch)
        self.log_dict({"val_loss": loss, "val_acc": acc}, batch_size=len(batch["label"]))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=2e-3)


def collate_sentences(items):
    ids, labels = zip(*items, strict=True)
    return {
        "ids": pad_sequence(ids, batch_first=True),
        "length": torch.tensor([len(i) for i in ids]),
        "label": torch.stack(labels),
    }


def sentiment_lstm():
    g = rng(502)
    rows = []
    while len(rows) < 1600:
        ids = torch.randint(1, 100, (int(torch.randint(4, 20, (), generator=g)),), generator=g)
        score = (ids < 30).sum() - (ids > 70).sum()
        if score != 0:
            rows.append((ids, (score > 0).long()))
    train = DataLoader(rows[:1300], 32, shuffle=True, collate_fn=collate_sentences)
    return Sentiment(), train, DataLoader(rows[1300:], 100, collate_fn=collate_sentences)


class Block(nn.Module):
    """Pre-norm block; both branches start at a ten-thousandth of their size."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.gamma1 = nn.Parameter(torch.full((dim,), 1e-4))
        self.gamma2 = nn.Parameter(torch.full((dim,), 1e-4))

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.gamma1 * self.attn(h, h, h, need_weights=False)[0]
        return x + self.gamma2 * self.mlp(self.norm2(x))


class PatchViT(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(16, dim))
        self.blocks = nn.Sequential(Block(dim), Block(dim))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class WarmCosine(Classifier):
    def configure_optimizers(self):
        adamw = optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.1)
        total = self.trainer.estimated_stepping_batches
        warmup = total // 10
        schedule = optim.lr_scheduler.SequentialLR(
            adamw,
            [
                optim.lr_scheduler.LinearLR(adamw, 0.01, total_iters=warmup),
                optim.lr_scheduler.CosineAnnealingLR(adamw, total - warmup, 1e-5),
            ],
            milestones=[warmup],
        )
        return {
            "optimizer": adamw,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Residual(nn.Module):
    """The last norm's scale starts at zero; in training the branch is left out at times."""

    def __init__(self, channels, drop):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)
        self.drop = drop

    def forward(self, x):
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.training:
            keep = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
            branch = branch * keep / (1 - self.drop)
        return F.relu(x + branch)


class MixupResNet(Classifier):
    def __init__(self):
        super().__init__(
            nn.Sequential(
                *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
                *(Residual(16, 0.1), nn.MaxPool2d(2), Residual(16, 0.2)),
                *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
            )
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        lam = torch.distributions.Beta(0.4, 0.4).sample()
        other = torch.randperm(len(x), device=x.device)
        logits = self(lam * x + (1 - lam) * x[other])
        return lam * self.criterion(logits, y) + (1 - lam) * self.criterion(logits, y[other])

    def configure_optimizers(self):
        sgd = optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = optim.lr_scheduler.OneCycleLR(sgd, max_lr=0.15, total_steps=steps)
        return [sgd], [{"scheduler": cycle, "interval": "step"}]


class StepDecay(Classifier):
    def configure_optimizers(self):
        sgd = optim.SGD(self.parameters(), lr=0.02, momentum=0.95, nesterov=True)
        return [sgd], [optim.lr_scheduler.MultiStepLR(sgd, milestones=[14, 18], gamma=0.1)]


def moons_step_decay():
    points, side = sklearn.datasets.make_moons(1600, noise=0.2, random_state=5)
    points = torch.tensor(points).float()
    points = (points - points.mean(0)) / points.std(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    return StepDecay(net), *loaders(points, torch.tensor(side))


def noisy_labels():
    """A fifth of the training labels is random, and a batch has only eight images."""
    x, y = images()
    cut, g = len(x) * 3 // 4, rng(503)
    noisy = torch.where(torch.rand(len(y), generator=g) < 0.2, y.roll(1), y)
    labels = torch.cat([noisy[:cut], y[cut:]])
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    module = Classifier(net, lambda p: optim.SGD(p, lr=0.005, momentum=0.9, weight_decay=1e-3))
    return module, *loaders(x, labels, batch_size=8)


class Newton(Tumors):
    """Ridge-penalised logistic regression, all rows in one batch."""

    def __init__(self):
        super().__init__()
        del self.fc1, self.fc2
        self.linear = nn.Linear(30, 1)

    def forward(self, x):
        return self.linear(x).squeeze(1)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + 0.005 * self.linear.weight.square().sum()

    def configure_optimizers(self):
        return optim.LBFGS(self.parameters(), max_iter=5, line_search_fn="strong_wolfe")


class FineTune(Classifier):
    """The filters were learnt on other digits and stay as they are; only the head moves."""

    def __init__(self, filters, head):
        super().__init__(nn.Sequential(filters.eval().requires_grad_(False), head))

    def on_train_epoch_start(self):
        self.model[0].eval()

    def configure_optimizers(self):
        return optim.Adam(self.model[1].parameters(), lr=2e-3)


def frozen_filters():
    x, y = images()
    filters = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
    )
    old = nn.Sequential(filters, nn.Linear(96, 5))
    adam = optim.Adam(old.parameters(), lr=3e-3)
    known = y < 5
    for rows in torch.arange(int(known.sum())).split(32) * 3:
        loss = F.cross_entropy(old(x[known][rows]), y[known][rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return FineTune(filters, nn.Linear(96, 5)), *loaders(x[~known], y[~known] - 5)


class Distiller(LightningModule):
    """A student learns from a frozen teacher's softened answers and from the labels."""

    def __init__(self, teacher, temperature=3.0):
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.student = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
        self.T = temperature

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.student(x)
        with torch.no_grad():
            soft = F.log_softmax(self.teacher(x) / self.T, 1)
        hint = F.kl_div(F.log_softmax(logits / self.T, 1), soft, None, None, "batchmean", True)
        return 0.7 * self.T**2 * hint + 0.3 * F.cross_entropy(logits, y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.student(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return optim.Adam(self.student.parameters(), lr=2e-3)


def distillation():
    x, y = images()
    x, cut = x.flatten(1), len(x) * 3 // 4
    teacher = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    adam = optim.AdamW(teacher.parameters(), lr=2e-3, weight_decay=0.05)
    for rows in torch.arange(cut).split(64) * 8:
        adam.zero_grad()
        F.cross_entropy(teacher(x[rows]), y[rows]).backward()
        adam.step()
    return Distiller(teacher), *loaders(x, y)


def healthy(name, make, epochs, metric="val_loss", **trainer):
    return Program(f"fifth_{name}", make, trainer={"max_epochs": epochs} | trainer, metric=metric)


PROGRAMS = [
    healthy("digits_mlp", digits_mlp, 10, "val_acc"),
    healthy("wine_mlp", wine_mlp, 25),
    healthy("iris_softmax", iris_softmax, 30, "val_acc"),
    healthy(
        "breast_cancer_bce",
        lambda: (Tumors(), *loaders(*standardized("breast_cancer"))),
        20,
    ),
    healthy("diabetes_mlp", diabetes_mlp, 15),
    healthy("digits_cnn", digits_cnn, 8, "val_acc"),
    healthy("dropout_cnn", dropout_cnn, 10),
    healthy("row_transformer", lambda: (Classifier(RowTransformer()), *loaders(*images())), 12),
    healthy("sentiment_lstm", sentiment_lstm, 8),
    healthy(
        "layerscale_vit_warm_cosine",
        lambda: (WarmCosine(PatchViT(), smoothing=0.1), *loaders(*images())),
        10,
    ),
    healthy("mixup_resnet_one_cycle", lambda: (MixupResNet(), *loaders(*images())), 10),
    healthy("moons_step_decay", moons_step_decay, 20, gradient_clip_val=1.0),
    healthy("noisy_labels_batch_norm", noisy_labels, 6),
    healthy(
        "ridge_logistic_lbfgs",
        lambda: (Newton(), *loaders(*standardized("breast_cancer"), batch_size=426)),
        10,
    ),
    healthy("frozen_filters", frozen_filters, 10, "val_acc"),
    healthy("distilled_student", distillation, 12),
]
