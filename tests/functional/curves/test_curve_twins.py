"""Broken and healthy twins for the rules about poor fits and about validation."""

import dataclasses

import numpy as np
import pytest

from lightning_tuning.functional.curves.curve_findings import diagnose
from lightning_tuning.functional.curves.loss_curves import Curve, Curves
from tests.functional.curves.curve_models import (
    CHANCE,
    at_ends,
    broken,
    curves,
    exponential,
    with_noise,
)


def loud(made):
    return {f.code for f in diagnose(made) if f.verdict in ("warn", "fail")}


def finding_of(code, made):
    return next(finding for finding in diagnose(made) if finding.code == code)


def test_a_loss_at_rest_alone_is_no_proof_of_lacking_capacity():
    made, _ = broken("rests high", np.random.default_rng(0))
    assert finding_of("underfitting", made).verdict == "warn"
    # the noise of the targets may be as large as that
    unknown = dataclasses.replace(made, metrics=())
    finding = finding_of("underfitting", unknown)
    assert finding.verdict == "pass"
    assert "noisy" in finding.hint


def test_a_continuation_with_a_small_gap_is_no_mismatch():
    generator = np.random.default_rng(3)
    flat = with_noise(np.full(600, 0.01), generator, relative=0.2)
    assert not loud(curves(flat, val=np.full(15, 0.032)))


def test_one_lucky_first_batch_is_no_pretraining():
    generator = np.random.default_rng(4)
    at_chance = with_noise(np.full(600, CHANCE), generator, relative=0.4)
    at_chance[0] = 0.6 * CHANCE
    assert "no_learning" in loud(curves(at_chance, val=np.full(15, CHANCE)))


@pytest.mark.parametrize("steps", [60, 90, 300])
def test_a_fit_that_ends_in_the_middle_of_its_fall_should_go_on(steps):
    generator = np.random.default_rng(5)
    share = np.linspace(0, 1, steps)
    mean = CHANCE * (1 - 0.55 * share**3)
    made = curves(with_noise(mean, generator, relative=0.03), val=at_ends(mean))
    assert "falling fast" in finding_of("underfitting", made).message
    halves = (made.val.values[6], made.val.values[14])
    twice = Curve(name="val_loss", steps=(steps // 2, steps - 1), values=halves)
    assert (
        "falling fast" in finding_of("underfitting", dataclasses.replace(made, val=twice)).message
    )
    rested = CHANCE * (1 - 0.55 * (1 - np.exp(-8 * share)))
    assert not loud(curves(with_noise(rested, generator, relative=0.03), val=at_ends(rested)))


def test_ten_steps_in_ten_epochs_are_few():
    values = tuple(np.linspace(CHANCE, 2.08, 10))
    train = Curve(name="loss", steps=tuple(range(10)), values=values)
    made = Curves(
        train=train,
        rates=(0.001,) * 10,
        highs=values,
        steps=10,
        val=Curve(name="val_loss", steps=train.steps, values=values),
        epoch_ends=train.steps,
        chance=CHANCE,
        chance_high=CHANCE,
        alike=True,
    )
    assert loud(made) == {"underfitting"}
    quick = tuple(np.linspace(CHANCE, 0.5, 10))
    learnt = dataclasses.replace(
        made,
        train=dataclasses.replace(train, values=quick),
        val=dataclasses.replace(made.val, values=quick),
    )
    assert not loud(learnt)


def test_what_validates_at_chance_needs_no_higher_rate():
    """Labels that tell nothing are learnt by heart, slowly; validation comes down to chance."""
    generator = np.random.default_rng(8)
    mean = CHANCE * np.linspace(1.02, 0.975, 1200)
    train = with_noise(mean, generator, relative=0.01)
    slow = curves(train, val=at_ends(mean), metric=np.linspace(0.1, 0.2, 15))
    assert finding_of("lr_too_low", slow).verdict == "warn"
    nothing = curves(train, val=CHANCE * np.linspace(1.03, 1.004, 15), metric=np.full(15, 0.1))
    assert finding_of("lr_too_low", nothing).verdict == "pass"
    # both come down from above chance
    high = CHANCE * np.linspace(1.15, 1.05, 1200)
    both = curves(with_noise(high, generator, relative=0.01), val=at_ends(high))
    assert finding_of("lr_too_low", both).verdict == "warn"


@pytest.mark.parametrize("pace", [0.0, 0.04, 0.15])
def test_most_answers_wrong_where_the_loss_hardly_falls(pace):
    """A third of a fit that brings 0.04 of the loss changes nothing; one that brings more may."""
    generator = np.random.default_rng(7)
    share = np.linspace(0, 1, 1500)
    mean = (
        CHANCE * (0.65 + 0.35 * np.exp(-20 * share)) * (1 - 3 * pace * np.maximum(share - 0.3, 0))
    )
    wrong, right = np.linspace(0.1, 0.32, 15), np.linspace(0.1, 0.7, 15)
    poor = curves(with_noise(mean, generator, relative=0.03), val=at_ends(mean), metric=wrong)
    assert ("most answers" in finding_of("underfitting", poor).message) is (pace < 0.1)
    good = curves(with_noise(mean, generator, relative=0.03), val=at_ends(mean), metric=right)
    assert finding_of("underfitting", good).verdict == "pass"


def test_dropout_that_drowns_all_learning_is_named():
    generator = np.random.default_rng(6)
    mean = CHANCE * (1.05 + 0.3 * np.exp(-np.arange(600) / 100))
    drowned = curves(
        with_noise(mean, generator, relative=0.05),
        val=np.full(15, 0.99 * CHANCE),
        regularized="dropout",
    )
    assert "dropout" in finding_of("underfitting", drowned).hint
    assert (
        finding_of("underfitting", dataclasses.replace(drowned, regularized="")).verdict == "pass"
    )


def test_the_first_validations_may_be_off():
    generator = np.random.default_rng(7)
    made = with_noise(exponential(generator, scale=15), generator)
    val = at_ends(exponential(generator, scale=15)) + 0.05
    unsettled = val + CHANCE * np.array([3, 0.6, 0.4, *[0] * 12])
    assert not loud(curves(made, val=unsettled))


def test_a_mild_rise_or_a_metric_that_gains_is_left_in_peace():
    generator = np.random.default_rng(8)
    train = with_noise(exponential(generator, floor=0.001, scale=30), generator)
    fall = at_ends(exponential(generator, floor=0.35, scale=30))
    rise = np.maximum(np.linspace(0, 1, 15) - 0.3, 0)
    flat = np.full(15, 0.89)
    assert loud(curves(train, val=fall + 0.2 * rise, metric=flat)) == {"overfitting"}
    assert not loud(curves(train, val=fall + 0.04 * rise, metric=flat))
    gains = np.linspace(0.8, 0.93, 15)
    assert not loud(curves(train, val=fall + 0.2 * rise, metric=gains))


@pytest.mark.parametrize(
    ("gamma", "level", "warns"), [(0.8, 0.6, True), (0.99, 0.6, False), (0.8, 0.1, False)]
)
def test_a_rate_that_is_gone_before_all_examples_came_twice(gamma, level, warns):
    generator = np.random.default_rng(9)
    mean = CHANCE * (level + (1 - level) * np.exp(-np.arange(600) / 8))
    rates = 0.01 * gamma ** np.arange(600)
    made = curves(with_noise(mean, generator, relative=0.3), val=at_ends(mean), rates=rates)
    told = finding_of("lr_decayed_too_fast", made).message
    assert ("came twice" in told) == warns


def test_outliers_in_training_are_no_high_rate_where_validation_falls_steadily():
    generator = np.random.default_rng(10)
    train = with_noise(np.full(600, 1.3), generator)
    train[generator.choice(600, 60, replace=False)] = 8.0
    val = np.linspace(0.13, 0.04, 15)
    assert not loud(curves(train, val=val, alike=False))


def test_levels_that_differ_no_more_than_their_batches_do_not_wander():
    generator = np.random.default_rng(11)
    train = with_noise(np.full(350, 0.8 * CHANCE), generator, relative=0.3)
    assert not loud(curves(train, val=np.full(15, 0.8 * CHANCE)))


@pytest.mark.parametrize("share", [0.03, 0.12, 0.16])
def test_spikes_in_many_batches_stand_apart_from_the_rest(share):
    """Targets of a few examples that are missing and read -999, at a chance that counts them."""
    generator = np.random.default_rng(7)
    values = with_noise(np.full(600, 10.0), generator, relative=0.3)
    values[:8] = with_noise(np.full(8, 0.5), generator)
    hit = generator.random(600) < share
    hit[:8] = False
    values[hit] += 31_000.0
    made = curves(values, val=np.linspace(10, 11, 15), chance=31_000 * share)
    assert "loss_spikes" in loud(made)


@pytest.mark.parametrize("share", [0.12, 0.2])
def test_batches_of_a_task_with_a_larger_loss_are_no_spikes(share):
    generator = np.random.default_rng(8)
    falls = exponential(generator, floor=0.1, scale=60) / CHANCE
    values = with_noise(falls, generator, relative=0.1)
    other = generator.random(600) < share
    values[other] *= 300.0
    made = curves(values, val=at_ends(falls), chance=1 + 299 * share)
    assert "loss_spikes" not in loud(made)


def test_a_start_far_above_chance_is_told_from_weights_that_the_first_steps_threw_away():
    generator = np.random.default_rng(9)
    values = with_noise(np.full(840, CHANCE), generator, relative=0.03)
    values[:3] = 4000.0, 10.0, 3.0  # points of two steps each
    far = curves(values, val=np.full(15, CHANCE))
    assert "loss_not_at_chance" in loud(far)
    thrown = dataclasses.replace(far, first=1.1 * CHANCE)
    assert "lr_too_high" in loud(thrown)
    assert "loss_not_at_chance" not in loud(thrown)
    assert "from 2.533 up" in finding_of("lr_too_high", thrown).message


def test_a_jump_that_is_made_good_again_is_no_fault():
    generator = np.random.default_rng(10)
    mean = exponential(generator, floor=0.1, scale=60)
    values = with_noise(mean, generator)
    values[1] = 4000.0
    assert not loud(curves(values, val=at_ends(mean), first=1.1 * CHANCE))
