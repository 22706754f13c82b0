"""Validation data that the program's preparation sets apart, and those that are only harder."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning._trainer.wiring import wiring_validation_data
from tests._trainer.wiring.test_validation_remedies import Words, texts
from tests._trainer.wiring_programs import Learner, alarms_of, clusters, judged, parts_unchanged

VALIDATION = [wiring_validation_data.TOPIC]


def net(width=16):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


class Prepared(Learner):
    """Prepares batches on the device, in training or always."""

    def __init__(self, *args, prepare, always=False, **settings):
        super().__init__(*args, **settings)
        self.change, self.always = prepare, always

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (self.change(x) if self.always or self.training else x), y


def scaled(x):
    return (x - 60) / 20


@pytest.mark.parametrize(("always", "codes"), [(False, ["train_val_mismatch"]), (True, [])])
def test_inputs_that_are_scaled_in_training_alone(always, codes):
    raw = [(20 * x + 60, y) for x, y in (clusters(), clusters(64))]
    program = Prepared(net, lr=0.05, prepare=scaled, always=always)
    assert alarms_of(VALIDATION, program, *raw) == codes


@pytest.mark.parametrize(
    "augment",
    [
        lambda x: x + torch.randn_like(x),
        lambda x: x * (0.5 + torch.rand(len(x), 1)),
        lambda x: x * (torch.rand_like(x) > 0.3),
        lambda x: 0.7 * x + 0.3 * x[torch.randperm(len(x))],
    ],
    ids=["noise", "scale", "erase", "mixup"],
)
def test_augmentation_in_training_alone(augment):
    program = Prepared(net, lr=0.05, prepare=augment)
    assert alarms_of(VALIDATION, program, clusters(), clusters(64)) == []


def reordered(data):
    ids, topic = data
    order = torch.randperm(59, generator=torch.Generator().manual_seed(1)) + 1
    return torch.cat([torch.zeros(1, dtype=torch.long), order])[ids], topic


def test_validation_texts_with_a_vocabulary_of_their_own():
    val = texts(300)
    broken = judged(VALIDATION, Learner(Words, lr=0.5), texts(), reordered(val)).findings
    assert [(f.code, f.verdict) for f in broken] == [("train_val_mismatch", "warn")]
    assert "held out" in broken[0].message
    assert alarms_of(VALIDATION, Learner(Words, lr=0.5), texts(), val) == []


def test_validation_classes_in_another_order():
    (x, y), (val, labels) = clusters(), clusters(200)
    program = lambda: Learner(net, lr=0.05)  # noqa: E731
    assert alarms_of(VALIDATION, program(), (x, y), (val, 3 - labels)) == ["train_val_mismatch"]
    assert alarms_of(VALIDATION, program(), (x, y), (val, labels)) == []


def test_validation_that_is_only_harder_stays_silent():
    (x, y), (val, labels) = clusters(), clusters(200)
    noise = torch.randn(val.shape, generator=torch.Generator().manual_seed(5))
    program = lambda: Learner(net, lr=0.1)  # noqa: E731
    assert alarms_of(VALIDATION, program(), (x, y), (val + 1.5 * noise, labels)) == []
    # sorted, or of one class only
    order = labels.argsort()
    assert alarms_of(VALIDATION, program(), (x, y), (val[order], labels[order])) == []
    one = labels == 2
    assert alarms_of(VALIDATION, program(), (x, y), (val[one], labels[one])) == []
    # nothing that could be learnt: examples by heart
    chance = torch.randint(4, (len(y),), generator=torch.Generator().manual_seed(7))
    wide = Learner(lambda: net(256), lr=0.1)
    assert alarms_of(VALIDATION, wide, (x, chance), (val, labels)) == []


class More(Learner):
    """Validation batches have one tensor more."""

    def validation_step(self, batch, batch_idx):
        x, y, _ = batch
        super().validation_step((x, y), batch_idx)


def test_validation_batches_of_another_form_are_no_matter():
    val, labels = clusters(200)
    loader = DataLoader(TensorDataset(val, 3 - labels, labels), 64)
    assert alarms_of(VALIDATION, More(net, lr=0.05), clusters(), loader) == []


def test_nothing_is_left_behind():
    assert parts_unchanged(VALIDATION, Learner(Words, lr=0.5), texts(), reordered(texts(300)))
