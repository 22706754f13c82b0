"""Units that stay the same: what is found, and what stays silent."""

import pytest
import torch
from torch import nn

from lightning_tuning._trainer.wiring_units import TOPIC
from tests._trainer.small_programs import Base, found

pytestmark = pytest.mark.filterwarnings("ignore")


def verdict(make):
    return found(TOPIC, make)["zero_init"].verdict


class Filled(Base):
    def __init__(self, value, *, only_last=False, dropout=0.0):
        drop = nn.Dropout(dropout)
        super().__init__(nn.Linear(10, 32), nn.ReLU(), drop, nn.Linear(32, 32), nn.ReLU(), drop,
                         nn.Linear(32, 4))  # fmt: skip
        for layer in [self.net[-1]] if only_last else self.net:
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.weight, value)
                nn.init.zeros_(layer.bias)


def test_units_that_stay_the_same_are_found():
    assert verdict(lambda: Filled(0.0)) == "fail"
    assert verdict(lambda: Filled(0.1)) == "fail"
    assert verdict(lambda: Filled(1.0, dropout=0.5)) == "warn"


def test_zero_heads_adapters_and_branches_are_silent():
    class Adapter(Base):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(10, 4) * 0.1)
            self.b = nn.Parameter(torch.zeros(4, 4))
            self.gate = nn.Parameter(torch.zeros(1))
            self.pos = nn.Parameter(torch.zeros(1, 10))

        def forward(self, x):
            x = x + self.pos
            return self.net(x) + x @ self.a @ self.b + self.gate * x[:, :4]

    assert verdict(lambda: Filled(0.0, only_last=True)) == "pass"
    assert verdict(lambda: Filled(0.2, only_last=True)) == "pass"
    assert verdict(Adapter) == "pass"
