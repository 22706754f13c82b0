"""Warm-ups and ways down: torch's schedulers, closed forms, and what does not change them."""

import json
import math

import pytest
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    SequentialLR,
)

from lightning_tuning import warmup_decay_schedule
from tests.functional.schedules.torch_schedulers import followed

PEAK = 0.3


def rates(schedule, steps):
    return [schedule.at(step)[0][0] for step in range(steps)]


def assert_same(make, steps=100, **settings):
    schedule = warmup_decay_schedule(steps, max_lr=PEAK, **settings)
    expected = [values[0][0] for values in followed(make, steps, lr=PEAK)]
    # a chain of torch's schedulers rounds at every step
    assert rates(schedule, steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


ALONE = {
    "cosine": (lambda o: CosineAnnealingLR(o, 100), {}),
    "cosine_floor": (lambda o: CosineAnnealingLR(o, 100, eta_min=0.03), {"final_factor": 0.1}),
    "linear": (lambda o: LinearLR(o, 1.0, 0.2, 100), {"decay": "linear", "final_factor": 0.2}),
    "linear_to_zero": (lambda o: PolynomialLR(o, 100, power=1.0), {"decay": "linear"}),
    "polynomial": (lambda o: PolynomialLR(o, 100, 2.5), {"decay": "polynomial", "power": 2.5}),
    "exponential": (
        lambda o: ExponentialLR(o, 0.05 ** (1 / 100)),
        {"decay": "exponential", "final_factor": 0.05},
    ),
    "step": (
        lambda o: MultiStepLR(o, [30, 60, 90], 0.2),
        {"decay": "step", "milestones": [0.9, 0.3, 0.6], "factor": 0.2},
    ),
    "inverse_time": (
        lambda o: LambdaLR(o, lambda step: 1 / (1 + 19 * step / 100)),
        {"decay": "inverse_time", "final_factor": 0.05},
    ),
    "constant": (lambda o: ConstantLR(o, 1.0, 1), {"decay": "constant"}),
    "restarts": (lambda o: CosineAnnealingWarmRestarts(o, 25), {"cycles": 4}),
    "longer_restarts": (
        lambda o: CosineAnnealingWarmRestarts(o, 10, 2, eta_min=0.03),
        {"cycles": 3, "cycle_mult": 2, "final_factor": 0.1, "steps": 70},
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_each_way_down_equals_torch(name):
    make, settings = ALONE[name]
    assert_same(make, **settings)


WARMUPS = {
    "linear": lambda o: LinearLR(o, 0.05, 1.0, 20),
    "constant": lambda o: ConstantLR(o, 0.05, 20),
    "exponential": lambda o: LambdaLR(o, lambda step: 0.05 ** (1 - min(step, 20) / 20)),
}


@pytest.mark.parametrize("warmup", WARMUPS)
def test_each_warmup_before_a_cosine_equals_torch(warmup):
    def make(optimizer):
        parts = [WARMUPS[warmup](optimizer), CosineAnnealingLR(optimizer, 80)]
        return SequentialLR(optimizer, parts, [20])

    assert_same(make, warmup=warmup, warmup_steps=20, warmup_factor=0.05)


@pytest.mark.parametrize("decay", ["linear", "cosine", "sqrt", "polynomial", "exponential"])
def test_a_late_decay_holds_the_peak_and_then_is_the_same_way_down(decay):
    late = warmup_decay_schedule(
        1000, max_lr=1.0, warmup_steps=100, decay=decay, decay_fraction=0.2
    )
    alone = warmup_decay_schedule(200, max_lr=1.0, decay=decay)
    assert {late.at(step)[0][0] for step in range(100, 801)} == {1.0}
    for step in range(0, 200, 7):
        assert late.at(800 + step)[0][0] == pytest.approx(alone.at(step)[0][0], rel=1e-9)


@pytest.mark.parametrize("decay", ["linear", "polynomial", "cosine", "sqrt", "inverse_time"])
def test_every_way_down_ends_at_the_final_factor_and_stays(decay):
    schedule = warmup_decay_schedule(50, max_lr=2.0, decay=decay, final_factor=0.25)
    assert schedule.at(0)[0][0] == pytest.approx(2.0)
    assert [schedule.at(step)[0][0] for step in (50, 51, 10**9)] == pytest.approx([0.5] * 3)
    falling = rates(schedule, 51)
    assert falling == sorted(falling, reverse=True)


def test_sqrt_at_a_quarter_of_the_way_is_half_done():
    schedule = warmup_decay_schedule(100, max_lr=1.0, decay="sqrt", final_factor=0.2)
    assert schedule.at(25)[0][0] == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(0.25)))


def test_the_length_is_a_unit_of_time():
    one, two = (
        warmup_decay_schedule(n, max_lr=0.1, warmup_steps=n // 10, cycles=3, cycle_mult=1.5)
        for n in (200, 1000)
    )
    for step in range(0, 200, 3):
        assert one.at(step)[0][0] == pytest.approx(two.at(5 * step)[0][0], rel=1e-9, abs=1e-12)


def test_reductions_on_a_plateau_multiply_down_to_a_floor():
    schedule = warmup_decay_schedule(
        100, max_lr=1.0, decay="plateau", factor=0.5, final_factor=0.2, warmup_steps=4
    )
    for step in (10, 20, 20, 60):
        schedule = schedule.reduced(step)
    found = [schedule.at(step)[0][0] for step in (0, 9, 10, 19, 20, 59, 60, 10**6)]
    assert found == pytest.approx([0.01, 1.0, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2])


@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, (100,)),
        ({"cycles": 4}, (25, 50, 75, 100)),
        ({"cycles": 3, "cycle_mult": 2, "warmup_steps": 30}, (40, 60, 100)),
        ({"cycles": 2, "decay_fraction": 0.5}, (75, 100)),
    ],
)
def test_the_ends_of_cycles_are_followed_by_the_peak(settings, ends):
    schedule = warmup_decay_schedule(100, max_lr=1.0, **settings)
    assert schedule.cycle_ends == ends
    for end in ends[:-1]:
        assert schedule.at(end - 1)[0][0] < 0.05
        assert schedule.at(end)[0][0] == pytest.approx(1.0)


def test_momentum_goes_linearly_where_asked():
    schedule = warmup_decay_schedule(
        100, max_lr=[1.0, 0.1], start_momentum=0.5, end_momentum=0.99, set_momentum=[True, False]
    )
    assert [schedule.at(s)[0][1] for s in (0, 50, 100, 900)] == pytest.approx(
        [0.5, 0.745, 0.99, 0.99]
    )
    assert schedule.at(50)[1][1] is None
    assert schedule.cycle_momentum == (True, False)
    assert warmup_decay_schedule(10, max_lr=1.0).at(3)[0][1] is None


def test_groups_keep_their_ratio_and_the_curve_is_told():
    schedule = warmup_decay_schedule(11, max_lr=[1.0, 0.5], decay="linear")
    curve = schedule.curve()
    assert curve["lr"][1] == pytest.approx([rate / 2 for rate in curve["lr"][0]])
    assert json.loads(schedule.to_json())["decay"] == "linear"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_lr": 0.0}, "max_lr=0.0"),
        ({"warmup": "slow"}, "warmup='slow'"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"warmup_factor": 2.0}, "warmup_factor=2.0"),
        ({"warmup": "exponential", "warmup_factor": 0.0}, "warmup_factor=0.0 must be above 0"),
        ({"decay": "fast"}, "decay='fast'"),
        ({"decay_fraction": 0.0}, "decay_fraction=0.0"),
        ({"decay": "step", "decay_fraction": 0.5}, "decay='step'"),
        ({"decay": "plateau", "cycles": 2}, "decay='plateau'"),
        ({"decay": "exponential", "final_factor": 0.0}, "final_factor=0.0 must be above 0"),
        ({"power": 0.0}, "power=0.0"),
        ({"factor": 1.5}, "factor=1.5"),
        ({"milestones": 0.5}, "milestones=0.5"),
        ({"milestones": [5]}, r"milestones=\[5\]"),
        ({"cycles": 0}, "cycles=0"),
        ({"cycle_mult": 0}, "cycle_mult=0"),
        ({"start_momentum": 0.5}, "give both or none"),
        ({"start_momentum": 0.5, "end_momentum": 1.0}, "end_momentum=1.0"),
    ],
)
def test_wrong_arguments_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        warmup_decay_schedule(100, **{"max_lr": 0.5, **settings})
