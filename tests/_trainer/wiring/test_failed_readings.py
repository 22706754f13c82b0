"""Readings that failed and left a number behind, and programs that deal with them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lightning_tuning._trainer.wiring import wiring_signal
from tests._trainer.wiring_programs import Learner, alarms_of, judged, parts_unchanged

SIGNAL = [wiring_signal.TOPIC]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net():
    return nn.Sequential(
        nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1)
    )


def sensors(value, share=0.002):
    x = normal(1200, 12)
    y = torch.sin(x[:, :1] + x[:, 1:2]) + 0.5 * x[:, 2:3] * x[:, 3:4]
    failed = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < share
    return x.masked_fill(failed, value), y


class Adam(Learner):
    def __init__(self, make=net):
        super().__init__(make, lr=2e-3, loss=F.mse_loss)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Masking(Adam):
    """Knows what the number means."""

    def prepare(self, x):
        return torch.where(x == -200, 0.0, x)


class Normed(Adam):
    """Is not troubled by it."""

    def prepare(self, x):
        return x.clamp(-4, 4)


def test_a_number_that_stands_for_failed_readings():
    [finding] = [
        found
        for found in judged(SIGNAL, Adam(), sensors(-200.0), batch_size=32).findings
        if found.verdict == "warn"
    ]
    assert (finding.code, finding.where) == ("unnormalized_input", "batch[0]")
    assert finding.evidence["value"] == -200.0
    assert alarms_of(SIGNAL, Adam(), sensors(0.0), batch_size=32) == []


@pytest.mark.parametrize("program", [Masking, Normed])
def test_programs_that_deal_with_it_stay_silent(program):
    assert alarms_of(SIGNAL, program(), sensors(-200.0), batch_size=32) == []


def test_the_number_is_found_in_batches_of_any_structure():
    x, y = sensors(-200.0)
    rows = [{"sensors": a, "target": b} for a, b in zip(x, y, strict=True)]

    class Rows(Adam):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch["sensors"], batch["target"]), batch_idx)

    found = judged(SIGNAL, Rows(), DataLoader(rows, 32, shuffle=True)).findings
    assert [f.where for f in found if f.verdict == "warn"] == ["batch['sensors']"]


def with_targets(value):
    x, y = sensors(0.0)
    y = y.clone()
    y[::50] = value
    return x, y


def test_nines_among_the_targets_stand_for_what_is_missing():
    found = judged(SIGNAL, Adam(), with_targets(-999.0), batch_size=32).findings
    assert [(f.code, f.where) for f in found if f.verdict == "warn"] == [
        ("unnormalized_input", "batch[1]")
    ]


def test_another_number_among_the_targets_may_be_a_rare_event():
    assert alarms_of(SIGNAL, Adam(), with_targets(-200.0), batch_size=32) == []


@pytest.mark.parametrize("value", [-200.0, -999.0])
def test_a_program_that_leaves_them_out_of_the_loss_stays_silent(value):
    x, y = with_targets(value)

    def masked(output, target):
        return F.mse_loss(output[target != value], target[target != value])

    program = Adam()
    program.loss = masked
    assert alarms_of(SIGNAL, program, (x, y), batch_size=32) == []


def test_nothing_is_left_behind():
    assert parts_unchanged(SIGNAL, Adam(), sensors(-200.0), batch_size=32)
