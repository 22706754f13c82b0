import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring.wiring_structure import TOPIC
from tests._trainer.topic_runs import findings, integers, normal, verdict

X = normal(640, 6)
PRODUCT = ((X[:, 0] * X[:, 1]) > 0).float()
PLANE = X @ normal(6, 3, seed=1)


class Layers(nn.Module):
    """Two layers with something between."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b = nn.Linear(6, 48), nn.Linear(48, 3)
        self.between = between

    def forward(self, x):
        return self.b(self.between(self, self.a(x)))


def classify(net, batch):
    return F.binary_cross_entropy_with_logits(net(batch[0])[:, 0], batch[1])


def thrown_away(module, h):
    F.relu(h)
    return h


def thrown_away_later(module, h):
    unused = torch.tanh(h)  # noqa: F841
    return h * 2


def in_place(module, h):
    F.relu_(h)
    return h


def kept(module, h):
    module.seen = torch.tanh(h)
    return F.gelu(h)


def measured(module, h):
    module.share = float((F.relu(h) > 0).float().mean())
    return h.abs()


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 48)

    def forward(self, h):
        h = self.layer(h)
        return h, torch.tanh(h)


class Features(Layers):
    """A part returns two tensors, one of which nobody wants here."""

    def __init__(self):
        super().__init__(lambda module, h: F.relu(module.inner(h)[0]))
        self.inner = Inner()


@pytest.mark.parametrize("between", [thrown_away, thrown_away_later])
def test_a_result_thrown_away(between):
    found = findings(TOPIC, lambda: Layers(between), classify, X, PRODUCT)
    assert found["missing_nonlinearity"].verdict == "fail"
    assert "thrown away" in found["missing_nonlinearity"].message


@pytest.mark.parametrize(
    "net",
    [
        *(lambda: Layers(in_place), lambda: Layers(kept), lambda: Layers(measured), Features),
        lambda: Layers(lambda _, h: F.relu(h)),
    ],
)
def test_results_that_are_used(net):
    assert verdict("missing_nonlinearity", TOPIC, net, classify, X, PRODUCT) == "pass"


def linear(*widths):
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


@pytest.mark.parametrize(
    "net",
    [
        lambda: linear(6, 48, 48, 3),
        lambda: nn.Sequential(nn.Linear(6, 48), nn.BatchNorm1d(48), nn.Linear(48, 3)),
    ],
)
def test_layers_without_activations(net):
    [found] = findings(TOPIC, net, classify, X, PRODUCT).values()
    assert found.verdict == "warn"
    assert found.evidence["rescued"] < 0.8 * found.evidence["linear"]


def regress(net, batch):
    return F.mse_loss(net(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("net", "step", "target"),
    [
        (lambda: linear(6, 48, 3), regress, PLANE),  # linear on purpose, and right
        (lambda: linear(6, 2, 3), classify, PRODUCT),  # a bottleneck
        (lambda: linear(6, 3), classify, PRODUCT),
    ],
)
def test_linear_networks_on_purpose(net, step, target):
    assert verdict("missing_nonlinearity", TOPIC, net, step, X, target) == "pass"


def test_indices_are_not_halved():
    def step(net, batch):
        return F.cross_entropy(net(batch[0]), batch[1])

    def table():
        return nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 16), nn.Linear(16, 3))

    found = verdict("missing_nonlinearity", TOPIC, table, step, integers(9, 64), integers(3, 64))
    assert found == "skip"
