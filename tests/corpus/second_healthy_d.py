"""Streams, sets and graphs; frozen parts, teachers and pairs."""

import copy
import functools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tests.corpus.program import Program, loaders, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Learner(LightningModule):
    """The step, the logged validation loss and Adam, which most programs here share."""

    lr = 1e-2

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class GraphClassifier(Learner):
    """The nodes of all graphs of a batch in one matrix: edges and owners say which is whose."""

    lr = 4e-3

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 64), nn.Linear(128, 64)
        self.out = nn.Linear(64, 1)

    def forward(self, nodes, edges, owner, graphs):
        h = self.first(nodes).relu()
        heard = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
        h = self.second(torch.cat([h, heard], 1)).relu()
        return self.out(h.new_zeros(graphs, 64).index_add(0, owner, h)).squeeze(1)

    def training_step(self, batch, batch_idx):
        nodes, edges, owner, y = batch
        return F.mse_loss(self(nodes, edges, owner, len(y)), y)

    def validation_step(self, batch, batch_idx):
        nodes, edges, owner, y = batch
        said = self(nodes, edges, owner, len(y))
        self.log("val_mae", F.l1_loss(said, y), batch_size=len(y))


class SetSum(Learner):
    """A deep set with masked members; the losses of the examples are summed, then averaged."""

    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 32))
        self.rho = nn.Sequential(nn.ReLU(), nn.Linear(32, 1))

    def loss(self, batch):
        members, mask, target = batch
        pooled = (self.phi(members) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return (self.rho(pooled).squeeze(1) - target).square().sum() / len(target)


class Echoes(IterableDataset):
    """An endless stream of fresh noise, with the sum of the marked entries of each."""

    def __iter__(self):
        g = seeded(61)
        while True:
            x = torch.randn(12, 2, generator=g)
            x[:, 1] = (torch.rand(12, generator=g) < 0.3).float()
            yield x, (x[:, 0] * x[:, 1]).sum()


class EchoAdder(Learner):
    """A gated network on a stream that never repeats, without validation."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 32, batch_first=True), nn.Linear(32, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.out(self.rnn(x)[1][-1]).squeeze(1), y)
        self.log("train_loss", loss)
        return loss


def graphs():
    g, items = seeded(70), []
    for _ in range(900):
        n = int(torch.randint(4, 12, (), generator=g))
        kind = torch.randint(0, 8, (n,), generator=g)
        edges = torch.randint(0, n, (2, 2 * n), generator=g)
        special = (kind[edges[0]] < 3) & (kind[edges[1]] >= 4)
        items.append((F.one_hot(kind, 8).float(), edges, special.float().sum()))

    def collate(items):
        nodes, edges, y = zip(*items, strict=True)
        sizes = torch.tensor([len(n) for n in nodes])
        starts = (sizes.cumsum(0) - sizes).tolist()
        joined = torch.cat([e + s for e, s in zip(edges, starts, strict=True)], 1)
        owner = torch.arange(len(sizes)).repeat_interleave(sizes)
        return torch.cat(nodes), joined, owner, torch.stack(y)

    train = DataLoader(items[:700], 32, shuffle=True, collate_fn=collate)
    return GraphClassifier(), train, DataLoader(items[700:], 200, collate_fn=collate)


def sets():
    g = seeded(71)
    members = torch.randn(1500, 9, 3, generator=g)
    mask = (torch.arange(9) < torch.randint(1, 10, (1500, 1), generator=g)).float()
    members = members * mask[..., None]
    values = (members[..., 0] * members[..., 1] + members[..., 2]) * mask
    return SetSum(), *loaders(members, mask, values.sum(1) / mask.sum(1))


class RandomFourier(Learner):
    """Cosines of fixed random directions; the ridge head is all that learns."""

    lr = 5e-2

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(4, 256, generator=seeded(101)))
        self.register_buffer("b", math.tau * torch.rand(256, generator=seeded(102)))
        self.head = nn.Linear(256, 1)

    def loss(self, batch):
        features = torch.cos(batch[0] @ self.w * 0.6 + self.b) / 8
        return F.mse_loss(self.head(features).squeeze(1), batch[1])


class FrozenTrunk(LightningModule):
    """Pretrained layers with BatchNorm kept in eval mode and out of the gradient; a zero head."""

    def __init__(self):
        super().__init__()
        self.trunk = pretrained()[:-1].requires_grad_(False)
        self.head = nn.Linear(64, 2)
        nn.init.zeros_(self.head.weight)

    def train(self, mode=True):
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            h = self.trunk(x)
        return self.head(h)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y % 2)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y % 2).float().mean())

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=2e-2)


class LowRank(nn.Module):
    """A frozen layer plus a product of two thin matrices, the second zero at first."""

    def __init__(self, layer, rank=8):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(layer.in_features, rank) / layer.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(rank, layer.out_features))

    def forward(self, x):
        return self.layer(x) + 2 * (x @ self.a) @ self.b


class Adapted(Learner):
    """Transposed digits for a net that knows upright ones, by low-rank corrections alone."""

    def __init__(self):
        super().__init__()
        first, norm, act, last = pretrained()
        self.net = nn.Sequential(LowRank(first), norm, act, LowRank(last))
        norm.requires_grad_(False)

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


class Distilled(Adapted):
    """A small student of the frozen net's softened opinion; no label is used to train."""

    def __init__(self):
        super().__init__()
        self.teacher = pretrained().requires_grad_(False).eval()
        self.net = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))

    def loss(self, batch):
        with torch.no_grad():
            soft = (self.teacher.eval()(batch[0]) / 3).softmax(1)
        log_probs = (self.net(batch[0]) / 3).log_softmax(1)
        return 9 * F.kl_div(log_probs, soft, reduction="batchmean")


class MeanTeacher(Learner):
    """Few labels and a teacher that averages the student; the optimizer is given both."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
        self.teacher = copy.deepcopy(self.student)

    def training_step(self, batch, batch_idx):
        x, y = batch
        said = self.student(x + 0.3 * torch.randn_like(x))
        with torch.no_grad():
            wanted = self.teacher(x + 0.3 * torch.randn_like(x)).softmax(1)
        supervised = F.cross_entropy(said[:16], y[:16])  # the labels of the rest are "unknown"
        return supervised + F.mse_loss(said.softmax(1), wanted)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs:
                slow.lerp_(fast, 0.05)

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self.teacher(batch[0]).argmax(1) == batch[1]).float().mean())


class TargetNetwork(Learner):
    """Values of a random walk by bootstrapping from a copy, renewed every 20 steps."""

    def __init__(self):
        super().__init__()
        self.value = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))
        self.target = copy.deepcopy(self.value).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        state, reward, after = batch
        wanted = reward + 0.5 * self.target(after)
        loss = F.smooth_l1_loss(self.value(state), wanted)
        if batch_idx % 20 == 19:
            self.target.load_state_dict(self.value.state_dict())
        return loss

    def validation_step(self, batch, batch_idx):
        # the state turns by half of the way to 0 each time: v(s) = s / (1 - 0.5 * 0.5)
        self.log("val_mae", F.l1_loss(self.value(batch[0]), batch[0] / 0.75))

    def configure_optimizers(self):
        return torch.optim.Adam(self.value.parameters(), lr=1e-2)


class TwoViews(Learner):
    """In-batch negatives: each row must find its other view; a learned temperature."""

    lr = 3e-3

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 16))
        self.right = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 16))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def loss(self, batch):
        a, b = F.normalize(self.left(batch[0]), dim=1), F.normalize(self.right(batch[1]), dim=1)
        logits = a @ b.T * self.log_scale.exp()
        match = torch.arange(len(a))
        return (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match)) / 2


class Triplets(Learner):
    """All triplets of each batch with a margin; in the end most of them cost nothing."""

    lr = 2e-3

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))

    def loss(self, batch):
        x, y = batch
        z = F.normalize(self.net(x), dim=1)
        far = (2 - 2 * z @ z.T).clamp_min(1e-6)
        same = y[:, None] == y
        costs = F.relu(far[:, :, None] - far[:, None] + 0.3)
        valid = same[:, :, None] & ~same[:, None] & ~torch.eye(len(y)).bool()[:, :, None]
        return costs[valid].mean()


class Hyper(Learner):
    """A net that writes the weights of another one, for each example its own."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.writer = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 3 * 12 + 1))

    def loss(self, batch):
        x, task, y = batch
        w1, b1, w2, b2 = self.writer(task).split([12, 12, 12, 1], 1)
        guess = (torch.tanh(x * w1 + b1) * w2).sum(1, keepdim=True) + b2
        return F.mse_loss(guess, y)


@functools.cache
def pretrained_weights():
    """A digit classifier trained beforehand, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(100)
        net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        x, y = standardized("digits")
        for i in range(120):
            rows = torch.arange(i * 64, i * 64 + 64) % 1347
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    net.zero_grad()
    return net


def pretrained():
    return copy.deepcopy(pretrained_weights())


def transposed():
    x, y = standardized("digits")
    return x.view(-1, 8, 8).transpose(1, 2).reshape(-1, 64), y


def fourier():
    x = torch.randn(1600, 4, generator=seeded(103))
    return RandomFourier(), *loaders(x, (x[:, 0] * 1.5).sin() + x[:, 1] * x[:, 2].tanh())


def bootstrapped():
    state = 4 * torch.rand(2000, 1, generator=seeded(104)) - 2
    return TargetNetwork(), *loaders(state, state, state / 2)


def views():
    g = seeded(105)
    latent = torch.randn(1600, 6, generator=g)
    a = latent @ torch.randn(6, 20, generator=g) + 0.3 * torch.randn(1600, 20, generator=g)
    b = latent @ torch.randn(6, 30, generator=g) + 0.3 * torch.randn(1600, 30, generator=g)
    return TwoViews(), *loaders(a / 2.5, b / 2.5, batch_size=64, val_batch_size=100)


def waves():
    g = seeded(106)
    x, task = torch.rand(2400, 1, generator=g) * 4 - 2, torch.rand(2400, 2, generator=g)
    return Hyper(), *loaders(x, task, (0.5 + task[:, :1]) * (2 * x + 3 * task[:, 1:]).sin())


def digits(kind):
    return lambda: (kind(), *loaders(*standardized("digits"), batch_size=64))


PROGRAMS = [
    Program("joined_graphs", graphs, metric="val_mae", steps=250),
    Program("masked_sets", sets),
    Program(
        "echo_adder",
        lambda: (EchoAdder(), DataLoader(Echoes(), 32), None),
        metric="train_loss",
        steps=250,
    ),
    Program("random_fourier_head", fourier),
    Program("frozen_trunk_zero_head", digits(FrozenTrunk), metric="val_acc"),
    Program("low_rank_adapters", lambda: (Adapted(), *loaders(*transposed())), metric="val_acc"),
    Program("distilled_student", digits(Distilled), metric="val_acc"),
    Program("mean_teacher", digits(MeanTeacher), metric="val_acc"),
    Program("target_network", bootstrapped, metric="val_mae"),
    Program("two_views", views),
    Program("all_triplets", digits(Triplets)),
    Program("hyper_waves", waves, steps=250),
]
