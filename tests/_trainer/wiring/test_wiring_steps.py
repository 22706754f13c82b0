"""Gradients between steps, and steps that raise: what is found, and what stays silent."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring import wiring_raises, wiring_steps
from tests._trainer.probing import assert_same
from tests._trainer.programs import PROGRAMS
from tests._trainer.small_programs import Base, Judges, found

pytestmark = pytest.mark.filterwarnings("ignore")


def verdict(code, make, **settings):
    return found(wiring_steps.TOPIC, make, **settings)[code].verdict


class Overridden(Base):
    def optimizer_zero_grad(self, *args):
        pass


class Manual(Base):
    """Every ``every`` batches a step; zero_grad before the backward pass, after the step, never."""

    automatic_optimization = False

    def __init__(self, clear="before", every=1, divide=True, lr=0.1):
        super().__init__()
        self.clear, self.every, self.lr = clear, every, lr
        self.scale = 1 / every if divide else 1.0

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        if self.clear == "before":
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch) * self.scale)
        if (batch_idx + 1) % self.every == 0:
            optimizer.step()
            if self.clear == "after":
                optimizer.zero_grad(set_to_none=False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


@pytest.mark.parametrize("make", [Overridden, lambda: Manual(clear="never")])
def test_gradients_that_are_never_cleared_are_found(make):
    finding = found(wiring_steps.TOPIC, make)["missing_zero_grad"]
    assert finding.verdict == "fail"
    assert finding.evidence["share"] == 1.0


class ByHand(Base):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(0 * self.loss(batch))
        parameters = list(self.parameters())
        grads = torch.autograd.grad(self.loss(batch), parameters)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        self.optimizers().step()
        self.optimizers().zero_grad()


class Adversarial(Base):
    """The generator's loss leaves gradients in the critic, which it clears itself."""

    automatic_optimization = False

    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 10))
        self.critic = nn.Linear(10, 1)

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        fake = self.net(torch.randn(len(batch[0]), 4))
        critic.zero_grad()
        scores = F.softplus(-self.critic(batch[0])) + F.softplus(self.critic(fake.detach()))
        self.manual_backward(scores.mean())
        critic.step()
        generator.zero_grad()
        self.manual_backward(F.softplus(-self.critic(fake)).mean())
        generator.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(p.parameters(), lr=1e-3) for p in (self.net, self.critic)]


class SecondOrder(Base):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


@pytest.mark.parametrize(
    "make",
    [
        *(Base, Manual, ByHand, Adversarial, SecondOrder),
        lambda: Manual(clear="after"),
        lambda: Manual(clear="after", every=4),
    ],
)
def test_gradients_that_are_cleared_are_silent(make):
    assert verdict("missing_zero_grad", make) == "pass"


def test_accumulation_by_the_trainer_is_silent():
    assert verdict("missing_zero_grad", Base, accumulate_grad_batches=3) == "pass"
    assert verdict("accumulation_unscaled", Base, accumulate_grad_batches=3) == "pass"


def test_undivided_batches_count_only_where_training_suffers():
    def make(**options):
        return lambda: Manual(clear="after", every=8, **options)

    finding = found(wiring_steps.TOPIC, make(divide=False, lr=4.0))["accumulation_unscaled"]
    assert (finding.verdict, finding.evidence["batches"]) == ("warn", 8)
    assert verdict("accumulation_unscaled", make(divide=True, lr=4.0)) == "pass"
    assert verdict("accumulation_unscaled", make(divide=False, lr=0.01)) == "pass"


def test_an_error_of_the_step_is_told_with_what_to_do():
    def make():
        return Base(nn.Linear(10, 8), nn.ReLU(), nn.Linear(16, 4))

    finding = found(wiring_raises.TOPIC, make)["step_raised"]
    assert (finding.verdict, finding.where) == ("fail", "net.2")
    assert "expects 16" in finding.hint
    assert found(wiring_raises.TOPIC, Base)["step_raised"].verdict == "pass"


def test_an_error_that_asks_for_callbacks_is_not_judged():
    class Asks(Base):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) * len(self.trainer.callbacks[0].topics)

    assert found(wiring_raises.TOPIC, Asks)["step_raised"].verdict == "skip"


@pytest.mark.parametrize("name", ["manual", "fp16_with_overflow"])
def test_it_leaves_no_trace(name, tmp_path):
    topics = (wiring_raises.TOPIC, wiring_steps.TOPIC)
    assert_same(PROGRAMS[name], tmp_path, Judges(topics, ends=False))
