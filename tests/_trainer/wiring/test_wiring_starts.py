"""Starts at which the signal is lost between layers: a minimal program each, and its twin."""

import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring import wiring_signal
from lightning_tuning._trainer.wiring.rescues import DataDependentInit
from tests._trainer.wiring_programs import Learner, alarms_of

TOPICS = [wiring_signal.TOPIC]


class Deep(nn.Module):
    def __init__(self, *, skip):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(14))
        self.skip = skip

    def forward(self, x):
        h = self.first(x)
        for layer in self.layers:
            new = torch.tanh(layer(h))
            h = h + 0.3 * new if self.skip else new
        return self.last(h)


class Normed(nn.Module):
    def __init__(self, shift, norm=nn.LayerNorm):
        super().__init__()
        self.a, self.norm, self.c = nn.Linear(8, 16), norm(16), nn.Linear(16, 4)
        nn.init.constant_(self.norm.bias, shift)

    def forward(self, x):
        return self.c(F.relu(self.norm(self.a(x))))


def test_examples_that_look_the_same_behind_many_layers():
    assert alarms_of(TOPICS, Learner(lambda: Deep(skip=False), lr=0.05)) == ["bad_init_scale"]
    assert alarms_of(TOPICS, Learner(lambda: Deep(skip=True), lr=0.05)) == []


def test_relus_that_the_shift_of_a_normalization_kills():
    for norm in (nn.LayerNorm, nn.BatchNorm1d):
        broken, healthy = lambda: Normed(-6.0, norm), lambda: Normed(0.0, norm)  # noqa: B023
        assert alarms_of(TOPICS, Learner(broken, lr=0.03)) == ["dead_relu"]
        assert alarms_of(TOPICS, Learner(healthy, lr=0.03)) == []


def test_a_normalization_that_starts_at_zero_keeps_its_start():
    net = Normed(0.0)
    nn.init.zeros_(net.norm.weight)
    start = DataDependentInit(net, last="c.weight")
    with start, torch.no_grad():
        net(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))
    assert "a.weight" in start.found
    assert "norm.weight" not in start.found
