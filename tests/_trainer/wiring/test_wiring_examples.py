import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lightning_tuning._trainer.wiring.wiring_examples import TOPIC
from tests._trainer.topic_runs import findings, integers, mlp, normal, verdict

X, Y = normal(96, 12), integers(5, 96)
IMAGES = normal(96, 1, 4, 6)
MASKS = (IMAGES[:, 0] > 0).long() + (IMAGES[:, 0] > 1).long()


class Over(nn.Module):
    """Adds a statistic of the hidden units, over a dimension."""

    def __init__(self, statistic):
        super().__init__()
        self.body, self.head = nn.Linear(12, 16), nn.Linear(16, 5)
        self.statistic = statistic

    def forward(self, x):
        return self.head(self.statistic(F.relu(self.body(x)), self.training))


class Rows(nn.Module):
    """Reads three rows of four numbers one after another; nn.GRU wants time first."""

    def __init__(self, broken):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 16), nn.Linear(16, 5)
        self.broken = broken

    def forward(self, x):
        x = x.view(-1, 3, 4)
        x = x.reshape(3, -1, 4) if self.broken else x.transpose(0, 1)
        return self.head(self.gru(x)[0][-1])


def classify(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


def by_hand(net, batch):
    return -net(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).mean()


def of(statistic):
    return lambda: Over(statistic)


@pytest.mark.parametrize("step", [classify, by_hand])
@pytest.mark.parametrize(
    ("statistic", "expected"),
    [
        (lambda h, _: h + h.mean(0), "fail"),
        (lambda h, _: h * h.softmax(0), "fail"),
        (lambda h, _: h.cumsum(0), "fail"),
        (lambda h, _: h + h.mean(1, keepdim=True), "pass"),
        (lambda h, training: (h - h.mean(0)) / (h.std(0) + 1) if training else h, "pass"),
        (lambda h, _: F.batch_norm(h, None, None, training=True), "pass"),
    ],
)
def test_statistics_over_the_batch(statistic, expected, step):
    assert verdict("batch_leakage", TOPIC, of(statistic), step, X, Y) == expected


@pytest.mark.parametrize("broken", [True, False])
def test_reshape_instead_of_transpose(broken):
    found = findings(TOPIC, lambda: Rows(broken), classify, X, Y)
    assert found["dims_scrambled"].verdict == ("fail" if broken else "pass")
    assert found["batch_leakage"].verdict == "pass"


def segmenter():
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))


def segment(arranged):
    return lambda net, batch: F.cross_entropy(*arranged(net(batch[0]), batch[1]))


@pytest.mark.parametrize(
    ("arranged", "expected"),
    [
        (lambda o, y: (o.reshape(-1, 3), y.flatten()), "fail"),
        (lambda o, y: (o.permute(0, 2, 3, 1).reshape(-1, 3), y.flatten()), "pass"),
        (lambda o, y: (o, y), "pass"),
        (lambda o, y: (o[:, 0].flatten(1), y.flatten(1).argmax(1)), "pass"),
    ],
)
def test_classes_and_pixels(arranged, expected):
    found = findings(TOPIC, segmenter, segment(arranged), IMAGES, MASKS)
    assert found["dims_scrambled"].verdict == expected
    assert found["dims_scrambled"].where == ("net.2" if expected == "fail" else "")
    assert found["batch_leakage"].verdict == "pass"


@pytest.mark.parametrize("broken", [True, False])
def test_values_and_times(broken):
    def step(net, batch):
        out = net(batch[0].view(-1, 3, 4))
        out = out.view(-1, 5, 3) if broken else out.transpose(1, 2)
        return F.mse_loss(out, batch[1])

    found = verdict("dims_scrambled", TOPIC, lambda: mlp(4, 5), step, X, normal(96, 5, 3))
    assert found == ("fail" if broken else "pass")


def mixup(net, batch):
    x, y = batch
    other = torch.randperm(len(x))
    out = net(0.7 * x + 0.3 * x[other])
    return 0.7 * F.cross_entropy(out, y) + 0.3 * F.cross_entropy(out, y[other])


def soft_mixup(net, batch):
    x, y = batch[0], F.one_hot(batch[1], 5).float()
    return F.cross_entropy(net(0.7 * x + 0.3 * x.flip(0)), 0.7 * y + 0.3 * y.flip(0))


def similarity(net, batch):
    z = F.normalize(net(batch[0]), dim=1)
    return z @ z.T / 0.2


def in_batch_negatives(net, batch):
    return F.cross_entropy(similarity(net, batch), torch.arange(len(batch[0])))


def alike(batch):
    return (batch[1][:, None] == batch[1]).float()


def soft_contrast(net, batch):
    return F.cross_entropy(similarity(net, batch), alike(batch) / alike(batch).sum(1, keepdim=True))


def contrast_by_hand(net, batch):
    return -(similarity(net, batch).log_softmax(1) * alike(batch)).sum(1).mean()


def listwise(net, batch):
    scores = net(batch[0])[:, 0].log_softmax(0)
    return F.kl_div(scores, batch[1] / batch[1].sum(), reduction="sum")


def hazard(net, batch):
    risk = net(batch[0])[:, 0]
    return -((risk - risk.logcumsumexp(0)) * (batch[1] > 2)).mean()


def prototypes(net, batch):
    z, y = net(batch[0]), batch[1]
    half = len(y) // 2
    member = F.one_hot(y[:half], 5).float()
    centres = member.T @ z[:half] / member.sum(0).clamp(min=1)[:, None]
    return F.cross_entropy(-torch.cdist(z[half:], centres), y[half:])


def inner_step(net, batch):
    x, y = batch
    inner = F.cross_entropy(net(x[::2]), y[::2])
    (slope,) = torch.autograd.grad(inner, net[2].weight, create_graph=True)
    hidden = net[:2](x[1::2])
    return inner + F.cross_entropy(F.linear(hidden, net[2].weight - slope, net[2].bias), y[1::2])


def standardised_targets(net, batch):
    y = batch[1].float()
    return F.mse_loss(net(batch[0])[:, 0], (y - y.mean()) / y.std())


@pytest.mark.parametrize(
    "step",
    [
        *(mixup, soft_mixup, in_batch_negatives, soft_contrast, contrast_by_hand, listwise),
        *(hazard, prototypes, inner_step, standardised_targets),
    ],
)
def test_examples_that_meet_on_purpose(step):
    found = findings(TOPIC, mlp, step, X, Y)
    assert {finding.verdict for finding in found.values()} <= {"pass", "skip"}


class Graph(nn.Module):
    """Every node hears of all others; a batch is one graph."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x + x.mean(0))


def test_one_graph_is_no_batch_of_examples():
    loader = DataLoader([(X[:30], Y[:30])], batch_size=None)
    [finding, _] = findings(TOPIC, Graph, classify, loader=loader).values()
    assert finding.verdict == "skip"
    assert "how many examples" in finding.message


def test_a_program_that_insists_on_its_batch_size():
    def step(net, batch):
        assert len(batch[0]) == 16
        return classify(net, batch)

    assert verdict("batch_leakage", TOPIC, of(lambda h, _: h + h.mean(0)), step, X, Y) == "fail"
    assert verdict("batch_leakage", TOPIC, mlp, step, X, Y) == "pass"


def test_any_structure_of_batch():
    data = [
        {"in": {"x": x, "id": str(i)}, "y": y} for i, (x, y) in enumerate(zip(X, Y, strict=True))
    ]

    def step(net, batch):
        return F.cross_entropy(net(batch["in"]["x"]), batch["y"])

    for statistic, expected in ((lambda h, _: h + h.mean(0), "fail"), (lambda h, _: h, "pass")):
        loader = DataLoader(data, 16)
        assert verdict("batch_leakage", TOPIC, of(statistic), step, loader=loader) == expected
