"""From sweeps to suggestions: settings, noise, ranges, and curves that can't be used."""

import math

import numpy as np
import pytest

from lightning_tuning.functional.lr_analysis import analyse, best_setting, mean_curve
from lightning_tuning.functional.lr_auto import AutoChoice
from lightning_tuning.functional.lr_findings import said
from lightning_tuning.functional.lr_range_test import LRSweep, LRTrial, sweep_rates
from lightning_tuning.functional.lr_suggestion import RULES

RATES = sweep_rates(1e-7, 10.0, 100, "exponential")


def sweep(*, fall_at=1e-3, rise_at=0.3, depth=1.5, noise=0.02, seed=0, sign=1.0, **fields):
    log = np.log10(RATES)
    losses = 2.3 - depth / (1 + np.exp(-4 * (log - np.log10(fall_at))))
    losses = losses + 10 * np.maximum(0, log - np.log10(rise_at))
    losses = losses + noise * np.random.default_rng(seed).normal(size=len(RATES))
    return LRSweep(rates=RATES, losses=tuple((sign * losses).tolist()), **fields)


@pytest.mark.parametrize("name", RULES)
def test_each_rule_can_be_the_suggestion(name):
    result = analyse([sweep()], suggestion=name)
    assert result.suggestion == result.suggestions[name]
    assert set(result.suggestions) == set(RULES)
    low, high = result.uncertainty[name]
    assert low <= high
    assert result.findings == ()


def test_the_range_reaches_from_the_fall_to_the_minimum():
    result = analyse([sweep(noise=0.0)], suggestion="minimum")
    low, high = result.lr_range
    # a tenth of a logistic fall of slope 4 a decade is done ln(9)/4 decades before its middle
    assert low == pytest.approx(1e-3 * 10 ** (-math.log(9) / 4), rel=0.3)
    assert 0.03 < high <= 0.3


def test_a_trial_that_diverged_lowers_the_stable_end():
    trials = (
        LRTrial(rate=0.01, losses=(1.0,), score=1.0),
        LRTrial(rate=0.03, losses=(math.nan,), score=math.inf),
    )
    auto = AutoChoice(rate=0.01, interval=(0.005, 0.02), learned=True, trials=trials)
    result = analyse([sweep()], suggestion="auto", auto=auto)
    assert result.lr_range[1] == 0.01
    assert result.uncertainty["auto"] == (0.005, 0.02)


def test_rates_that_short_runs_could_not_tell_apart_are_in_the_range():
    trials = tuple(LRTrial(rate=r, losses=(1.0,), score=1.0) for r in (1e-4, 0.01, 0.5, 3.0))
    auto = AutoChoice(rate=0.1, interval=(1e-4, 0.6), learned=True, trials=trials)
    assert analyse([sweep()], suggestion="auto", auto=auto).lr_range == (1e-4, 0.5)


def test_noise_at_the_beginning_does_not_begin_the_range():
    clean, noisy = (analyse([sweep(noise=n)], suggestion="minimum").lr_range for n in (0.0, 0.2))
    assert noisy[0] == pytest.approx(clean[0], rel=2.5)


def test_more_noise_gives_wider_intervals():
    def width(noise):
        low, high = analyse([sweep(noise=noise)], suggestion="valley").uncertainty["valley"]
        return math.log(high / low)

    assert width(0.2) > width(0.001)


def test_repeats_give_the_spread_between_them():
    repeats = [sweep(fall_at=f, order=i) for i, f in enumerate((1e-4, 1e-3, 1e-2))]
    result = analyse(repeats, suggestion="steepest")
    singles = [analyse([one], suggestion="steepest").suggestion for one in repeats]
    low, high = result.uncertainty["steepest"]
    assert low == pytest.approx(min(singles), rel=0.2)
    assert high == pytest.approx(max(singles), rel=0.2)


def test_mean_curve_ends_where_any_repeat_does():
    cut = LRSweep(rates=RATES[:50], losses=(*[1.0] * 49, math.nan))
    full = LRSweep(rates=RATES, losses=tuple([3.0] * 100))
    rates, losses = mean_curve([cut, full])
    assert len(rates) == 49
    np.testing.assert_array_equal(losses, 2.0)


def test_the_lowest_loss_wins():
    sweeps = [sweep(weight_decay=d, depth=x) for d, x in ((0.0, 1.0), (0.1, 1.6), (1.0, 0.5))]
    assert best_setting(sweeps) == (0.1, None)
    result = analyse(sweeps, suggestion="steepest")
    assert (result.weight_decay, result.momentum) == (0.1, None)


def test_within_noise_the_higher_rate_wins():
    sweeps = [sweep(momentum=m, rise_at=r, noise=0.05) for m, r in ((0.9, 0.05), (0.8, 1.0))]
    assert best_setting(sweeps) == (None, 0.8)


def test_a_metric_to_maximise_gives_the_same_answer():
    down, up = sweep(), sweep(sign=-1.0)
    one = analyse([down], suggestion="valley")
    other = analyse([up], suggestion="valley", metric="val_acc", metric_mode="max")
    assert other.suggestion == one.suggestion
    assert other.losses == tuple(-loss for loss in one.losses)


@pytest.mark.parametrize("seed", range(5))
def test_pure_noise_gives_no_suggestion(seed):
    noise = 2.3 + 0.1 * np.random.default_rng(seed).normal(size=100)
    flat = LRSweep(rates=RATES, losses=tuple(noise.tolist()))
    result = analyse([flat], suggestion="valley")
    assert result.suggestion is None
    assert [f.code for f in result.findings] == ["lr_curve_flat"]
    assert result.lr_range is None


def test_a_constant_loss_gives_no_suggestion():
    flat = LRSweep(rates=RATES, losses=(2.3,) * 100)
    assert analyse([flat]).findings[0].code == "lr_curve_flat"


def test_non_finite_at_once_fails():
    result = analyse([LRSweep(rates=RATES[:1], losses=(math.nan,))])
    assert result.suggestion is None
    assert [(f.code, f.verdict) for f in result.findings] == [("non_finite", "fail")]


def test_too_few_points_are_not_read():
    result = analyse([LRSweep(rates=RATES[:5], losses=(1.0, 1.0, 2.0, 9.0, math.inf))])
    assert result.suggestion is None
    assert result.findings[0].code == "lr_curve_too_short"


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"rise_at": 1e9, "fall_at": 9.0}, "end_lr"),
        ({"fall_at": 2e-7, "rise_at": 1e-4}, "start_lr"),
    ],
)
def test_a_suggestion_at_the_border_is_told(fields, hint):
    result = analyse([sweep(**fields, noise=0.001)], suggestion="steepest", ends=(1e-7, 10.0))
    assert [f.code for f in result.findings] == ["lr_at_sweep_border"]
    assert hint in result.findings[0].hint


@pytest.mark.parametrize(
    ("own", "said_of_it"),
    [(1e-6, "times lower: try"), (10.0, "times higher: try"), (None, "")],
)
def test_a_rate_far_from_the_suggestion_is_told_beside_it(own, said_of_it):
    result = analyse([sweep()])
    assert result.suggestion is not None
    [finding] = [f for f in said(result, own=own) if f.code == "lr_suggested"]
    assert said_of_it in finding.hint
    assert (finding.hint == "") == (own is None)
    near = said(result, own=result.suggestion * 2)
    assert not next(f for f in near if f.code == "lr_suggested").hint
