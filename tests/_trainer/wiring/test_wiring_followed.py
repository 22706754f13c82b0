"""Outputs followed into scores and metrics, and losses that no weight changes."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from lightning_tuning._trainer.wiring import (
    wiring_examples,
    wiring_loss_graph,
    wiring_loss_sign,
    wiring_metrics,
    wiring_structure,
)
from tests._trainer.topic_runs import findings, integers, normal, verdict
from tests._trainer.wiring_programs import alarms_of

X = normal(256, 6)
TARGET = torch.tanh(X @ normal(6, 3, seed=1))


def net():
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3))


def cosine(sign):
    return lambda net, b: 1 + sign * F.cosine_similarity(net(b[0]), b[1]).mean()


def distance(sign):
    return lambda net, b: sign * F.pairwise_distance(net(b[0]), b[1]).mean()


def apart(net, b):
    near, far = net(b[0]), net(b[0].roll(1, 0))
    return F.cosine_similarity(near, far).clamp(min=0).mean()


@pytest.mark.parametrize(
    ("step", "expected"),
    [(cosine(1), "fail"), (cosine(-1), "pass"), (distance(-1), "fail"), (distance(1), "pass"),
     (apart, "skip")],
)  # fmt: skip
def test_the_sign_of_a_similarity(step, expected):
    topic = wiring_loss_sign.TOPIC
    assert verdict("loss_sign_flipped", topic, net, step, X, TARGET) == expected


def to_itself(net, b):
    guess = net(b[0]).log_softmax(1)
    return F.kl_div(guess, guess.exp().detach(), reduction="batchmean")


def to_target(net, b):
    return F.kl_div(net(b[0]).log_softmax(1), b[1].softmax(1), reduction="batchmean")


class Zero(nn.Module):
    """Starts at an output of zero, without a gradient in the first layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


@pytest.mark.parametrize(
    ("make", "step", "expected"),
    [(net, to_itself, "fail"), (net, to_target, "pass"), (Zero, to_target, "pass")],
)
def test_a_loss_that_no_weight_changes(make, step, expected):
    assert verdict("loss_detached", wiring_loss_graph.TOPIC, make, step, X, TARGET) == expected


class Pooled(nn.Module):
    """Two convolutions and a mean over space, with or without activations."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 1)
        self.between = between

    def forward(self, x):
        return self.c(self.between(self.b(self.between(self.a(x)))).mean((2, 3)))


def squared(net, b):
    return F.mse_loss(net(b[0]), b[1])


@pytest.mark.parametrize(("between", "expected"), [(nn.Identity(), "warn"), (F.relu, "pass")])
def test_layers_are_followed_through_a_mean(between, expected):
    size = 0.2 + 2 * torch.rand(512, 1, generator=torch.Generator().manual_seed(1))
    images = normal(512, 1, 8, 8) * size[..., None, None]
    make = lambda: Pooled(between)  # noqa: E731
    topic = wiring_structure.TOPIC
    assert verdict("missing_nonlinearity", topic, make, squared, images, size - 1.2) == expected


class Series(nn.Module):
    """A convolution along time of what comes as time x channel."""

    def __init__(self, arrange):
        super().__init__()
        self.conv, self.out, self.arrange = nn.Conv1d(5, 24, 5), nn.Linear(24, 5), arrange

    def forward(self, x):
        return self.out(F.relu(self.conv(self.arrange(x))).amax(-1))


def loud():
    label = integers(5, 512)
    return 0.5 * normal(512, 12, 5) + 1.5 * F.one_hot(label, 5)[:, None], label


@pytest.mark.parametrize(
    ("arrange", "expected"),
    [(lambda t: t.reshape(-1, 5, 12), "warn"), (lambda t: t.transpose(1, 2), "pass")],
)
def test_a_reshape_that_should_be_a_transpose(arrange, expected):
    def step(net, b):
        return F.cross_entropy(net(b[0]), b[1])

    found = findings(wiring_examples.TOPIC, lambda: Series(arrange), step, *loud())
    assert found["dims_scrambled"].verdict == expected


class Tagger(LightningModule):
    """Tags of tokens, judged by winners over a dimension."""

    def __init__(self, winner):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 4))
        self.winner = winner

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]).flatten(0, 1), batch[1].flatten())

    def validation_step(self, batch, batch_idx):
        guess = self.winner(self.net(batch[0]))
        self.log("acc", (guess == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.mark.parametrize(
    ("winner", "expected"),
    [
        (lambda s: s.argmax(1), ["metric_wrong"]),
        (lambda s: s.max(1).indices, ["metric_wrong"]),
        (lambda s: s.argmax(-1), []),
        (lambda s: s.transpose(1, 2).argmax(1), []),
        (lambda s: s[..., 1].argmax(1)[:, None], []),  # where a tag is likeliest
    ],
)
def test_winners_over_the_tokens(winner, expected):
    data = integers(9, 256, 4), integers(9, 256, 4) % 4
    assert alarms_of([wiring_metrics.TOPIC], Tagger(winner), data, data) == expected
