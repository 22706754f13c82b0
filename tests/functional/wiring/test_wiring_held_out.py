"""What outputs know of their targets, and when training and validation know different things."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from lightning_tuning.functional.loss_calls import bound_call
from lightning_tuning.functional.wiring.wiring_held_out import HeldOut, Knowledge, knowledge
from lightning_tuning.functional.wiring.wiring_validation_data import (
    ValidationEvidence,
    train_val_mismatch,
)


def call(function, output, target, **options):
    return bound_call(function, [output, target], options, function(output, target, **options))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gain_of_values_is_twice_their_covariance():
    y = normal(4000)
    x = 0.5 * y + 3.0
    found = knowledge([call(F.mse_loss, x[:2000], y[:2000]), call(F.mse_loss, x[2000:], y[2000:])])
    assert found.gain == pytest.approx(2 * 0.5, abs=0.05)
    assert found.examples == 4000
    assert found.loss == pytest.approx(float(F.mse_loss(x, y)))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_outputs_that_know_nothing_gain_nothing_however_sure_they_are(scale):
    logits, labels = scale * normal(2000, 5), torch.arange(2000) % 5
    found = knowledge([call(F.cross_entropy, logits, labels)])
    assert abs(found.gain) < 4 * found.noise


def test_what_it_cannot_judge():
    y = normal(64)
    assert knowledge([call(F.gaussian_nll_loss, y, y, var=y.abs()) for y in (y, y[:9])]) is None
    assert knowledge([call(F.mse_loss, y, torch.ones(64))]) is None
    assert knowledge([call(F.mse_loss, y * float("nan"), y)]) is None
    # sequences of different lengths
    other = [call(F.mse_loss, torch.ones(4, n), normal(4, n)) for n in (3, 5)]
    assert knowledge(other) is None
    # a weight for each example of a batch
    label = (y > 0).float()
    loss = F.binary_cross_entropy_with_logits
    assert knowledge([call(loss, y + k, label, weight=y.abs()) for k in (0, 1)]) is None


def test_a_loss_that_is_called_twice_counts_once():
    y = normal(64)
    assert knowledge([call(F.mse_loss, y, y), call(F.mse_loss, y, y)]).examples == 64


KNOWN = Knowledge(loss=0.2, exchanged=3.2, error=0.05, chance=1.0, examples=200)
LOST = Knowledge(loss=2.4, exchanged=2.45, error=0.05, chance=1.0, examples=400)


def verdict(train=KNOWN, val=LOST, **changes):
    held = HeldOut(train=train, val=dataclasses.replace(val, **changes))
    return train_val_mismatch(ValidationEvidence(held_out=held))[0].verdict


def test_it_warns_where_nothing_holds_for_validation():
    assert verdict() == "warn"
    # exchanged classes are worse than nothing
    assert verdict(loss=4.0, exchanged=3.0) == "warn"


def test_it_stays_silent():
    assert verdict(val=KNOWN) == "skip"
    # too few examples to know
    assert verdict(error=0.5) == "skip"
    # too sure of itself, but not blind
    assert verdict(exchanged=3.6) == "skip"
    assert verdict(loss=0.9, exchanged=0.95) == "skip"
    # targets that hardly vary
    assert verdict(chance=0.3) == "skip"
    # what was learnt does not hold for training data either
    assert verdict(train=LOST) == "skip"
    assert verdict(train=dataclasses.replace(KNOWN, loss=0.9)) == "skip"
    assert verdict(train=dataclasses.replace(KNOWN, error=0.6)) == "skip"
