"""Units that stay the same: what is found, and what stays silent."""

import pytest
import torch
from torch import nn

from lightning_tuning._trainer.wiring.wiring_units import TOPIC
from tests._trainer.small_programs import Base, found

pytestmark = pytest.mark.filterwarnings("ignore")


def verdict(make):
    return found(TOPIC, make)["zero_init"].verdict


class Filled(Base):
    def __init__(self, value, *, only_last=False, dropout=0.0, keep_biases=False):
        drop = nn.Dropout(dropout)
        super().__init__(nn.Linear(10, 32), nn.ReLU(), drop, nn.Linear(32, 32), nn.ReLU(), drop,
                         nn.Linear(32, 4))  # fmt: skip
        for layer in [self.net[-1]] if only_last else self.net:
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.weight, value)
                if not keep_biases:
                    nn.init.zeros_(layer.bias)


def test_units_that_stay_the_same_are_found():
    assert verdict(lambda: Filled(0.0)) == "fail"
    assert verdict(lambda: Filled(0.1)) == "fail"
    assert verdict(lambda: Filled(1.0, dropout=0.5)) == "warn"


class Steady(Filled):
    """The same with torch's own biases and a smaller learning rate."""

    def __init__(self, value, *, only_last=False):
        super().__init__(value, only_last=only_last, keep_biases=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=4e-3)


def test_units_that_only_biases_make_different_are_found():
    assert verdict(lambda: Steady(0.02)) == "warn"
    assert verdict(lambda: Steady(0.02, only_last=True)) == "pass"


class Branches(Base):
    """Residual branches whose last layers start at zero, and a head that does too."""

    def __init__(self, lr):
        super().__init__(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
        self.lr = lr
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(3)
        )
        for last in [self.net[-1], *(branch[-1] for branch in self.branches)]:
            nn.init.zeros_(last.weight)

    def forward(self, x):
        h = self.net[1](self.net[0](x))
        for branch in self.branches:
            h = h + branch(h)
        return self.net[2](h)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@pytest.mark.parametrize("lr", [1e-2, 1e-3, 3e-4])
def test_branches_that_start_at_zero_are_silent_however_slow(lr):
    assert verdict(lambda: Branches(lr)) == "pass"


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


class Ratings(Base):
    """Users times items; each table is of use to the other alone."""

    def __init__(self, users, items):
        super().__init__(nn.Identity())
        self.users, self.items = nn.Embedding(10, 4), nn.Embedding(10, 4)
        self.head = nn.Linear(10, 4)
        for table, size in ((self.users, users), (self.items, items)):
            nn.init.normal_(table.weight, std=size)

    def forward(self, x):
        who, what = x[:, 0].abs().long() % 10, x[:, 1].abs().long() % 10
        return self.head(x) + self.users(who) * self.items(what)


def test_tables_that_wait_for_each_other_are_found():
    finding = found(TOPIC, lambda: Ratings(0.0, 0.0))["zero_init"]
    assert finding.verdict == "fail"
    assert finding.where == "users.weight"
    # one of them at zero learns, since rows of the other differ
    assert verdict(lambda: Ratings(0.0, 0.3)) == verdict(lambda: Ratings(0.3, 0.3)) == "pass"
