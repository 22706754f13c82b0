"""Gradients that end and weights that stay: what is found, and what stays silent."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring.wiring_flow import TOPIC
from tests._trainer.probing import assert_same
from tests._trainer.programs import PROGRAMS
from tests._trainer.small_programs import Base, Judges, found

pytestmark = pytest.mark.filterwarnings("ignore")


def verdict(code, make):
    return found(TOPIC, make)[code].verdict


class Coded(Base):
    """An encoder, something between, and a head."""

    def __init__(self, between, width=16):
        super().__init__(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, width))
        self.head = nn.Linear(width, 4)
        self.between = between

    def forward(self, x):
        return self.head(self.between(self.net(x)))


CUTS = {
    "argmax": lambda h: F.one_hot(h.argmax(1), 16).float(),
    "gt": lambda h: (h > 0).float(),
    "long": lambda h: (3 * h).long().float(),
    "round": lambda h: (3 * h).round(),
    "numpy": lambda h: torch.from_numpy(h.detach().numpy().round()),
    "tensor": lambda h: torch.tensor(h.tolist()).sign(),
}


@pytest.mark.parametrize("name", CUTS)
def test_what_cuts_a_gradient_is_found(name):
    finding = found(TOPIC, lambda: Coded(CUTS[name]))["no_grad_flow"]
    assert (finding.verdict, finding.where) == ("fail", "net.0.weight")
    assert f"{'tolist' if name == 'tensor' else name}()" in finding.message


@pytest.mark.parametrize(
    "between",
    [
        torch.relu,
        lambda h: h + (h.round() - h).detach(),
        lambda h: F.gumbel_softmax(h, hard=True),
    ],
    ids=["relu", "straight_through", "gumbel"],
)
def test_gradients_that_pass_are_silent(between):
    assert verdict("no_grad_flow", lambda: Coded(between)) == "pass"


class Guarded(Coded):
    """An encoder under ``no_grad``."""

    def __init__(self, width, lr=3e-2):
        super().__init__(torch.tanh, width)
        self.lr = lr
        if width < 4:
            with torch.no_grad():
                self.net[0].weight[:, :2] *= 0.02

    def forward(self, x):
        with torch.no_grad():
            h = self.net(x)
        return self.head(torch.tanh(h))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def test_no_grad_counts_only_where_nothing_is_learnt():
    finding = found(TOPIC, lambda: Guarded(2))["no_grad_flow"]
    assert finding.verdict == "warn"
    assert finding.evidence["progress"] < 0.5 < finding.evidence["progress_with_gradient"] + 0.25
    assert verdict("no_grad_flow", lambda: Guarded(256)) == "pass"


class Averaged(Base):
    """A target network that follows the other one, in the optimizer too."""

    def __init__(self):
        super().__init__()
        self.other = copy.deepcopy(self.net)

    def loss(self, batch):
        with torch.no_grad():
            for p, q in zip(self.other.parameters(), self.net.parameters(), strict=True):
                p.lerp_(q, 0.05)
        target = self.other(batch[0]).detach()
        return super().loss(batch) + 0.1 * F.mse_loss(self(batch[0]), target)


class HardTeacher(Base):
    """Labels of a network that does not learn."""

    def __init__(self):
        super().__init__()
        self.labels = nn.Sequential(nn.Linear(10, 4))

    def loss(self, batch):
        return F.cross_entropy(self(batch[0]), self.labels(batch[0]).argmax(1))


class ForTheLog(Base):
    """A head that only a metric looks at."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(4, 4)

    def loss(self, batch):
        y = self(batch[0])
        self.log("extra", (self.extra(y).argmax(1) == batch[1]).float().mean())
        return F.cross_entropy(y, batch[1])


@pytest.mark.parametrize("make", [Averaged, HardTeacher, ForTheLog])
def test_networks_that_are_not_to_learn_are_silent(make):
    assert {f.verdict for f in found(TOPIC, make).values()} == {"pass"}


class Manual(Base):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.update(optimizer)

    def update(self, optimizer):
        optimizer.step()


class Cleared(Manual):
    def update(self, optimizer):
        optimizer.zero_grad()
        optimizer.step()


class NeverSteps(Manual):
    def update(self, optimizer):
        pass


class Undone(Base):
    def on_train_start(self):
        self.kept = copy.deepcopy(self.net.state_dict())

    def on_train_batch_end(self, *_):
        self.net.load_state_dict(self.kept)


class RateZero(Base):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.0)


class OneStepsTwice(Manual):
    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(self.loss(batch))
        first.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.net[i].parameters(), lr=1e-2) for i in (0, 2)]


@pytest.mark.parametrize("make", [Cleared, NeverSteps, Undone, RateZero, OneStepsTwice])
def test_weights_that_stay_are_found(make):
    assert verdict("weights_not_updating", make) == "fail"


class WarmUp(Base):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, epoch / 3))
        return [optimizer], [ramp]


class OneGroupAtZero(Base):
    def __init__(self):
        super().__init__(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 4))

    def configure_optimizers(self):
        groups = [{"params": self.net[0].parameters(), "lr": 0.0}]
        return torch.optim.Adam([*groups, {"params": self.net[2].parameters()}], lr=1e-2)


class Alternates(OneStepsTwice):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()[batch_idx % 5 == 4]
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


@pytest.mark.parametrize("make", [Manual, WarmUp, OneGroupAtZero, Alternates])
def test_weights_that_move_or_will_are_silent(make):
    assert verdict("weights_not_updating", make) == "pass"


@pytest.mark.parametrize("name", ["sparse_gradients", "complex_parameters"])
def test_it_leaves_no_trace(name, tmp_path):
    assert_same(PROGRAMS[name], tmp_path, Judges((TOPIC,), ends=False))
