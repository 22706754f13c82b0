"""Noise of a curve against its known value, and the significance of falls."""

import math

import numpy as np
import pytest

from lightning_tuning.functional.lr_findings import SIGNIFICANT
from lightning_tuning.functional.lr_noise import _noise, capped, deepest_fall, standard_error
from lightning_tuning.functional.lr_suggestion import smooth


@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("sigma", [0.01, 3.0])
def test_noise_is_found_on_any_straight_line(slope, sigma):
    noise = np.random.default_rng(0).normal(size=4000) * sigma
    assert _noise(noise + slope * np.arange(4000)) == pytest.approx(sigma, rel=0.06)


def test_a_smooth_curve_has_none():
    assert _noise(np.linspace(3.0, 1.0, 50)) == pytest.approx(0.0, abs=1e-12)


def test_standard_error_is_the_spread_of_smoothed_noise():
    random = np.random.default_rng(0)
    middles = [smooth(random.normal(size=100))[50] for _ in range(800)]
    expected = np.std(middles)
    found = [standard_error(random.normal(size=100)) for _ in range(50)]
    assert np.median(found) == pytest.approx(expected, rel=0.15)


def test_a_fall_counts_in_its_standard_errors():
    random = np.random.default_rng(1)
    step = np.where(np.arange(60) < 40, 2.0, 1.0)
    fall, deviations = deepest_fall(step + 0.1 * random.normal(size=60))
    assert fall == pytest.approx(1.0, abs=0.15)
    # windows of 12 against a head of 10: 1 / (0.1 * sqrt(1/10 + 1/12)) is 23
    assert 12 < deviations < 40
    scaled = deepest_fall(1e6 * (step + 0.1 * np.random.default_rng(1).normal(size=60)))
    assert scaled[1] == pytest.approx(deviations)


def test_pure_noise_seldom_counts():
    random = np.random.default_rng(2)
    reached = [deepest_fall(random.normal(size=60))[1] > SIGNIFICANT for _ in range(1000)]
    assert np.mean(reached) < 0.02


def test_constant_and_noise_free_curves():
    assert deepest_fall(np.full(60, 2.0)) == (0.0, 0.0)
    one_lower = np.r_[np.full(59, 2.0), 1.9]
    assert deepest_fall(one_lower)[1] == math.inf


def test_capped_keeps_all_but_what_diverges():
    losses = np.array([2.0, 2.0, 1.0, 2.5, 900.0])
    np.testing.assert_array_equal(capped(losses), [2.0, 2.0, 1.0, 2.5, 3.0])
