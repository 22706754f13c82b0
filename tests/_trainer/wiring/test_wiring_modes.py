"""Layers in the wrong mode: what is found, and what stays silent."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring.wiring_modes import TRAINING, VALIDATION
from tests._trainer.probing import assert_same
from tests._trainer.programs import PROGRAMS
from tests._trainer.small_programs import Base, Judges, found

pytestmark = pytest.mark.filterwarnings("ignore")


def training(make):
    return found(TRAINING, make)["eval_mode_in_training"]


def validation(make):
    return found(VALIDATION, make)["train_mode_in_validation"]


class Net(Base):
    """Dropout or BatchNorm in the middle."""

    def __init__(self, middle=None):
        middle = middle or nn.Dropout(0.3)
        super().__init__(nn.Linear(10, 32), middle, nn.ReLU(), nn.Linear(32, 4))


class PutToEval(Net):
    def __init__(self, middle=None):
        super().__init__(middle)
        self.net.eval()


class WholeInEval(Net):
    def on_train_batch_start(self, batch, batch_idx):
        self.eval()


class StaysInEval(Net):
    def on_validation_model_train(self):
        pass


class Recurrent(Base):
    def __init__(self):
        super().__init__(nn.Linear(16, 4))
        self.rnn = nn.GRU(2, 16, num_layers=2, dropout=0.4, batch_first=True).eval()

    def forward(self, x):
        return self.net(self.rnn(x.view(-1, 5, 2))[0][:, -1])


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (PutToEval, "net.1"),
        (lambda: PutToEval(nn.BatchNorm1d(32)), "net.1"),
        (lambda: WholeInEval(nn.BatchNorm1d(32)), "net.1"),
        (WholeInEval, "net.1"),
        (StaysInEval, "net.1"),
        (Recurrent, "rnn"),
    ],
)
def test_layers_in_evaluation_mode_are_found(make, where):
    finding = training(make)
    assert (finding.verdict, finding.where) == ("fail", where)


class LooksAtItself(Net):
    def loss(self, batch):
        self.eval()
        with torch.no_grad():
            guess = self(batch[0]).argmax(1)
        self.train()
        return F.cross_entropy(self(batch[0]), torch.where(guess >= 0, batch[1], guess))


class LoadedStatistics(Net):
    def __init__(self):
        super().__init__(nn.Sequential(nn.BatchNorm1d(32), nn.Dropout(0.2)))
        with torch.no_grad():
            self.net[1][0].running_mean.add_(0.1)
        self.net.eval()


class FrozenPart(Net):
    def __init__(self):
        super().__init__(nn.BatchNorm1d(32))
        self.net[:3].requires_grad_(False)
        self.net[:3].eval()
        self.net[3] = nn.Linear(32, 4)


class Teacher(Net):
    def __init__(self):
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()

    def loss(self, batch):
        with torch.no_grad():
            soft = self.teacher(batch[0]).softmax(1)
        return super().loss(batch) + 0.1 * F.cross_entropy(self(batch[0]), soft)


@pytest.mark.parametrize("make", [Net, LooksAtItself, LoadedStatistics, FrozenPart, Teacher])
def test_evaluation_mode_on_purpose_is_silent(make):
    assert training(make).verdict == "pass"


class TrainsInValidation(Net):
    def validation_step(self, batch, batch_idx):
        self.train()
        super().validation_step(batch, batch_idx)


class AlwaysOn(Base):
    def forward(self, x):
        return self.net[2](F.dropout(self.net[1](self.net[0](x)), 0.3))


class Attends(Base):
    def __init__(self):
        super().__init__(nn.Linear(2, 48))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        q, k, v = self.net(x.view(-1, 5, 2)).chunk(3, dim=-1)
        return self.head(F.scaled_dot_product_attention(q, k, v, dropout_p=0.3).mean(1))


@pytest.mark.parametrize(
    "make",
    [TrainsInValidation, lambda: TrainsInValidation(nn.BatchNorm1d(32)), AlwaysOn, Attends],
)
def test_training_mode_in_validation_is_found(make):
    assert validation(make).verdict == "fail"


def test_the_difference_is_told():
    finding = validation(AlwaysOn)
    assert finding.evidence["changed"] > 0
    assert "val_loss" in finding.message


class ManyMasks(Net):
    def validation_step(self, batch, batch_idx):
        self.net.train()
        mean = torch.stack([self(batch[0]).softmax(1) for _ in range(5)]).mean(0)
        self.log("val_loss", F.nll_loss(mean.log(), batch[1]))


class ManyMasksAtOnce(ManyMasks):
    def validation_step(self, batch, batch_idx):
        self.net.train()
        mean = self(batch[0].repeat(5, 1)).softmax(1).view(5, -1, 4).mean(0)
        self.log("val_loss", F.nll_loss(mean.log(), batch[1]))


class Noise(Base):
    def forward(self, x):
        return self.net(x + 0.1 * torch.randn_like(x))


class Corrupts(Base):
    def loss(self, batch):
        return F.mse_loss(self(F.dropout(batch[0], 0.3)), batch[0][:, :4])


@pytest.mark.parametrize(
    "make",
    [
        *(Net, ManyMasks, ManyMasksAtOnce, Noise, Corrupts),
        lambda: Net(nn.BatchNorm1d(32, track_running_stats=False)),
    ],
)
def test_randomness_on_purpose_is_silent(make):
    assert validation(make).verdict == "pass"


@pytest.mark.parametrize("name", ["val_check_interval", "changes_validation_batches"])
def test_it_leaves_no_trace(name, tmp_path):
    assert_same(PROGRAMS[name], tmp_path, Judges((TRAINING, VALIDATION), ends=False))
