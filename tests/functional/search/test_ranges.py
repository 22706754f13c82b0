"""Ranges, narrowing and widening, and who wins."""

import math

import numpy as np
import pytest
from scipy import stats

from lightning_tuning.functional.search.finalists import rank
from lightning_tuning.functional.search.narrow import borders, narrowed
from lightning_tuning.functional.search.ranges import (
    Choice,
    FloatRange,
    IntRange,
    as_space,
    from_json,
    to_json,
)


def test_what_a_person_writes():
    space = as_space(
        {
            "lr": (0.01, 0.1),
            "head_weight_decay": (1e-6, 1e-5),
            "width": (16, 1024),
            "depth": (1, 4),
            "dropout": (0.0, 0.5),
            "scale": (0.1, 20.0),
            "act": ["relu", "gelu"],
            "own": FloatRange(1.0, 100.0),
        }
    )
    assert {name: getattr(range_, "log", None) for name, range_ in space.items()} == {
        "lr": True,
        "head_weight_decay": True,
        "width": True,
        "depth": False,
        "dropout": False,
        "scale": True,
        "act": None,
        "own": False,
    }
    assert isinstance(space["depth"], IntRange)
    assert space["act"] == Choice(("relu", "gelu"))
    assert from_json(to_json(space)) == space


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "nothing to search"),
        ({"lr": 0.1}, r"space\['lr'\]=0\.1"),
        ({"lr": (0.1, 0.2, 0.3)}, r"space\['lr'\]"),
        ({"lr": (0.2, 0.1)}, "low must not lie above high"),
        ({"act": []}, "no values"),
    ],
)
def test_what_is_no_space_is_named(space, said):
    with pytest.raises(ValueError, match=said):
        as_space(space)
    with pytest.raises(ValueError, match="positive low"):
        FloatRange(0.0, 1.0, log=True)


@pytest.mark.parametrize("range_", [FloatRange(1e-5, 10.0, log=True), FloatRange(-3.0, 4.0)])
def test_positions_and_values_undo_each_other(range_):
    for place in (-0.5, 0.0, 0.3, 1.0, 1.5):
        assert range_.position(range_.at(place)) == pytest.approx(place)
    assert range_.at(0.0) == pytest.approx(range_.low)
    assert range_.at(1.0) == pytest.approx(range_.high)


SPACE = {
    "lr": FloatRange(1e-5, 1e-1, log=True),
    "dropout": FloatRange(0.0, 1.0),
    "width": IntRange(8, 128, log=True),
    "act": Choice(("relu", "tanh", "gelu")),
}


def trial(lr=1e-3, dropout=0.5, width=32, act="relu"):
    return {"lr": lr, "dropout": dropout, "width": width, "act": act}


def test_the_next_range_is_about_the_best_and_within_the_old_one():
    best = [trial(1e-3), trial(2e-3, 0.4, act="gelu"), trial(1.5e-3, 0.45)]
    found = narrowed(SPACE, [*best, *[trial(1e-5, 0.0, 8, "tanh")] * 8], keep=0.2)
    assert found["lr"].low == pytest.approx(10**-3.4)
    assert found["lr"].high == pytest.approx(2e-3 * 10**0.4)
    assert (found["dropout"].low, found["dropout"].high) == pytest.approx((0.3, 0.6))
    assert 8 <= found["width"].low <= 32 <= found["width"].high <= 128
    assert found["act"] == Choice(("relu", "gelu"))


def test_few_trials_drop_no_choice_and_narrow_to_no_point():
    few = [trial(1e-3), trial(1e-2, act="tanh"), trial(1e-4, act="gelu"), trial(1e-5)]
    found = narrowed(SPACE, few, keep=0.2)
    assert found["act"] == SPACE["act"]
    assert found["lr"].low < 1e-4 < 1e-2 < found["lr"].high


def test_a_rate_needs_a_positive_low():
    with pytest.raises(ValueError, match=r"space\['lr'\]=\(0, 0\.1\)"):
        as_space({"lr": (0, 0.1)})


@pytest.mark.parametrize(("lr", "side"), [(1.1e-5, "low"), (0.09, "high")])
def test_a_best_value_on_the_border_widens_that_side(lr, side):
    [border] = borders(SPACE, trial(lr))
    assert (border.name, border.side) == ("lr", side)
    found = narrowed(SPACE, [trial(lr), trial(1e-3)], keep=0.5)["lr"]
    if side == "low":
        assert found.low == pytest.approx(1e-7)
    else:
        assert found.high == pytest.approx(10.0)
    assert borders({"lr": found}, {"lr": lr}) == ()


def test_natural_borders_are_none():
    assert borders(SPACE, trial(dropout=0.0)) == borders(SPACE, trial(dropout=1.0)) == ()
    # even a side that is widened does not leave what a share can be
    found = narrowed({"d": FloatRange(0.1, 0.9)}, [{"d": 0.9}], keep=1.0)["d"]
    assert found.high == 1.0


def test_an_integer_stays_one_and_positive():
    found = narrowed({"n": IntRange(1, 4)}, [{"n": 4}], keep=1.0)["n"]
    assert isinstance(found, IntRange)
    assert found.high == 6
    assert narrowed({"n": IntRange(2, 9)}, [{"n": 2}], keep=1.0)["n"].low == 1


def test_the_scale_is_all_that_matters():
    """The same search in other units narrows to the same places."""
    ranked = [trial(lr) for lr in (1e-3, 3e-3, 1e-2, 1e-4)]
    found = narrowed(SPACE, ranked, keep=0.5)["lr"]
    scaled = {**SPACE, "lr": FloatRange(1e-2, 1e2, log=True)}
    other = narrowed(scaled, [{**t, "lr": 1000 * t["lr"]} for t in ranked], keep=0.5)["lr"]
    assert (other.low, other.high) == pytest.approx((1000 * found.low, 1000 * found.high))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_mean_wins_in_either_direction(mode):
    values = [[0.3, 0.31], [0.1, 0.11], [0.5, 0.52]]
    order = rank(values, mode).order
    assert order == ((1, 0, 2) if mode == "min" else (2, 0, 1))


def test_ties_are_rarer_than_alarms_of_the_t_test():
    """With no difference, nearly all are tied; with a large one, none is."""
    rng = np.random.default_rng(0)
    same = [rank(rng.normal(size=(2, 3)).tolist(), "min").tied for _ in range(300)]
    assert np.mean([bool(tied) for tied in same]) > 0.95
    apart = [
        rank((rng.normal(size=(2, 3)) + np.array([[0.0], [20.0]])).tolist(), "min").tied
        for _ in range(100)
    ]
    assert not any(apart)


def test_the_points_are_those_of_students_t():
    for seeds in (2, 3, 6):
        point = stats.t.ppf(0.975, seeds - 1)
        one = [math.sqrt(seeds) * (i - (seeds - 1) / 2) for i in range(seeds)]
        error = math.sqrt(2 * np.var(one, ddof=1) / seeds)
        for factor, tied in ((0.99, True), (1.01, False)):
            other = [value + factor * point * error for value in one]
            assert bool(rank([one, other], "min").tied) is tied


def test_one_seed_tells_nothing_of_noise():
    assert rank([[0.1], [0.9]], "min").tied == (1,)
