"""EMAWeights on parameters of all kinds and precisions, with optimizers that the device steps."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from tests.callbacks.ema_reference import assert_recursion_and_same_training, settings
from tests.toys import Classifier

pytestmark = pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")

PROGRAMS = {}


def program(make):
    PROGRAMS[make.__name__] = make
    return make


class Complex(Classifier):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.randn(6, dtype=torch.complex64))

    def forward(self, inputs):
        return self.net((inputs * self.phase).abs())


@program
def complex_parameters():
    return Complex(), settings()


@program
def double_parameters():
    # double to the last digits
    tight = {"rtol": 1e-13, "atol": 1e-14}
    return Classifier(), settings(precision="64-true", reference=tight)


@program
def double_and_single():
    module = Classifier()
    module.net[2].double()
    module.net[1] = nn.Sequential(nn.ReLU(), Cast())
    return module, settings()


class Cast(nn.Module):
    def forward(self, inputs):
        return inputs.double()


@program
def bf16_true():
    # the weights are taken as they are: the average is as exact as in float32
    module = Classifier(lambda p: torch.optim.SGD(p, lr=0.5))
    return module, settings(ema={"decay": 0.9999, "warmup": False}, precision="bf16-true")


@program
def fp16_true():
    return Classifier(), settings(precision="16-true")


@program
def bf16_mixed():
    return Classifier(), settings(precision="bf16-mixed")


class Overflows(Classifier):
    """Gradients of some batches are infinite, that of the first among them."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return (
            loss * float("inf") if self.trainer.fit_loop.total_batch_idx in {0, 3, 4, 9} else loss
        )


def fp16(**others):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    return settings(plugins=MixedPrecision("16-mixed", "cpu", scaler=scaler), **others)


@program
def overflows():
    return Overflows(), fp16()


def fused_adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


@program
def fused_overflows():
    return Overflows(fused_adam), fp16()


@program
def fused_sgd_overflows():
    make = torch.optim.SGD
    return Overflows(lambda p: make(p, lr=0.1, fused=True)), fp16(accumulate_grad_batches=2)


@program
def fused_overflows_delayed():
    late = {"update_after_step": 5}
    return Overflows(fused_adam), fp16(max_epochs=3, ema=late, reference={"after": 5})


@program
def fused():
    return Classifier(fused_adam), settings()


@program
def foreach():
    return Classifier(lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True)), settings()


@pytest.mark.parametrize("name", PROGRAMS)
def test_recursion_and_training(name):
    assert_recursion_and_same_training(PROGRAMS[name])
