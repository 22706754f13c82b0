"""Each fault of the signal in a minimal program, its healthy twin, and idioms that stay silent."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring import wiring_dropout, wiring_signal
from lightning_tuning._trainer.wiring.layer_calls import LayerCalls
from tests._trainer.wiring_programs import (
    Learner,
    alarms_of,
    clusters,
    judged,
    parts_unchanged,
)

TOPICS = [wiring_signal.TOPIC, wiring_dropout.TOPIC]


def mlp(*widths, activation=nn.ReLU):
    layers = [
        part for a, b in itertools.pairwise(widths[:-1]) for part in (nn.Linear(a, b), activation())
    ]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def started(net, start):
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                start(layer)
    return net


def biased(bias):
    def make():
        net = mlp(8, 16, 4)
        nn.init.constant_(net[0].bias, bias)
        return net

    return make


class Recurrent(nn.Module):
    def __init__(self, std):
        super().__init__()
        self.rnn = nn.RNN(1, 32, batch_first=True)
        self.head = nn.Linear(32, 4)
        if std:
            nn.init.normal_(self.rnn.weight_hh_l0, std=std)
        else:
            nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])


def dropping(p):
    return lambda: nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(p),
        nn.Linear(16, 4),
    )  # fmt: skip


def wide(layer):
    nn.init.normal_(layer.weight, std=2.0)


def tiny(layer):
    nn.init.normal_(layer.weight, std=1e-3)
    nn.init.zeros_(layer.bias)


def he(layer):
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)


def deep(activation):
    return lambda: mlp(8, *[16] * 8, 4, activation=activation)


def steep(std):
    return lambda: started(
        mlp(8, 16, 16, 4, activation=nn.Tanh), lambda part: nn.init.normal_(part.weight, std=std)
    )


class Hot(nn.Module):
    """Divides its logits by a temperature."""

    def __init__(self, temperature):
        super().__init__()
        self.net, self.temperature = mlp(8, 16, 4), temperature

    def forward(self, x):
        return self.net(x) / self.temperature


PAIRS = {
    "dead_relu": (biased(-20.0), biased(0.0), {"lr": 0.1}),
    "saturated_activations": (steep(12.0), steep(0.3), {"lr": 0.03}),
    "bad_init_scale": (
        lambda: started(mlp(8, 32, 32, 4), tiny),
        lambda: started(mlp(8, 32, 32, 4), he),
        {"lr": 0.1},
    ),
    "vanishing_gradients": (deep(nn.Sigmoid), deep(nn.SELU), {"lr": 0.03}),
    "dropout_too_high": (dropping(0.98), dropping(0.1), {"lr": 0.01}),
}


@pytest.mark.parametrize("code", PAIRS)
def test_a_minimal_program_triggers_and_its_healthy_twin_does_not(code):
    broken, healthy, settings = PAIRS[code]
    assert alarms_of(TOPICS, Learner(broken, **settings)) == [code]
    assert alarms_of(TOPICS, Learner(healthy, **settings)) == []


def test_exploding_outputs_are_a_bad_initial_scale():
    broken = Learner(lambda: started(mlp(8, 32, 32, 32, 4), wide), lr=0.1)
    assert alarms_of(TOPICS, broken) == ["bad_init_scale"]


def test_logits_at_a_wrong_temperature_are_a_bad_initial_scale():
    assert alarms_of(TOPICS, Learner(lambda: Hot(0.002), lr=0.3)) == ["bad_init_scale"]
    assert alarms_of(TOPICS, Learner(lambda: Hot(1.0), lr=0.1)) == []


def test_a_recurrent_matrix_that_forgets():
    # the first value of a row tells the class; noise follows
    first = torch.randn(256, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(256, 15, generator=torch.Generator().manual_seed(1))
    data = torch.cat([2 * first[:, None], 0.05 * noise], 1), (first > 0).long()
    program = Learner(lambda: Recurrent(0.01), lr=0.03)
    assert alarms_of(TOPICS, program, data) == ["vanishing_gradients"]
    assert alarms_of(TOPICS, Learner(lambda: Recurrent(None), lr=0.03), data) == []


@pytest.mark.parametrize("scale", [(200.0, 120.0), (1.0, 300.0), (1e-4, 0.0)])
def test_unnormalised_data(scale):
    factor, offset = scale
    x, y = clusters()
    program = lambda: Learner(lambda: mlp(8, 16, 4), lr=0.05)  # noqa: E731
    assert alarms_of(TOPICS, program(), (x * factor + offset, y)) == ["unnormalized_input"]
    assert alarms_of(TOPICS, program(), (x, y)) == []


def test_one_column_of_another_unit():
    x, y = clusters()
    program = Learner(lambda: mlp(8, 16, 4), lr=0.05)
    other = x * torch.tensor([1.0] * 7 + [3000.0])
    assert alarms_of(TOPICS, program, (other, y)) == ["unnormalized_input"]


@pytest.mark.parametrize("lr", [3e-4, 1e-3])
def test_a_rate_that_raw_data_have_kept_low_does_not_hide_them(lr):
    # standing still as it is, and too slow at this rate on standardised data
    x, y = clusters()
    columns = torch.logspace(-1.5, 2.7, 8)
    found = judged(TOPICS, Learner(lambda: mlp(8, 16, 4), lr=lr), ((x + 3) * columns, y)).findings
    [finding] = [finding for finding in found if finding.verdict == "warn"]
    assert finding.code == "unnormalized_input"
    assert "with each feature standardised and ten times the learning rate at" in finding.message


class OwnScaling(Learner):
    """Raw data, divided by statistics that the program finds itself."""

    def on_train_start(self):
        x = torch.cat([batch[0] for batch in self.trainer.train_dataloader])
        self.register_buffer("mean", x.mean(0))
        self.register_buffer("std", x.std(0))

    def prepare(self, x):
        return (x - self.mean) / self.std if hasattr(self, "mean") else x


class Gated(nn.Module):
    """Hard gates on purpose."""

    def __init__(self):
        super().__init__()
        self.gate, self.value, self.head = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(torch.sigmoid(50 * self.gate(x)) * self.value(x))


SILENT = {
    "raw data, BatchNorm first": (
        lambda: Learner(lambda: nn.Sequential(nn.BatchNorm1d(8), mlp(8, 16, 4)), lr=0.05),
        (200.0, 120.0),
    ),
    "raw data, own statistics": (
        lambda: OwnScaling(lambda: mlp(8, 16, 4), lr=0.05),
        (200.0, 120.0),
    ),
    "hard gates": (lambda: Learner(Gated, lr=0.05), (1.0, 0.0)),
    "sparse units": (lambda: Learner(biased(-0.6), lr=0.1), (1.0, 0.0)),
    "deep, default start": (lambda: Learner(lambda: mlp(8, *[32] * 5, 4), lr=0.03), (1.0, 0.0)),
    "a step far too small": (lambda: Learner(lambda: mlp(8, 16, 4), lr=1e-6), (1.0, 0.0)),
    "a step far too large": (lambda: Learner(lambda: mlp(8, 16, 16, 4), lr=1e3), (1.0, 0.0)),
    "much dropout in a wide layer": (
        lambda: Learner(
            lambda: nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Dropout(0.8), nn.Linear(512, 4)),
            lr=0.05,
        ),
        (1.0, 0.0),
    ),
}


@pytest.mark.parametrize("name", SILENT)
def test_idioms_that_stay_silent(name):
    make, (factor, offset) = SILENT[name]
    x, y = clusters()
    assert alarms_of(TOPICS, make(), (x * factor + offset, y)) == []


def test_random_labels_blame_nothing():
    x, _ = clusters()
    y = torch.randint(4, (len(x),), generator=torch.Generator().manual_seed(7))
    assert alarms_of(TOPICS, Learner(lambda: mlp(8, 16, 4), lr=0.01), (x, y)) == []


def test_nothing_is_left_behind():
    assert parts_unchanged(TOPICS, Learner(steep(12.0), lr=0.03))
    assert parts_unchanged(TOPICS, Learner(dropping(0.98), lr=0.01))


def test_data_are_told_from_what_was_learnt():
    seen = {}
    first, frozen, last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(6, 2)
    net = nn.ModuleDict({"first": first, "frozen": frozen, "last": last})

    def see(call, make):
        seen[call.name] = call.of_data
        return make()

    x = torch.randn(4, 3)
    with LayerCalls(net, see):
        with torch.no_grad():
            hidden = F.relu(first(x.clamp(-1, 1)))
            hidden = frozen(hidden)
        last(torch.cat([hidden, x], 1))
    # data beside what was learnt count as data
    assert seen == {"first.weight": True, "frozen.weight": False, "last.weight": True}
