import math

import numpy as np
import pytest

from lightning_tuning.functional.fit_course import fit_course


def test_progress_is_the_share_of_the_loss_that_is_gone():
    losses = [2.0] * 50 + [0.5] * 50
    assert fit_course(losses).progress == pytest.approx(0.75)
    # the unit of the loss does not matter
    assert fit_course([1e6 * x for x in losses]).progress == pytest.approx(0.75)
    assert not fit_course(losses).trains_badly


def test_noise_around_one_value_is_no_progress():
    noisy = np.exp(0.3 * np.random.default_rng(0).normal(size=400))
    assert abs(fit_course(noisy).progress) < 0.25
    assert fit_course([2.3] * 20).trains_badly


def test_what_falls_in_the_first_steps_counts():
    assert fit_course([100.0, 3.0] + [1.0] * 40).progress == pytest.approx(0.99)


def test_an_explosion_in_the_first_steps_does_not():
    course = fit_course([2.0, 1e5, 1e6, 1e4, 1e3] + [2.1] * 40)
    assert course.start == 2.0
    assert course.trains_badly
    assert course.peak == 1e5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_at_the_end(bad):
    course = fit_course([2.0] * 20 + [bad] * 20)
    assert course.progress == -math.inf
    assert course.trains_badly
    # a few among many are passed over
    assert fit_course([2.0] * 20 + [1.0] * 18 + [bad] * 2).progress == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("losses", "settings", "why"),
    [
        ([1.0] * 9, {}, "only 9 optimizer steps"),
        ([1.0, -0.5] * 20, {}, "negative at times"),
        ([0.0] * 20, {}, "zero or not finite"),
        ([math.nan] * 20, {}, "zero or not finite"),
        ([1.0] * 50, {"reason": "two aims"}, "two aims"),
    ],
)
def test_what_can_not_be_told(losses, settings, why):
    course = fit_course(losses, **settings)
    assert why in course.reason
    assert math.isnan(course.progress)
    assert not course.trains_badly


@pytest.mark.parametrize(
    ("losses", "badly", "flat"),
    [
        ([2.3] * 100, True, True),
        ([2.3 * 0.95**k for k in range(100)], False, False),
        ([9.0] * 5 + [2.3] * 95, False, True),
        ([2.3 + 0.3 * (k % 2) for k in range(100)], True, True),
        ([2.3] * 50 + [math.nan] * 50, True, True),
    ],
)
def test_what_is_learnt_after_the_first_tenth(losses, badly, flat):
    for scale in (1.0, 1e3):
        course = fit_course([scale * loss for loss in losses])
        assert (course.trains_badly, course.is_flat) == (badly, flat)
        assert course.diverged == (not math.isfinite(losses[-1]))


def test_the_first_drop_is_the_opening_over_what_follows_the_first_tenth():
    # one batch that is none of the others' kind is no opening
    assert fit_course([40.0] + [2.0] * 99).first_drop == pytest.approx(1.0)
    assert fit_course([40.0] * 3 + [2.0] * 97).first_drop == pytest.approx(20.0)
    assert math.isnan(fit_course([1.0, -1.0] * 50).first_drop)
    assert not fit_course([1.0, -1.0] * 50).is_flat


def test_the_peak_is_of_three_losses_in_a_row():
    losses = np.random.default_rng(0).random(200)
    medians = [np.median(losses[i : i + 3]) for i in range(198)]
    assert fit_course(list(losses)).peak == pytest.approx(max(medians))
    assert fit_course([1.0, 9.0, *[1.0] * 20]).peak == 1.0
