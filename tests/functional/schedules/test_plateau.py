"""The rule of a plateau against torch's own scheduler, on random metrics."""

import itertools
import math

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_tuning.functional.schedules.plateau import Plateau


@pytest.mark.parametrize(
    ("mode", "patience", "threshold", "cooldown"),
    list(itertools.product(["min", "max"], [0, 1, 3], [0.0, 1e-4, 0.05], [0, 2])),
)
def test_equals_torch_on_random_metrics(mode, patience, threshold, cooldown):
    generator = torch.Generator().manual_seed(5)
    values = (torch.rand(200, generator=generator) + 0.5).cumsum(0) / torch.arange(1, 201)
    values[[17, 40]] = math.nan
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = ReduceLROnPlateau(
        optimizer, mode, 0.999, patience, threshold=threshold, cooldown=cooldown, eps=0.0
    )
    mine = Plateau(mode=mode, patience=patience, threshold=threshold, cooldown=cooldown)
    reductions = 0
    for value in values.tolist():
        theirs.step(value)
        mine, reduced = mine.after(value)
        reductions += reduced
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.999**reductions)
    assert reductions > 2


def test_a_validation_that_does_not_count_may_still_be_the_best():
    plateau = Plateau(mode="min", patience=0, threshold=0.0, cooldown=0)
    plateau, _ = plateau.after(1.0, counts=False)
    plateau, reduced = plateau.after(2.0, counts=False)
    assert (plateau.best, reduced) == (1.0, False)
    assert plateau.after(2.0)[1]


def test_a_value_that_is_no_number_is_no_improvement():
    plateau, reduced = Plateau(mode="max", patience=0, threshold=0.0, cooldown=0).after(math.nan)
    assert reduced
    assert plateau.best is None
    assert plateau.after(0.1)[0].best == 0.1
