"""The closed form against torch's scheduler, step by step."""

import itertools
import json

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from lightning_tuning.functional.schedules.one_cycle import one_cycle, one_cycle_schedule
from lightning_tuning.plots import plot_schedule


@pytest.fixture(autouse=True)
def _torch_advises():
    import warnings

    with warnings.catch_warnings():
        # a scheduler is stepped here without an optimizer step
        warnings.simplefilter("ignore", UserWarning)
        yield


def reference(total_steps, *, groups=1, adam=False, **settings):
    """Return (LR, momentum) of each group at each step, by torch's own scheduler."""
    params = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)]
    optimizer = torch.optim.AdamW(params) if adam else torch.optim.SGD(params, lr=1, momentum=0.5)
    scheduler = OneCycleLR(optimizer, total_steps=total_steps, **settings)
    values = []
    for step in range(total_steps):
        values.append(
            [(g["lr"], g["betas"][0] if adam else g["momentum"]) for g in optimizer.param_groups]
        )
        if step < total_steps - 1:
            scheduler.step()
    return values


def assert_same(total_steps, *, groups=1, adam=False, **settings):
    expected = reference(total_steps, groups=groups, adam=adam, **settings)
    schedule = one_cycle_schedule(total_steps, **settings)
    for step, values in enumerate(expected):
        for mine, theirs in zip(schedule.at(step), values, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-12, abs=0)


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
def test_equals_torch_at_every_step(anneal_strategy, three_phase):
    for total, pct in itertools.product(
        [1, 2, 3, 7, 10, 33, 100, 257], [0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999, 1.0]
    ):
        if pct * total == 1:
            continue  # torch divides by zero there
        assert_same(
            total,
            max_lr=0.3,
            pct_start=pct,
            anneal_strategy=anneal_strategy,
            three_phase=three_phase,
            div_factor=7.0,
            final_div_factor=90.0,
        )


@pytest.mark.parametrize("adam", [False, True])
def test_equals_torch_for_lists_over_groups(adam):
    assert_same(
        40,
        groups=3,
        adam=adam,
        max_lr=[0.1, 0.02, 3.0],
        base_momentum=[0.8, 0.7, 0.6],
        max_momentum=[0.9, 0.99, 0.95],
    )


def test_known_points():
    settings = {"max_lr": 1.0, "div_factor": 10, "final_div_factor": 100}
    assert one_cycle(0, 101, pct_start=0.5, **settings) == pytest.approx((0.1, 0.95))
    assert one_cycle(49.5, 101, pct_start=0.5, **settings) == pytest.approx((1.0, 0.85))
    # half way up, both shapes are at the middle
    for shape in ("cos", "linear"):
        middle = one_cycle(24.75, 101, pct_start=0.5, anneal_strategy=shape, **settings)
        assert middle == pytest.approx((0.55, 0.9))
    assert one_cycle(100, 101, **settings) == pytest.approx((0.001, 0.95))
    three = one_cycle_schedule(101, max_lr=1.0, pct_start=0.25, div_factor=10, three_phase=True)
    assert three.at(2 * 0.25 * 101 - 2)[0] == pytest.approx((0.1, 0.95))


def test_past_the_end_the_last_value_stays():
    last = one_cycle(99, 100, max_lr=1.0)
    assert one_cycle(100, 100, max_lr=1.0) == last
    assert one_cycle(10**9, 100, max_lr=1.0) == last


@pytest.mark.parametrize("total", [1, 2, 4, 10])
@pytest.mark.parametrize("three_phase", [False, True])
def test_a_warm_up_of_one_step_is_the_peak(total, three_phase):
    # where torch raises ZeroDivisionError
    lr, momentum = one_cycle(0, total, max_lr=0.5, pct_start=1 / total, three_phase=three_phase)
    assert (lr, momentum) == pytest.approx((0.5, 0.85))


def test_scaling_the_peak_scales_the_rate():
    for step in range(50):
        small, momentum = one_cycle(step, 50, max_lr=0.1)
        large, same = one_cycle(step, 50, max_lr=0.8)
        assert (large, same) == pytest.approx((8 * small, momentum), rel=1e-12)


def test_the_rate_rises_then_falls_and_momentum_mirrors_it():
    values = [one_cycle(step, 100, max_lr=1.0) for step in range(100)]
    for (lr, momentum), (next_lr, next_momentum), step in zip(
        values, values[1:], range(100), strict=False
    ):
        assert (next_lr > lr) == (step < 29)
        assert (next_momentum < momentum) == (step < 29)


def test_without_momentum():
    schedule = one_cycle_schedule(10, max_lr=[1.0, 1.0], cycle_momentum=[True, False])
    assert [momentum is None for _, momentum in schedule.at(3)] == [False, True]


def test_json_and_figure():
    schedule = one_cycle_schedule(5000, max_lr=[0.1, 0.2], cycle_momentum=[True, False])
    told = json.loads(schedule.to_json())
    assert told["max_lr"] == [0.1, 0.2]
    assert told["total_steps"] == 5000
    assert len(told["curve"]["step"]) == 1000
    assert (told["curve"]["step"][0], told["curve"]["step"][-1]) == (0, 4999)
    assert told["curve"]["momentum"][1] == []
    lr_axes, momentum_axes = plot_schedule(schedule).axes
    assert len(lr_axes.lines) == 2
    assert len(momentum_axes.lines) == 1
    assert max(lr_axes.lines[1].get_ydata()) == pytest.approx(0.2, rel=1e-3)
    assert len(plot_schedule(one_cycle_schedule(1, max_lr=0.1)).axes) == 2


def test_a_schedule_is_a_value():
    schedule = one_cycle_schedule(10, max_lr=0.1)
    assert schedule == one_cycle_schedule(10, max_lr=[0.1])
    with pytest.raises(AttributeError):
        schedule.total_steps = 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total_steps", 0),
        ("total_steps", 2.5),
        ("max_lr", 0.0),
        ("max_lr", -1.0),
        ("max_lr", float("nan")),
        ("max_lr", float("inf")),
        ("max_lr", []),
        ("pct_start", 1.5),
        ("pct_start", -0.1),
        ("anneal_strategy", "cosine"),
        ("div_factor", 0.0),
        ("final_div_factor", -1.0),
        ("base_momentum", 1.0),
        ("max_momentum", -0.5),
        ("max_momentum", []),
    ],
)
def test_an_argument_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        one_cycle_schedule(**{"total_steps": 10, "max_lr": 0.1, name: value})


def test_lists_of_different_length_are_named():
    with pytest.raises(ValueError, match="max_lr has 2, base_momentum has 3"):
        one_cycle_schedule(10, max_lr=[0.1, 0.2], base_momentum=[0.8] * 3)


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step=-1"):
        one_cycle(-1, 10, max_lr=0.1)
