"""Gradients of zero, and optimizers that no loss is for."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from lightning_tuning._trainer.wiring.wiring_flow import TOPIC
from tests._trainer.small_programs import Base, found

pytestmark = pytest.mark.filterwarnings("ignore")


class LogsLoss(Base):
    """Rounds, and logs a detached loss besides."""

    def __init__(self, between):
        super().__init__(nn.Linear(10, 32), nn.Tanh())
        self.head, self.between = nn.Linear(32, 4), between

    def forward(self, x):
        return self.head(self.between(4 * self.net(x)))

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss.detach())
        return loss


def through(h):
    return h + (h.round() - h).detach()


@pytest.mark.parametrize(("between", "expected"), [(torch.round, "fail"), (through, "pass")])
def test_a_detach_elsewhere_does_not_excuse_a_gradient_of_zero(between, expected):
    finding = found(TOPIC, lambda: LogsLoss(between))["no_grad_flow"]
    assert finding.verdict == expected
    assert ("round()" in finding.message) == (expected == "fail")


class Gan(LightningModule):
    """Two optimizers, each with a loss of its own."""

    def __init__(self, cut=False, warm_up=False):
        super().__init__()
        self.g = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 10))
        self.d = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
        self.cut, self.warm_up = cut, warm_up
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        fake = self.g(torch.randn(len(batch[0]), 4))
        loss = F.softplus(-self.d(batch[0])).mean() + F.softplus(self.d(fake.detach())).mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        first.zero_grad()
        if not self.warm_up:
            judged = self.d(fake.detach() if self.cut else fake)
            self.manual_backward(F.softplus(-judged).mean())
        first.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), lr=1e-2) for net in (self.g, self.d)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"cut": True}, "fail"), ({}, "pass"), ({"warm_up": True}, "pass")],
    ids=["detached", "gan", "waits_its_turn"],
)
def test_an_optimizer_without_a_loss(settings, expected):
    finding = found(TOPIC, lambda: Gan(**settings))["no_grad_flow"]
    assert finding.verdict == expected
    assert (finding.where == "g.0.weight") == (expected == "fail")
