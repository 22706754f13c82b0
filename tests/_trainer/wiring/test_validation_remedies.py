"""Validation pictures that are turned, ids that are moved, and what must stay silent."""

import pytest
import torch
from torch import nn

from lightning_tuning._trainer.wiring import wiring_validation_data
from tests._trainer.wiring.test_wiring_data import OtherTransform
from tests._trainer.wiring_programs import Learner, alarms_of, parts_unchanged
from tests.corpus.program import images

VALIDATION = [wiring_validation_data.TOPIC]


def pictures():
    x, y = images()
    return (x[:640], y[:640]), (x[640:900], y[640:900])


def cnn(channels=1):
    return lambda: nn.Sequential(
        nn.Conv2d(channels, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10)
    )


@pytest.mark.parametrize(
    "turn", [lambda x: x.rot90(1, (2, 3)), lambda x: x.flip(-1), lambda x: x.transpose(2, 3)]
)
def test_turned_validation_pictures(turn):
    program = OtherTransform(cnn(), lr=0.02, transform=turn)
    assert alarms_of(VALIDATION, program, *pictures()) == ["train_val_mismatch"]


def test_validation_pictures_with_channels_reversed():
    def coloured(data):
        return data[0] * torch.tensor([1.0, 0.5, -0.5]).view(3, 1, 1), data[1]

    train, val = (coloured(data) for data in pictures())
    program = OtherTransform(cnn(3), lr=0.02, transform=lambda x: x.flip(1))
    assert alarms_of(VALIDATION, program, train, val) == ["train_val_mismatch"]
    assert alarms_of(VALIDATION, Learner(cnn(3), lr=0.02), train, val) == []


class Pooled(nn.Module):
    """Sees no direction."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 16, 1), nn.Linear(16, 10)

    def forward(self, x):
        return self.out(self.conv(x).relu().mean((2, 3)))


def test_pictures_that_stay_silent():
    train, val = pictures()
    assert alarms_of(VALIDATION, Learner(cnn(), lr=0.02), train, val) == []
    # training pictures are mirrored at random, those of validation are not
    x, y = train
    mirrored = torch.where((torch.arange(len(x)) % 2 == 0).view(-1, 1, 1, 1), x, x.flip(-1))
    assert alarms_of(VALIDATION, Learner(cnn(), lr=0.02), (mirrored, y), val) == []
    # one class only, of which the average looks different
    one = val[0][val[1] == 7], val[1][val[1] == 7]
    assert alarms_of(VALIDATION, Learner(cnn(), lr=0.02), train, one) == []
    blind = OtherTransform(Pooled, lr=0.02, transform=lambda x: x.flip(-1))
    assert alarms_of(VALIDATION, blind, train, val) == []


def texts(count=500, shift=0, padding=0.2):
    generator = torch.Generator().manual_seed(count)
    topic = torch.randint(0, 4, (count,), generator=generator)
    words = (6 * topic[:, None] + 10 * torch.rand(count, 6, generator=generator)).long()
    padded = torch.rand(count, 6, generator=generator) < padding
    return (words + 1 + shift).masked_fill(padded, 0), topic


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(60, 16, padding_idx=0), nn.Linear(16, 4)

    def forward(self, ids):
        return self.out(self.embed(ids).mean(1))


def bag():
    return nn.Sequential(nn.EmbeddingBag(60, 16), nn.Linear(16, 4))


@pytest.mark.parametrize(("make", "padding"), [(Words, 0.2), (bag, 0.0)])
def test_validation_ids_that_are_moved(make, padding):
    program = lambda: Learner(make, lr=0.5)  # noqa: E731
    found = alarms_of(VALIDATION, program(), texts(padding=padding), texts(120, 12, padding))
    assert found == ["train_val_mismatch"]
    data = texts(padding=padding), texts(120, padding=padding)
    assert alarms_of(VALIDATION, program(), *data) == []


def test_ids_that_stay_silent():
    # people who were not there in training
    ids, topic = texts()
    people = torch.arange(len(ids))[:, None].expand(-1, 6) % 25
    others = people[:120] + 30
    program = Learner(lambda: nn.Sequential(nn.EmbeddingBag(60, 16), nn.Linear(16, 4)), lr=0.5)
    assert alarms_of(VALIDATION, program, (people, topic), (others, topic[:120])) == []
    # one topic only
    one = topic == 3
    assert alarms_of(VALIDATION, Learner(bag, lr=0.5), (ids, topic), (ids[one], topic[one])) == []


def test_nothing_is_left_behind():
    turned = OtherTransform(cnn(), lr=0.02, transform=lambda x: x.flip(-1))
    assert parts_unchanged(VALIDATION, turned, *pictures())
    assert parts_unchanged(VALIDATION, Learner(bag, lr=0.5), texts(), texts(120, shift=12))
