"""``auto`` on problems whose best rate is known, its budget, and what it does not depend on."""

import math

import numpy as np
import pytest

from lightning_tuning.functional.lr_auto import RUN_STEPS, choose_rate, read_sweep
from lightning_tuning.functional.lr_range_test import sweep_rates

RATES = np.array(sweep_rates(1e-7, 10.0, 60, "exponential"))


class Quadratic:
    """Gradient descent on ``sum(curvature * x**2) / 2``, its losses with noise of the batches.

    With one curvature ``h`` the loss after ``t`` steps at rate ``r`` is ``(1 - r h)**(2 t)`` of the
    first: it falls fastest at ``1 / h`` and diverges above ``2 / h``.
    """

    def __init__(self, *curvatures, noise=0.0, scale=1.0, shift=0.0):
        self.curvatures = np.array(curvatures)
        self.noise, self.scale, self.shift = noise, scale, shift
        self.runs = []

    def losses(self, rates):
        random = np.random.default_rng(1)
        x, values = np.ones_like(self.curvatures), []
        for rate in rates:
            loss = float(np.sum(self.curvatures * x**2) / 2 + self.noise * random.normal())
            values.append(loss * self.scale + self.shift)
            x = x * (1 - rate * self.curvatures)
            if not np.isfinite(x).all() or abs(x).max() > 1e3:
                break
        return np.array(values)

    def run(self, rate, steps, stop):
        values = []
        for value in self.losses([rate] * steps):
            values.append(float(value))
            if stop(values):
                break
        self.runs.append((rate, len(values)))
        return values

    def choose(self, max_steps=240, **settings):
        losses = self.losses(RATES)
        return choose_rate(RATES[: len(losses)], losses, self.run, max_steps=max_steps, **settings)


@pytest.mark.parametrize("curvature", [0.3, 1.0, 30.0, 1e3])
def test_one_curvature(curvature):
    """The best rate is known in closed form; the answer is it, less the back-off of 0.2 decades."""
    choice = Quadratic(curvature, noise=1e-3 * curvature).choose()
    assert choice.learned
    assert 0.2 / curvature < choice.rate < 1.2 / curvature
    assert choice.interval[0] <= choice.rate <= choice.interval[1]


def test_a_wide_spectrum_is_limited_by_its_largest_curvature():
    choice = Quadratic(1.0, 10.0, 100.0, noise=1e-2).choose()
    assert 2e-3 < choice.rate < 2e-2


@pytest.mark.parametrize(("scale", "shift"), [(1e6, 0.0), (1e-6, 0.0), (1.0, -50.0)])
def test_level_and_unit_of_the_loss_do_not_matter(scale, shift):
    plain = Quadratic(3.0, 30.0, noise=0.3).choose()
    other = Quadratic(3.0, 30.0, noise=0.3, scale=scale, shift=shift).choose()
    assert other.rate == pytest.approx(plain.rate)


@pytest.mark.parametrize("max_steps", [0, 20, 40, 100, 240, 500])
def test_it_keeps_to_its_steps(max_steps):
    problem = Quadratic(3.0, 30.0, noise=0.1)
    choice = problem.choose(max_steps=max_steps)
    assert sum(steps for _, steps in problem.runs) <= max_steps
    assert (choice is None) == (max_steps < 0.4 * RUN_STEPS)


def test_losers_are_abandoned():
    problem = Quadratic(3.0, 30.0, noise=0.1)
    problem.choose()
    assert min(steps for _, steps in problem.runs) < RUN_STEPS / 2
    assert max(steps for _, steps in problem.runs) == RUN_STEPS


def test_no_rate_is_tried_twice_nor_outside_the_sweep():
    problem = Quadratic(1e-3, noise=1e-6)
    problem.choose(max_steps=2000, highest=10.0)
    rates = [rate for rate, _ in problem.runs]
    assert len(set(rates)) == len(rates)
    assert max(rates) <= 10.0


def test_more_noise_does_not_lead_far_astray():
    best = Quadratic(3.0, 30.0).choose().rate
    noisy = Quadratic(3.0, 30.0, noise=3.0).choose().rate
    assert abs(math.log10(noisy / best)) < 1.0


class Deaf(Quadratic):
    """A program whose loss does not depend on the rate at all."""

    def losses(self, rates):
        return 2.3 + 0.1 * np.random.default_rng(1).normal(size=len(rates))


def test_where_the_rate_makes_no_difference_there_is_no_answer():
    choice = Deaf(1.0).choose()
    assert choice.rate is None
    assert not choice.learned


class Plateau(Quadratic):
    """Nothing falls in so few steps; above a rate of 0.5 all breaks down."""

    def losses(self, rates):
        random, drift, values = np.random.default_rng(1), 0.0, []
        for rate in rates:
            drift += rate**2 * (40 if rate > 0.5 else 1e-3)
            values.append(2.3 + drift + 0.01 * random.normal())
        return np.array(values)


def test_on_a_plateau_the_answer_is_a_guess_below_the_breakdown():
    choice = Plateau(1.0).choose()
    assert not choice.learned
    assert 0.5 * 10**-1.7 < choice.rate < 0.5


class Explodes(Quadratic):
    """Every run diverges, though the sweep looked well."""

    def run(self, rate, steps, stop):
        self.runs.append((rate, 2))
        return [1.0, math.inf]


def test_where_all_runs_diverge_lower_rates_are_tried_and_none_is_learned():
    problem = Explodes(1.0, noise=0.01)
    choice = problem.choose()
    rates = [rate for rate, _ in problem.runs]
    assert rates == sorted(rates, reverse=True)
    assert not choice.learned


def test_too_short_a_sweep_is_not_read():
    assert read_sweep(RATES[:5], np.ones(5)) is None
    assert choose_rate(RATES[:5], np.ones(5), Quadratic(1.0).run, max_steps=100) is None


def test_the_reading_of_a_sweep():
    losses = Quadratic(1.0, noise=0.01).losses(RATES)
    reading = read_sweep(RATES[: len(losses)], losses)
    assert reading.level == pytest.approx(0.5, abs=0.02)
    assert 0.003 < reading.noise < 0.02
    assert 0.02 < reading.start < 2
