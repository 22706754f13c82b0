"""Textbook faults, one to a program, each plain and strong, and their repaired twins."""

import itertools

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.corpus.program import images, loaders, pair, standardized


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).float().mean()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Classifier(LightningModule):
    """A network, cross entropy and whatever optimizer the caller builds."""

    def __init__(self, net, optimizer):
        super().__init__()
        self.net = net
        self.optimizer = optimizer

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", accuracy(logits, y))

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Regressor(LightningModule):
    """One output per row, mean squared error, Adam."""

    def __init__(self, net, lr=1e-3):
        super().__init__()
        self.net = net
        self.lr = lr

    def step(self, batch, name):
        x, y = batch
        loss = F.mse_loss(self.net(x).squeeze(1), y)
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val_loss")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def mlp(sizes, activation):
    layers = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def linears(net):
    return [m for m in net.modules() if isinstance(m, nn.Linear)]


# 1. Dead rectifiers


def negative_biases(broken):
    net = mlp([64, 128, 64, 10], nn.ReLU)
    for layer in linears(net)[:-1]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.constant_(layer.bias, -20.0 if broken else 0.0)
    module = Classifier(net, lambda p: torch.optim.Adam(p, lr=1e-3))
    return module, *loaders(*standardized("digits"), batch_size=32)


# 2. Saturation from raw inputs


def houses():
    """Area, year, distance to the centre in metres, lot size, income; the price, standardized."""
    g = seeded(11)
    u = torch.rand(1600, 5, generator=g)
    low = torch.tensor([400.0, 1900.0, 100.0, 1000.0, 20000.0])
    high = torch.tensor([4000.0, 2020.0, 30000.0, 40000.0, 150000.0])
    price = 2 * u[:, 0] + u[:, 1] ** 2 - 1.5 * u[:, 2] + u[:, 3] * u[:, 4] + u[:, 4]
    price = price + 0.05 * torch.randn(1600, generator=g)
    return low + u * (high - low), (price - price.mean()) / price.std()


def raw_units(broken):
    x, y = houses()
    if not broken:
        x = (x - x.mean(0)) / x.std(0)
    return Regressor(mlp([5, 64, 32, 1], nn.Tanh)), *loaders(x, y, batch_size=32)


# 3. Saturation from a large initialization


def wide_tanh(broken):
    net = mlp([64, 200, 200, 200, 10], nn.Tanh)
    for layer in linears(net):
        if broken:
            nn.init.normal_(layer.weight, std=1.0)
        else:
            nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    module = Classifier(net, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
    return module, *loaders(*standardized("digits"), batch_size=32)


# 4. A deep stack of sigmoids


class DeepStack(LightningModule):
    def __init__(self, activation, depth=9, width=64):
        super().__init__()
        self.inlet = nn.Linear(64, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outlet = nn.Linear(width, 10)
        self.activation = activation()
        for layer in linears(self):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        x = self.activation(self.inlet(x))
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.outlet(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log_dict(
            {"val_loss": F.cross_entropy(logits, batch[1]), "val_acc": accuracy(logits, batch[1])}
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


def deep_sigmoids(broken):
    module = DeepStack(nn.Sigmoid if broken else nn.ReLU)
    return module, *loaders(*standardized("digits"), batch_size=32)


# 5. Exploding gradients


class Autoencoder(LightningModule):
    def __init__(self, scale):
        super().__init__()
        self.encoder = mlp([64, 96, 96, 96, 16], nn.ReLU)
        self.decoder = mlp([16, 96, 96, 96, 64], nn.ReLU)
        for layer in linears(self):
            nn.init.normal_(layer.weight, std=scale * (2 / layer.in_features) ** 0.5)
            nn.init.zeros_(layer.bias)

    def shared(self, batch):
        (x,) = batch
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def training_step(self, batch, batch_idx):
        loss = self.shared(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.shared(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def exploding_autoencoder(broken):
    x, _ = images()
    return Autoencoder(6.0 if broken else 1.0), *loaders(x.flatten(1), batch_size=32)


# 6. An initialization far too small


def tiny_weights(broken):
    net = mlp([64, 80, 80, 80, 80, 80, 80, 10], nn.Tanh)
    for layer in linears(net):
        if broken:
            nn.init.normal_(layer.weight, std=0.003)
        else:
            nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    module = Classifier(net, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9))
    return module, *loaders(*standardized("digits"), batch_size=48)


# 7. All weights zero


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )


def all_zero(broken):
    net = small_cnn()
    if broken:
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
    module = Classifier(net, lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.01))
    return module, *loaders(*images(), batch_size=32)


# 8. Layers that the optimizer never got


def marked_sums(count=2400, length=10):
    """The adding problem: two of the values are marked and the target is their sum."""
    g = seeded(21)
    values = torch.rand(count, length, generator=g) * 2 - 1
    marks = torch.zeros(count, length)
    marks.scatter_(1, torch.rand(count, length, generator=g).argsort(1)[:, :2], 1.0)
    return torch.stack([values, marks], 2), (values * marks).sum(1)


class Adder(LightningModule):
    def __init__(self, only_head):
        super().__init__()
        self.only_head = only_head
        self.gru = nn.GRU(2, 48, batch_first=True)
        self.head = nn.Linear(48, 1)

    def forward(self, x):
        states, _ = self.gru(x)
        return self.head(states[:, -1]).squeeze(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.mse_loss(self(x), y), prog_bar=True)

    def configure_optimizers(self):
        parameters = self.head.parameters() if self.only_head else self.parameters()
        return torch.optim.Adam(parameters, lr=5e-3)


def gru_left_out(broken):
    return Adder(broken), *loaders(*marked_sums(), batch_size=64)


# 9. Frozen layers


def flagged_tokens(count=2400, length=10, kinds=8):
    """Tokens of which one carries a flag; the label is that token."""
    g = seeded(22)
    tokens = torch.randint(kinds, (count, length), generator=g)
    where = torch.randint(length, (count,), generator=g)
    return tokens, F.one_hot(where, length), tokens[torch.arange(count), where]


class Transformer(LightningModule):
    def __init__(self, frozen, kinds=8, width=32):
        super().__init__()
        self.tokens = nn.Embedding(kinds, width)
        self.flags = nn.Embedding(2, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, kinds)
        if frozen:
            self.tokens.requires_grad_(False)
            self.flags.requires_grad_(False)
            self.encoder.requires_grad_(False)

    def forward(self, tokens, flags):
        return self.head(self.encoder(self.tokens(tokens) + self.flags(flags)).mean(1))

    def training_step(self, batch, batch_idx):
        tokens, flags, labels = batch
        return F.cross_entropy(self(tokens, flags), labels)

    def validation_step(self, batch, batch_idx):
        tokens, flags, labels = batch
        logits = self(tokens, flags)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_acc", accuracy(logits, labels))

    def configure_optimizers(self):
        trainable = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trainable, lr=1e-3)


def frozen_encoder(broken):
    return Transformer(broken), *loaders(*flagged_tokens(), batch_size=64)


# 10. A forgotten zero_grad


class Manual(LightningModule):
    def __init__(self, forget):
        super().__init__()
        self.automatic_optimization = False
        self.forget = forget
        self.model = mlp([64, 100, 50, 10], nn.ReLU)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        x, y = batch
        if not self.forget:
            optimizer.zero_grad()
        loss = self.criterion(self.model(x), y)
        self.manual_backward(loss)
        optimizer.step()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.model(x)
        self.log("val_loss", self.criterion(logits, y))
        self.log("val_acc", accuracy(logits, y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def never_zeroed(broken):
    return Manual(broken), *loaders(*standardized("digits"), batch_size=32)


# 11. Softmax before cross entropy


def softmax_output(broken):
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10)
    )
    if broken:
        net.append(nn.Softmax(dim=1))
    module = Classifier(net, lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.5))
    return module, *loaders(*images(), batch_size=32)


# 12. No nonlinearity between the layers


def friedman(count=2000):
    g = seeded(31)
    x = torch.rand(count, 4, generator=g) * 2 - 1
    y = torch.sin(torch.pi * x[:, 0] * 1.5) * x[:, 1] + 2 * x[:, 2] ** 2 + x[:, 3].abs()
    y = y + 0.02 * torch.randn(count, generator=g)
    return x / 0.577, (y - y.mean()) / y.std()


def no_activations(broken):
    if broken:
        net = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 1))
    else:
        net = mlp([4, 64, 64, 1], nn.ReLU)
    return Regressor(net, lr=2e-3), *loaders(*friedman(), batch_size=50)


# 13. (N, 1) against (N,)


class Broadcasting(LightningModule):
    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.layer1 = nn.Linear(4, 64)
        self.layer2 = nn.Linear(64, 64)
        self.out = nn.Linear(64, 1)
        self.loss_fn = nn.MSELoss()

    def forward(self, x):
        x = F.relu(self.layer1(x))
        x = F.relu(self.layer2(x))
        return self.out(x) if self.broken else self.out(x).squeeze(-1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.loss_fn(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", self.loss_fn(self(x), y))

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=1e-3)


def column_against_row(broken):
    return Broadcasting(broken), *loaders(*friedman(), batch_size=25)


# 14. Sorted and not shuffled


def sorted_digits(broken):
    x, y = images()
    cut = len(x) * 3 // 4
    order = y[:cut].argsort(stable=True)
    train = TensorDataset(x[:cut][order], y[:cut][order])
    val = TensorDataset(x[cut:], y[cut:])
    module = Classifier(small_cnn(), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9))
    return module, DataLoader(train, 16, shuffle=not broken), DataLoader(val, 128)


# 15. The logarithm of zero


class HandWrittenLoss(LightningModule):
    def __init__(self, eps):
        super().__init__()
        self.eps = eps
        self.net = mlp([30, 64, 64, 1], nn.ReLU)

    def loss(self, batch):
        x, y = batch
        p = torch.sigmoid(self.net(x)).squeeze(1)
        if self.eps:
            p = p.clamp(self.eps, 1 - self.eps)
        return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-4)


def log_of_zero(broken):
    x, y = standardized("breast_cancer")
    return HandWrittenLoss(0.0 if broken else 1e-4), *loaders(x, y.float(), batch_size=16)


# 16. Clipped to almost nothing


def chains(count=1500, length=16, kinds=6):
    """Sequences in which the next token mostly follows from the last two."""
    g = seeded(41)
    table = torch.randint(kinds, (kinds, kinds), generator=g)
    tokens = torch.randint(kinds, (count, length + 1), generator=g)
    noisy = torch.rand(count, length + 1, generator=g) < 0.15
    for t in range(2, length + 1):
        follows = table[tokens[:, t - 2], tokens[:, t - 1]]
        tokens[:, t] = torch.where(noisy[:, t], tokens[:, t], follows)
    return tokens


class LanguageModel(LightningModule):
    def __init__(self, kinds=6, width=32):
        super().__init__()
        self.embedding = nn.Embedding(kinds, width)
        self.lstm = nn.LSTM(width, 48, batch_first=True)
        self.head = nn.Linear(48, kinds)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0])

    def loss(self, tokens):
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch[0])
        self.log("train_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def clipped_away(broken):
    return LanguageModel(), *loaders(chains(), batch_size=25)


def epochs(count, **settings):
    return {"max_epochs": count, **settings}


PAIRS = [
    pair(
        "eighth_negative_biases",
        negative_biases,
        "dead_relu",
        "bad_init_scale",
        trainer=epochs(30),
        metric="val_acc",
        note="hidden biases of -20",
    ),
    pair(
        "eighth_raw_units_tanh",
        raw_units,
        "saturated_activations",
        "unnormalized_input",
        trainer=epochs(30),
        note="areas, years and incomes go into tanh unscaled",
    ),
    pair(
        "eighth_wide_tanh_init",
        wide_tanh,
        "saturated_activations",
        "bad_init_scale",
        trainer=epochs(25),
        metric="val_acc",
        note="weights of deviation 1",
    ),
    pair(
        "eighth_deep_sigmoids",
        deep_sigmoids,
        "vanishing_gradients",
        "saturated_activations",
        trainer=epochs(30),
        metric="val_acc",
        note="ten sigmoid layers and plain SGD",
    ),
    pair(
        "eighth_exploding_autoencoder",
        exploding_autoencoder,
        "exploding_gradients",
        "bad_init_scale",
        "non_finite",
        "loss_diverging",
        trainer=epochs(30),
        note="eight layers at six times the deviation of He",
    ),
    pair(
        "eighth_tiny_weights",
        tiny_weights,
        "bad_init_scale",
        "vanishing_gradients",
        trainer=epochs(40),
        metric="val_acc",
        note="weights of deviation 0.003 in seven layers",
    ),
    pair(
        "eighth_all_zero_cnn",
        all_zero,
        "zero_init",
        trainer=epochs(20),
        metric="val_acc",
        note="every weight starts at zero",
    ),
    pair(
        "eighth_gru_left_out",
        gru_left_out,
        "params_not_in_optimizer",
        trainer=epochs(30),
        note="the optimizer has the head only",
    ),
    pair(
        "eighth_frozen_transformer",
        frozen_encoder,
        "frozen_params",
        "weights_not_updating",
        trainer=epochs(25),
        metric="val_acc",
        note="all but the head frozen, though nothing is pretrained",
    ),
    pair(
        "eighth_never_zeroed",
        never_zeroed,
        "missing_zero_grad",
        trainer=epochs(30),
        note="manual optimization without zero_grad",
    ),
    pair(
        "eighth_softmax_output",
        softmax_output,
        "softmax_before_ce",
        trainer=epochs(25),
        metric="val_acc",
        note="softmax as the last layer before cross_entropy",
    ),
    pair(
        "eighth_no_activations",
        no_activations,
        "missing_nonlinearity",
        trainer=epochs(40),
        note="three linear layers with nothing between them",
    ),
    pair(
        "eighth_column_against_row",
        column_against_row,
        "broadcast_mismatch",
        trainer=epochs(25),
        note="predictions (N, 1) against targets (N,)",
    ),
    pair(
        "eighth_sorted_digits",
        sorted_digits,
        "unshuffled_data",
        trainer=epochs(12),
        metric="val_acc",
        note="sorted by label and not shuffled",
    ),
    pair(
        "eighth_log_of_zero",
        log_of_zero,
        "non_finite",
        "loss_diverging",
        "nan_in_data",
        trainer=epochs(60),
        note="a hand-written binary cross entropy without an epsilon",
    ),
    pair(
        "eighth_clipped_away",
        clipped_away,
        "clip_too_small",
        "lr_too_low",
        "update_ratio_low",
        trainer=epochs(25, gradient_clip_val=1e-5),
        repaired=epochs(25, gradient_clip_val=1.0),
        note="clipped at a norm of 1e-5 under plain SGD",
    ),
]
