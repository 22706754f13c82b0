"""The rules: closed forms, an outside reference, invariances."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from lightning_tuning.functional.lr_suggestion import (
    RULES,
    minimum,
    slide,
    smooth,
    steepest,
    valley,
)

RATES = np.logspace(-7, 1, 100)


def curve(fall_at=1.1e-3, rise_at=0.3, depth=2.0, level=2.3):
    """A loss that falls around one rate (a logistic in log rate) and explodes past another."""
    log = np.log10(RATES)
    fall = depth / (1 + np.exp(-4 * (log - np.log10(fall_at))))
    return level - fall + np.maximum(0, log - np.log10(rise_at)) ** 2 * 20


def test_smooth_agrees_with_scipy_away_from_the_ends():
    values = np.random.default_rng(0).normal(size=200)
    expected = gaussian_filter1d(values, 5.0, truncate=4.0)
    np.testing.assert_allclose(smooth(values)[20:-20], expected[20:-20], atol=1e-12)


def test_smooth_keeps_constants_and_in_the_middle_straight_lines():
    np.testing.assert_allclose(smooth(np.full(50, 3.5)), 3.5)
    line = np.linspace(0.0, 1.0, 100)
    np.testing.assert_allclose(smooth(line)[12:-12], line[12:-12])


def test_smooth_does_not_shift():
    step = np.where(np.arange(101) < 50, 1.0, 0.0)
    step[50] = 0.5
    smoothed = smooth(step)
    np.testing.assert_allclose(smoothed[:50], 1 - smoothed[:50:-1], atol=1e-12)


def test_smooth_of_no_width_is_the_values():
    np.testing.assert_array_equal(smooth([1.0, 5.0], width=0.0), [1.0, 5.0])


def test_steepest_is_the_inflexion_of_a_logistic_fall():
    assert steepest(RATES, curve(fall_at=1e-3)) == pytest.approx(1e-3, rel=0.25)


def test_steepest_over_the_linear_rate_would_be_useless():
    losses = curve(fall_at=1e-3)
    linear = RATES[int(np.argmin(np.gradient(losses, RATES)))]
    assert steepest(RATES, losses) / linear > 2


def test_minimum_is_a_tenth_of_the_lowest():
    losses = curve(rise_at=0.3)
    assert minimum(RATES, losses) == RATES[np.argmin(losses)] / 10


def longest_fall(losses):
    """All members of the longest decreasing subsequence's length, by the O(n^2) recursion."""
    lengths = [1] * len(losses)
    for i in range(len(losses)):
        for j in range(i):
            if losses[j] > losses[i]:
                lengths[i] = max(lengths[i], lengths[j] + 1)
    return lengths


@pytest.mark.parametrize("seed", range(20))
def test_valley_agrees_with_the_plain_recursion(seed):
    losses = np.random.default_rng(seed).integers(0, 500, size=60).astype(float)
    losses = np.append(np.round(losses / np.ptp(losses), 3), -0.001)
    lengths = longest_fall(losses)
    end = int(np.argmax(lengths))
    assert valley(RATES[:61], losses) == RATES[(2 * end - lengths[end] + 1) // 2]


def test_valley_lies_within_the_fall():
    assert 1e-4 < valley(RATES, curve(fall_at=1e-3, rise_at=0.1)) < 0.1


def test_slide_stands_left_of_the_rise():
    assert 1e-4 < slide(RATES, curve(fall_at=1e-3, rise_at=0.3)) < 0.3


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, -100.0), (1e6, 0.0), (1e-6, 0.0)])
def test_rules_ignore_level_and_unit_of_the_loss(rule, scale, shift):
    losses = curve()
    assert rule(RATES, losses * scale + shift) == rule(RATES, losses)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_follow_the_rates(rule):
    losses = curve()
    assert rule(RATES * 8, losses) == pytest.approx(rule(RATES, losses) * 8)
