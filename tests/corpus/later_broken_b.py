"""Whole fits with a fault and their repaired twins, a later blind set, second half."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.later_broken_a import DIVERGES, SLOW, Fit, adam, fitted, mlp, rng, sgd
from tests.corpus.program import bundled, images, loaders, pair


class Nodes(nn.Module):
    """Two rounds of averaging over the neighbours; a batch is a list of nodes."""

    def __init__(self, features, adjacency):
        super().__init__()
        self.register_buffer("x", features)
        self.register_buffer("a", adjacency / adjacency.sum(1, keepdim=True))
        self.first, self.second = nn.Linear(features.shape[1], 32), nn.Linear(32, 4)

    def forward(self, nodes):
        hidden = F.leaky_relu(self.first(self.a @ self.x))
        return self.second(self.a @ hidden)[nodes]


def blocks(nodes=400, groups=4):
    """Features and edges of a stochastic block model."""
    group = torch.arange(nodes) % groups
    chance = torch.where(group[:, None] == group, 0.06, 0.02)
    edges = (torch.rand(nodes, nodes, generator=rng(17)) < chance).float().triu(1)
    x = torch.randn(nodes, 16, generator=rng(18)) + F.one_hot(group, 16)
    return x, edges + edges.T + torch.eye(nodes), group


def graph(broken):
    x, adjacency, group = blocks()
    order = torch.randperm(400, generator=rng(19))
    optimizer = sgd(0.05, momentum=0.998 if broken else 0.9)
    return Fit(Nodes(x, adjacency), F.cross_entropy, optimizer), *loaders(order, group[order])


class WideDeep(nn.Module):
    """A linear part on the raw columns beside a network on their embeddings."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(40, 8)
        self.deep = mlp(4 * 8 + 3, 48, 24, 1)
        self.wide = nn.Linear(3, 1)

    def forward(self, names, numbers):
        flat = torch.cat([self.table(names).flatten(1), numbers], 1)
        return (self.deep(flat) + self.wide(numbers)).squeeze(1)


def wide(broken):
    names = torch.randint(0, 10, (3000, 4), generator=rng(22)) + torch.arange(0, 40, 10)
    numbers = torch.randn(3000, 3, generator=rng(23))
    effect = torch.randn(40, generator=rng(24))
    y = effect[names].sum(1) + numbers[:, 0] * effect[names[:, 0]] + numbers[:, 1]
    ramp = 30_000 if broken else 60
    schedule = lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1, s / ramp))  # noqa: E731
    return Fit(WideDeep(), F.mse_loss, adam(4e-3), schedule), *loaders(names, numbers, y)


def waves(count=1500, length=48):
    """Sine, square or saw, at any phase and frequency."""
    kind = torch.randint(0, 3, (count,), generator=rng(30))
    phase = torch.rand(count, 1, generator=rng(31)) + torch.arange(length) * (
        0.03 + 0.05 * torch.rand(count, 1, generator=rng(32))
    )
    turn = 2 * math.pi * phase
    shapes = torch.stack([turn.sin() * 1.3, turn.sin().sign(), 3.4 * (phase % 1 - 0.5)])
    signal = shapes[kind, torch.arange(count)]
    return (signal + 0.2 * torch.randn(count, length, generator=rng(33)))[:, None], kind


def deep_waves(broken):
    layers = []
    for i in range(9):
        conv = nn.Conv1d(16 if i else 1, 16, 5, padding=2, stride=2 if i in {2, 5} else 1)
        if broken:
            nn.init.trunc_normal_(conv.weight, std=0.02)
            nn.init.zeros_(conv.bias)
        else:
            nn.init.xavier_normal_(conv.weight, gain=1.4)
        layers += [conv, nn.Softsign()]
    net = nn.Sequential(*layers, nn.AdaptiveMaxPool1d(2), nn.Flatten(), nn.Linear(32, 3))
    return Fit(net, F.cross_entropy, sgd(0.05, momentum=0.9)), *loaders(*waves())


class Residual(nn.Module):
    def __init__(self, width, gain):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.kaiming_normal_(self.up.weight)
        nn.init.normal_(self.down.weight, std=gain / math.sqrt(width))

    def forward(self, x):
        return x + self.down(F.relu(self.up(x)))


def tower(broken):
    """Branches that add more than the trunk carries, without any normalization."""
    x, y = images()
    branches = [Residual(32, 2.0 if broken else 0.1) for _ in range(14)]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *branches, nn.Linear(32, 10))
    return Fit(net, F.cross_entropy, sgd(0.01, momentum=0.9)), *loaders(x, y)


def cellar(broken):
    """Milligrams and percents as they are measured, into tanh."""
    x, y = bundled("wine")
    x = x if broken else (x - x.mean(0)) / x.std(0)
    net = mlp(13, 24, 24, 3, act=nn.Tanh)
    return Fit(net, F.cross_entropy, adam(2e-3)), *loaders(x, y, batch_size=16)


class Parity(LightningModule):
    """Even or odd digit, with the likelihood written by hand."""

    def __init__(self, by_hand):
        super().__init__()
        self.conv = nn.Conv2d(1, 24, 3)
        self.head = nn.Linear(24 * 9, 1)
        self.by_hand = by_hand

    def forward(self, x):
        return self.head(F.max_pool2d(F.relu(self.conv(x)), 2).flatten(1)).squeeze(1)

    def loss(self, x, y):
        odd, scores = (y % 2).float(), self(x)
        if self.by_hand:
            p = torch.sigmoid(scores)
            return -(odd * p.log() + (1 - odd) * (1 - p).log()).mean()
        return F.binary_cross_entropy_with_logits(scores, odd)

    def training_step(self, batch, batch_idx):
        return self.loss(*batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(*batch))
        self.log("val_acc", ((self(batch[0]) > 0) == batch[1] % 2).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def parity(broken):
    return Parity(broken), *loaders(*images())


class Topics(nn.Module):
    def __init__(self, frozen):
        super().__init__()
        words = nn.init.normal_(torch.empty(600, 6))
        self.words = nn.EmbeddingBag.from_pretrained(words, freeze=frozen, mode="mean")
        self.head = nn.Linear(6, 12)

    def forward(self, tokens):
        return self.head(self.words(tokens))


def topics(broken):
    """Vectors "to be trained" that were made by from_pretrained, which freezes them."""
    topic = torch.randint(0, 12, (3000,), generator=rng(34))
    own = topic[:, None] * 50 + torch.randint(0, 50, (3000, 25), generator=rng(35))
    any_word = torch.randint(0, 600, (3000, 25), generator=rng(36))
    tokens = torch.where(torch.rand(3000, 25, generator=rng(37)) < 0.4, own, any_word)
    return Fit(Topics(broken), F.cross_entropy, adam(2e-2)), *loaders(tokens, topic, batch_size=50)


class Sorter(nn.Module):
    """A small encoder that gives the tokens back in order."""

    def __init__(self, vocabulary=10, length=8, width=32):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.where = nn.Parameter(torch.randn(length, width) * 0.3)
        layer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens) + self.where)).transpose(1, 2)


def sorting(_):
    tokens = torch.randint(0, 10, (4000, 8), generator=rng(39))
    net = Sorter()
    return Fit(net, F.cross_entropy, adam(1e-3)), *loaders(tokens, tokens.sort(1)[0], batch_size=50)


def hot_sorting(broken):
    tokens = torch.randint(0, 10, (2400, 8), generator=rng(40))
    target = tokens.flip(1)
    optimizer = lambda p: torch.optim.AdamW(p, lr=0.6 if broken else 3e-3)  # noqa: E731
    return Fit(Sorter(), F.cross_entropy, optimizer), *loaders(tokens, target, batch_size=50)


class Speller(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 5)

    def forward(self, frames):
        return self.head(self.lstm(frames)[0]).log_softmax(-1).transpose(0, 1)


def aligned(scores, target):
    lengths = [torch.full((len(target),), n) for n in (len(scores), target.shape[1])]
    return F.ctc_loss(scores, target, *lengths)


def speller(broken):
    """Noisy frames of unknown alignment, connectionist temporal classification."""
    target = torch.randint(1, 5, (800, 4), generator=rng(41))
    frames = F.one_hot(target.repeat_interleave(3, 1), 6).float()
    gap = (torch.arange(12) % 3 == 2)[:, None]
    frames = torch.where(gap, 0.0, frames) + 0.2 * torch.randn(800, 12, 6, generator=rng(42))
    return Fit(Speller(), aligned, adam(4.0 if broken else 5e-3)), *loaders(frames, target)


class Messages(LightningModule):
    """Molecule-like graphs: atoms pass messages along given bonds, the sum is a property."""

    def __init__(self, save_memory):
        super().__init__()
        self.embed = nn.Embedding(5, 16)
        self.message = nn.Linear(32, 16)
        self.readout = nn.Linear(16, 1)
        self.save_memory = save_memory

    def forward(self, atoms, bonds):
        with torch.set_grad_enabled(self.training and not self.save_memory):
            h = self.embed(atoms)
            for _ in range(2):
                near = torch.bmm(bonds, h) / bonds.sum(-1, keepdim=True).clamp_min(1)
                h = torch.tanh(self.message(torch.cat([h, near], -1)))
        return self.readout(h.sum(1)).squeeze(-1)

    def training_step(self, batch, batch_idx):
        return F.huber_loss(self(*batch[:2]), batch[2])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.huber_loss(self(*batch[:2]), batch[2]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def molecules(broken):
    atoms = torch.randint(0, 5, (1600, 9), generator=rng(43))
    bonds = (torch.rand(1600, 9, 9, generator=rng(44)) < 0.25).float().triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    polar = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])[atoms]
    y = (polar[:, :, None] * bonds * polar[:, None]).sum((1, 2)) / 3
    return Messages(broken), *loaders(atoms, bonds, (y - y.mean()) / y.std(), batch_size=40)


def restarts(broken):
    """Each restart throws away what the last period had found."""
    x, y = images()
    net = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(192, 48), nn.ReLU(), nn.Linear(48, 10)),
    )
    schedule = lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 140)  # noqa: E731
    optimizer = sgd(2.0 if broken else 0.03, momentum=0.9)
    return Fit(net, F.cross_entropy, optimizer, schedule), *loaders(x, y)


def plateau(broken):
    """Told to wait for a loss that grows, the schedule cuts the rate at every epoch."""
    x = torch.rand(2400, 4, generator=rng(49)) * 2 - 1
    y = torch.stack([x[:, 0] * x[:, 1], torch.sin(3 * x[:, 2]) + x[:, 3] ** 2], 1)
    schedule = lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(  # noqa: E731
        o, mode="max" if broken else "min", factor=0.2, patience=0 if broken else 3
    )
    net = mlp(4, 64, 64, 2, act=nn.Mish)
    return Fit(net, F.mse_loss, adam(1e-3), schedule, "epoch"), *loaders(x, y, batch_size=80)


class Halves(LightningModule):
    """Encoder and decoder with an optimizer each, stepped by hand."""

    automatic_optimization = False

    def __init__(self, encoder_lr):
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 5), mlp(5, 64, 64)
        self.encoder_lr = encoder_lr

    def training_step(self, batch, batch_idx):
        both = self.optimizers()
        loss = F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in both:
            optimizer.step()
        self.log("train_loss", loss)
        return {"loss": loss.detach()}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0]))

    def configure_optimizers(self):
        yours = torch.optim.Adam(self.encoder.parameters(), lr=self.encoder_lr)
        return yours, torch.optim.Adam(self.decoder.parameters(), lr=2e-3)


def halves(broken):
    return Halves(2e-8 if broken else 2e-3), *loaders(images()[0].flatten(1))


def heavy_betas(broken):
    x = torch.randn(2400, 8, generator=rng(50))
    y = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2]
    optimizer = adam(1e-2, betas=(0.998 if broken else 0.9, 0.999))
    loss = lambda out, target: F.mse_loss(out.squeeze(1), target)  # noqa: E731
    return Fit(mlp(8, 64, 64, 1, act=nn.ELU), loss, optimizer), *loaders(x, y, batch_size=60)


class Next(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.rnn = nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 8)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0]).transpose(1, 2)


def chain(broken):
    """The next state of a Markov chain of second order."""
    table = (2.5 * torch.randn(8, 8, 8, generator=rng(51))).softmax(-1)
    walk = torch.randint(0, 8, (800, 2), generator=rng(52))
    for _ in range(19):
        p = table[walk[:, -2], walk[:, -1]]
        walk = torch.cat([walk, torch.multinomial(p, 1, generator=rng(53))], 1)
    return Fit(Next(), F.cross_entropy, sgd(0.5, momentum=0.9)), *loaders(walk[:, :-1], walk[:, 1:])


SATURATED = "saturated_activations", "unnormalized_input", "vanishing_gradients", "no_learning"
PAIRS = [
    fitted("graph_momentum", graph, 30, *DIVERGES, "momentum_too_high", "loss_oscillation"),
    fitted("wide_warmup", wide, 15, *SLOW),
    fitted(
        *("waves_small_init", deep_waves, 16, "vanishing_gradients", "bad_init_scale"),
        *("no_learning", "input_ignored", "update_ratio_low", "weights_not_updating"),
    ),
    fitted(
        *("tower_growing", tower, 15, *DIVERGES, "exploding_gradients"),
        *("bad_init_scale", "loss_not_at_chance", "no_learning", "dead_relu"),
    ),
    fitted("cellar_raw", cellar, 40, *SATURATED, "underfitting"),
    fitted("parity_log", parity, 20, "non_finite", "loss_diverging"),
    fitted(
        *("topics_frozen", topics, 20),
        *("frozen_params", "weights_not_updating", "underfitting", "params_not_in_optimizer"),
    ),
    pair(
        *("later_sorting_stopped", sorting, "underfitting", "lr_too_low"),
        trainer={"max_steps": 90, "val_check_interval": 10},
        repaired={"max_epochs": 12},
    ),
    fitted(
        *("flip_hot", hot_sorting, 10, *DIVERGES, "loss_oscillation", "no_learning"),
        *("exploding_gradients", "saturated_activations", "dead_relu"),
    ),
    fitted(
        *("speller_hot", speller, 14, *DIVERGES, "loss_oscillation", "no_learning"),
        *("saturated_activations", "exploding_gradients"),
    ),
    fitted(
        *("molecules_no_grad", molecules, 20, "no_grad_flow", "weights_not_updating"),
        *("frozen_params", "underfitting"),
    ),
    fitted(
        *("restarts_hot", restarts, 20, *DIVERGES, "loss_oscillation", "dead_relu"),
        *("exploding_gradients", "no_learning"),
    ),
    fitted("plateau_max", plateau, 20, "lr_decayed_too_fast", "lr_too_low", "underfitting"),
    fitted("halves_typo", halves, 25, *SLOW, "weights_not_updating", "frozen_params"),
    fitted("heavy_betas", heavy_betas, 20, *DIVERGES, "momentum_too_high", "loss_oscillation"),
    pair(
        *("later_chain_clip", chain, *SLOW, "clip_too_small", "no_learning"),
        trainer={"max_epochs": 25, "gradient_clip_val": 1e-6, "gradient_clip_algorithm": "value"},
        repaired={"max_epochs": 25, "gradient_clip_val": 1.0},
    ),
]
