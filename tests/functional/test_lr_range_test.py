"""Rates of a sweep, divergence, and the result's way to JSON and back."""

import json
import math

import numpy as np
import pytest

from lightning_tuning.findings import Finding
from lightning_tuning.functional.lr_range_test import (
    LRRangeResult,
    LRSweep,
    LRTrial,
    has_diverged,
    sweep_rates,
)


@pytest.mark.parametrize("num_steps", [10, 37, 100])
def test_exponential_rates_are_geometric(num_steps):
    rates = sweep_rates(1e-7, 10.0, num_steps, "exponential")
    np.testing.assert_allclose(rates, np.geomspace(1e-7, 10.0, num_steps), rtol=1e-12)
    ratios = np.array(rates[1:]) / np.array(rates[:-1])
    np.testing.assert_allclose(ratios, ratios[0])
    assert (rates[0], rates[-1]) == (1e-7, 10.0)


def test_linear_rates_are_evenly_spaced():
    np.testing.assert_allclose(sweep_rates(0.1, 1.0, 10, "linear"), np.linspace(0.1, 1.0, 10))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0.0, 1.0, 20, "linear"), "start_lr=0.0"),
        ((1.0, 0.1, 20, "linear"), "end_lr=0.1"),
        ((0.1, math.inf, 20, "linear"), "end_lr=inf"),
        ((0.1, 1.0, 5, "linear"), "num_steps=5"),
        ((0.1, 1.0, 20, "cubic"), "mode='cubic'"),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        sweep_rates(*arguments)


@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_diverged_works_at_any_level(shift):
    calm = [2.3 + shift] * 10 + [1.0 + shift] * 10
    assert not has_diverged(calm, diverge_factor=4)
    assert has_diverged([*calm, *[300.0 + shift] * 3], diverge_factor=4)


def test_one_spike_is_no_divergence_but_nan_is():
    calm = [2.0] * 10
    assert not has_diverged([*calm, 9.0], diverge_factor=4)
    assert has_diverged([*calm, math.nan], diverge_factor=4)
    assert has_diverged([*calm, math.inf], diverge_factor=4)


def test_a_loss_near_zero_may_wobble():
    assert not has_diverged([2.3] * 5 + [1e-4] * 5 + [1e-3] * 5, diverge_factor=4)


def result(**changes):
    sweep = LRSweep(rates=(0.1, 1.0), losses=(1.0, 2.0), momentum=0.9)
    fields = {
        "rates": (0.1, 1.0),
        "losses": (1.0, 2.0),
        "smoothed": (1.0, 2.0),
        "suggestion": 0.1,
        "suggested_by": "valley",
        "suggestions": {"valley": 0.1},
        "uncertainty": {"valley": (0.05, 0.2)},
        "lr_range": (0.05, 0.5),
        "momentum": 0.9,
        "sweeps": (sweep,),
        "trials": (LRTrial(rate=0.1, losses=(1.0,), score=0.5),),
        "num_steps": 3,
        "findings": (Finding(check="a", code="non_finite", verdict="warn", message="m"),),
    }
    return LRRangeResult(**{**fields, **changes})


def test_json_round_trip():
    assert LRRangeResult.from_json(result().to_json()) == result()


def test_json_has_no_nan():
    sweep = LRSweep(rates=(0.1, 1.0), losses=(1.0, math.inf))
    trial = LRTrial(rate=1.0, losses=(math.nan,), score=math.inf)
    text = result(sweeps=(sweep,), trials=(trial,)).to_json()
    data = json.loads(text, parse_constant=pytest.fail)
    assert data["sweeps"][0]["losses"] == [1.0, None]
    again = LRRangeResult.from_json(text)
    assert math.isnan(again.sweeps[0].losses[1])
    assert again.trials[0].score == math.inf


def test_json_round_trip_without_a_suggestion():
    nothing = result(suggestion=None, lr_range=None, suggestions={}, uncertainty={})
    assert LRRangeResult.from_json(nothing.to_json()) == nothing


def test_summary_is_one_line_with_the_numbers():
    line = result().summary()
    assert "\n" not in line
    for part in ("1.00e-01", "valley", "5.0e-02", "2.0e-01", "momentum 0.9", "3 steps"):
        assert part in line


def test_summary_without_a_suggestion_gives_the_reason():
    assert result(suggestion=None, lr_range=None).summary() == "m"
