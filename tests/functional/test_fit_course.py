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
