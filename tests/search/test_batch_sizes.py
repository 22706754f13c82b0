"""Which batch sizes fit, and how long each takes to a target."""

import pytest
import torch

from lightning_tuning.search import batch_sizes
from tests.toys import Classifier, loader

QUIET = {"accelerator": "cpu"}


class Learns(Classifier):
    """Separates classes that can be told apart; a batch above ``room`` does not fit."""

    def __init__(self, lr=0.1, room=10**9):
        super().__init__(lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9))
        self.room = room

    def training_step(self, batch, batch_idx):
        if len(batch[0]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().training_step(batch, batch_idx)

    def loss(self, batch):
        inputs, _ = batch
        return super().loss((inputs, inputs[:, :3].argmax(1)))


def data(batch_size):
    return loader(256, batch_size, shuffle=True), loader(64, 64)


def test_sizes_go_from_the_root_of_the_examples_as_far_as_they_fit():
    found = batch_sizes(lambda: Learns(room=64), data, target=0.5, trainer=QUIET)
    assert found.first_guess == 16
    assert [one.batch_size for one in found.times] == [4, 8, 16, 32, 64]
    assert found.largest == 64
    whole = batch_sizes(Learns, data, target=0.5, trainer=QUIET, max_epochs=3)
    assert whole.largest == 256


def test_the_time_is_that_of_reaching_the_target():
    found = batch_sizes(Learns, data, target=0.5, sizes=[128, 8], trainer=QUIET)
    few, many = found.times
    assert (few.batch_size, many.batch_size) == (8, 128)
    assert few.reached <= 0.5
    assert many.reached <= 0.5
    assert few.steps % 32 == 0
    assert many.steps % 2 == 0
    assert found.best.seconds == min(few.seconds, many.seconds)


def test_a_target_that_is_not_reached_has_no_time():
    found = batch_sizes(Learns, data, target=0.0, sizes=[64], max_epochs=2, trainer=QUIET)
    assert found.best is None
    assert found.times[0].steps == 8
    assert found.times[0].reached > 0


def test_each_size_may_have_a_rate_of_its_own():
    rates = []

    def make(lr=1e-4):
        rates.append(lr)
        return Learns(lr)

    found = batch_sizes(make, data, target=0.5, sizes=[16], lr="lr", trainer=QUIET)
    assert found.times[0].learning_rate == rates[-1] > 1e-3
    assert found.times[0].seconds is not None


def test_what_is_wrong_is_named():
    with pytest.raises(RuntimeError, match="a batch of 4 does not fit"):
        batch_sizes(lambda: Learns(room=2), data, target=0.5, trainer=QUIET)
    with pytest.raises(ValueError, match=r"sizes=\[\]"):
        batch_sizes(Learns, data, target=0.5, sizes=[])
    with pytest.raises(ValueError, match="mode='least'"):
        batch_sizes(Learns, data, target=0.5, mode="least")

    class Broken(Learns):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        batch_sizes(Broken, data, target=0.5, trainer=QUIET)
