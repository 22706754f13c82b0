"""Slopes and levels against closed forms, SciPy, and what does not change them."""

import numpy as np
import pytest
import scipy.stats
import torch

from lightning_tuning.functional.curves.curve_noise import (
    binned,
    mean_interval,
    noise,
    rests,
    slope_interval,
    theil_sen,
    wander,
)


def ar1(n, phi, generator, sd=1.0):
    values = np.zeros(n)
    for i in range(1, n):
        values[i] = phi * values[i - 1] + generator.normal(0, sd * np.sqrt(1 - phi**2))
    return values


def test_theil_sen_is_scipys():
    generator = np.random.default_rng(1)
    x, y = np.sort(generator.normal(size=31)), generator.normal(size=31)
    assert theil_sen(x, y) == pytest.approx(scipy.stats.theilslopes(y, x).slope)


def test_theil_sen_does_not_heed_outliers_and_follows_the_scale():
    x = np.arange(25.0)
    y = 3 - 0.5 * x
    spoilt = y.copy()
    spoilt[[3, 9, 20]] = 1e6
    assert theil_sen(x, spoilt) == pytest.approx(-0.5)
    assert theil_sen(10 * x, 7 * y + 4) == pytest.approx(-0.35)


def test_bins_keep_the_mean():
    values = np.arange(100.0) ** 2
    _, means = binned(values, 20)
    assert len(means) == 20
    assert means.mean() == pytest.approx(values.mean())


def test_noise_is_the_standard_deviation_of_white_noise_on_any_line():
    generator = np.random.default_rng(2)
    white = generator.normal(0, 0.3, 20_000)
    line = np.linspace(5, -5, 20_000)
    assert noise(white) == pytest.approx(0.3, rel=0.05)
    assert noise(white + line) == pytest.approx(noise(white), rel=0.01)
    assert rests(white).std() == pytest.approx(white.std(), rel=0.02)


def test_wander_is_what_numpy_leaves_of_a_line():
    values = np.sin(np.arange(200.0))
    line = np.polyval(np.polyfit(np.arange(200), values, 1), np.arange(200))
    assert wander(values) == pytest.approx((values - line).std(ddof=2), rel=0.02)
    assert wander(values + 3 * np.arange(200)) == pytest.approx(wander(values))


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_a_level_curve_is_seldom_said_to_rise(phi):
    generator = np.random.default_rng(3)
    wrong = 0
    for _ in range(60):
        low, high = slope_interval(ar1(200, phi, generator))
        wrong += low > 0 or high < 0
    assert wrong <= 4  # 1 in 100 is meant; blocks are short


def test_a_rise_beyond_the_noise_is_seen():
    generator = np.random.default_rng(4)
    found = [slope_interval(np.linspace(0, 2, 200) + ar1(200, 0.3, generator)) for _ in range(20)]
    assert sum(low > 0 for low, _ in found) >= 16
    assert np.median([(low + high) / 2 for low, high in found]) == pytest.approx(2, abs=0.2)


def test_a_mean_lies_in_its_interval():
    generator = np.random.default_rng(5)
    outside = 0
    for _ in range(60):
        low, high = mean_interval(ar1(100, 0.3, generator))
        outside += not low <= 0 <= high
    assert outside <= 6


def test_too_few_points_say_nothing():
    assert slope_interval([1.0, 0.5]) == (-np.inf, np.inf)
    assert mean_interval([1.0, 0.5]) == (-np.inf, np.inf)


def test_global_random_numbers_are_left_alone():
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = slope_interval(np.sin(np.arange(50)))
    assert first == slope_interval(np.sin(np.arange(50)))
    assert torch.equal(before, torch.get_rng_state())
    assert (state == np.random.get_state()[1]).all()  # noqa: NPY002
