"""Cyclical rates: torch's scheduler, known points, and what does not change them."""

import json

import pytest
from torch.optim.lr_scheduler import CyclicLR

from lightning_tuning import cyclical_lr, cyclical_schedule
from tests.functional.schedules.torch_schedulers import followed


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize(("up", "down"), [(5, 5), (3, 9), (8, 2), (7.5, 7.5), (1, 1)])
def test_equals_torch_at_every_step(mode, up, down):
    def make(optimizer):
        return CyclicLR(
            optimizer, [0.01, 0.002], [0.4, 0.1], up, down, mode=mode, gamma=0.98,
            base_momentum=0.7, max_momentum=0.95,
        )  # fmt: skip

    schedule = cyclical_schedule(
        100, up + down, base_lr=[0.01, 0.002], max_lr=[0.4, 0.1], mode=mode, gamma=0.98,
        pct_start=up / (up + down), base_momentum=0.7, max_momentum=0.95,
    )  # fmt: skip
    for step, values in enumerate(followed(make, 100, groups=2)):
        for mine, theirs in zip(schedule.at(step), values, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("momentum", [True, False])
def test_known_points(momentum):
    schedule = cyclical_schedule(40, 20, base_lr=0.1, max_lr=0.5, cycle_momentum=momentum)
    expected = {0: (0.1, 0.9), 5: (0.3, 0.85), 10: (0.5, 0.8), 15: (0.3, 0.85), 20: (0.1, 0.9)}
    for step, (lr, m) in expected.items():
        [(rate, found)] = schedule.at(step)
        assert rate == pytest.approx(lr)
        assert found == (pytest.approx(m) if momentum else None)


def test_triangular2_halves_the_height_and_exp_range_shrinks_it():
    halved = cyclical_schedule(60, 20, base_lr=0.1, max_lr=0.9, mode="triangular2")
    assert [halved.at(s)[0][0] for s in (10, 30, 50)] == pytest.approx([0.9, 0.5, 0.3])
    shrunk = cyclical_schedule(60, 20, base_lr=0.1, max_lr=0.9, mode="exp_range", gamma=0.9)
    assert shrunk.at(30)[0][0] == pytest.approx(0.1 + 0.8 * 0.9**30)


def test_it_is_periodic_and_no_run_is_too_long_for_it():
    short, long = (cyclical_schedule(n, 12, base_lr=0.1, max_lr=1.0) for n in (24, 10**9))
    for step in range(24):
        assert short.at(step)[0] == pytest.approx(long.at(step + 12 * 10**6)[0])


@pytest.mark.parametrize(
    ("total", "cycle", "ends"),
    [(40, 10, (10, 20, 30, 40)), (39, 10, (10, 20, 30)), (10, 2.5, (3, 5, 8, 10)), (5, 9, ())],
)
def test_the_ends_of_cycles(total, cycle, ends):
    schedule = cyclical_schedule(total, cycle, base_lr=0.1, max_lr=1.0)
    assert schedule.cycle_ends == ends
    for end in ends:
        # the step before the end is low, the steps about the middle of the cycle are higher
        assert schedule.at(end - 1)[0][0] < schedule.at(end - cycle / 2)[0][0]


def test_the_function_is_the_schedule_of_one_group():
    schedule = cyclical_schedule(100, 30, base_lr=0.1, max_lr=1.0, pct_start=0.2)
    for step in (0, 3.5, 29, 77):
        assert cyclical_lr(step, 30, base_lr=0.1, max_lr=1.0, pct_start=0.2) == schedule.at(step)[0]


def test_curve_and_json():
    schedule = cyclical_schedule(101, 50, base_lr=0.1, max_lr=[1.0, 0.5], cycle_momentum=False)
    curve = schedule.curve(max_points=5)
    assert curve["step"] == [0, 25, 50, 75, 100]
    assert curve["lr"] == [[0.1, 1.0, 0.1, 1.0, 0.1], [0.1, 0.5, 0.1, 0.5, 0.1]]
    assert curve["momentum"] == [[], []]
    assert json.loads(schedule.to_json())["cycle_steps"] == 50


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cycle_steps": 0}, "cycle_steps=0"),
        ({"base_lr": 0.9}, "base_lr=0.9 must not lie above max_lr=0.5"),
        ({"base_lr": -0.1}, "base_lr=-0.1"),
        ({"mode": "square"}, "mode='square'"),
        ({"gamma": 1.1}, "gamma=1.1"),
        ({"pct_start": 1}, "pct_start=1"),
        ({"max_momentum": 1.0}, "max_momentum=1.0"),
        ({"base_lr": [0.1, 0.1], "max_lr": [0.5, 0.5, 0.5]}, "base_lr has 2, max_lr has 3"),
    ],
)
def test_wrong_arguments_are_named(settings, said):
    arguments = {"cycle_steps": 10, "base_lr": 0.1, "max_lr": 0.5, **settings}
    with pytest.raises(ValueError, match=said):
        cyclical_schedule(100, **arguments)


def test_no_step_before_the_first():
    with pytest.raises(ValueError, match="step=-1"):
        cyclical_schedule(100, 10, base_lr=0.1, max_lr=0.5).at(-1)
