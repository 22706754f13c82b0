"""What is said of curves of known truth: alarms on healthy ones, faults named on others.

``python -m tests.functional.test_curve_findings`` prints the table with more repeats.
"""

import dataclasses
import json

import numpy as np
import pytest

from lightning_tuning.functional.curves.curve_findings import diagnose, went_bad
from lightning_tuning.functional.curves.curve_record import CurveRecord
from lightning_tuning.functional.curves.loss_curves import Curve, Curves, LossCurveResult
from tests.functional.curves.curve_models import (
    BROKEN,
    CHANCE,
    HEALTHY,
    at_ends,
    broken,
    curves,
    exponential,
    healthy,
    rates_of,
    with_noise,
)


def loud(made):
    return {f.code for f in diagnose(made) if f.verdict in ("warn", "fail")}


def verdicts(made):
    return {f.code: f.verdict for f in diagnose(made)}


def named(drawn):
    made, codes = drawn
    return bool(loud(made) & codes)


@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_curves_are_left_in_peace(kind):
    shares = rates_of([kind], healthy, lambda made: bool(loud(made)), 12)
    assert shares[kind] <= 1 / 12


# 70 % of 20 draws: a fall of 6 to 13 % is no line to be seen under noise of 10 %, and the others
# are called underfitting
BARS = dict.fromkeys(BROKEN, 0.8) | {"creeps": 0.6}


@pytest.mark.parametrize("kind", BROKEN)
def test_faults_are_named(kind):
    assert rates_of([kind], broken, named, 5)[kind] >= BARS[kind]


@pytest.mark.parametrize("kind", ["stays high", "diverges"])
def test_an_unusual_momentum_is_named_beside_steps_that_are_too_long(kind):
    made, codes = broken(kind, np.random.default_rng(0))
    assert loud(made) & codes
    for momentum in (0.0, 0.9, 0.95):
        assert "momentum_too_high" not in loud(dataclasses.replace(made, momentum=momentum))
    for momentum in (0.98, 0.9999):
        assert loud(dataclasses.replace(made, momentum=momentum)) == {
            *loud(made),
            "momentum_too_high",
        }


@pytest.mark.parametrize("kind", HEALTHY)
def test_an_unusual_momentum_alone_is_no_fault(kind):
    made = dataclasses.replace(healthy(kind, np.random.default_rng(3)), momentum=0.999)
    assert "momentum_too_high" not in loud(made)


@pytest.mark.parametrize(("level", "verdict"), [(1.0, "warn"), (0.99, "warn"), (0.95, "pass")])
def test_labels_that_are_mostly_noise_are_learnt_too(level, verdict):
    generator = np.random.default_rng(1)
    losses = CHANCE * (level + (1 - level) * 0.97 ** np.arange(400))
    made = curves(with_noise(losses, generator, relative=0.01))
    assert verdicts(made)["no_learning"] == verdict


def test_each_code_is_answered_once():
    generator = np.random.default_rng(0)
    for made in (healthy("exponential", generator), Curves(train=Curve(name="loss"))):
        codes = [finding.code for finding in diagnose(made)]
        assert len(codes) == len(set(codes)) == 15


@pytest.mark.parametrize("kind", ["creeps", "overfits", "diverges", "stays high"])
def test_the_unit_of_the_loss_does_not_matter(kind):
    made, _ = broken(kind, np.random.default_rng(1))

    def scaled(curve):
        return dataclasses.replace(curve, values=tuple(1000 * v for v in curve.values))

    larger = dataclasses.replace(
        made,
        train=scaled(made.train),
        val=scaled(made.val),
        highs=tuple(1000 * v for v in made.highs),
        chance=1000 * made.chance,
        chance_high=1000 * made.chance,
    )
    assert verdicts(larger) == verdicts(made)


def test_a_loss_that_is_no_number_fails_with_the_step():
    made = curves(np.full(50, 2.0), non_finite=10, first_non_finite=50)
    [finding] = [f for f in diagnose(made) if f.code == "non_finite"]
    assert (finding.verdict, finding.step) == ("fail", 50)


def test_a_loss_that_is_seldom_no_number_passes():
    assert verdicts(curves(np.full(600, 2.0), non_finite=3))["non_finite"] == "pass"
    assert verdicts(curves(np.full(600, 2.0), non_finite=60))["non_finite"] == "warn"


def test_it_is_said_at_once_after_three_in_a_row():
    record = CurveRecord()
    record.extend(range(5), [1.0] * 5, [0.1] * 5)
    record.extend([5, 6], [float("nan")] * 2, [0.1] * 2)
    assert went_bad(record) is None
    record.extend([7], [float("inf")], [0.1])
    finding = went_bad(record)
    assert (finding.code, finding.verdict, finding.step) == ("non_finite", "fail", 5)


def test_several_optimizers_are_not_judged():
    made = curves(np.linspace(1, 5, 300), optimizers=2)
    assert set(verdicts(made).values()) <= {"skip", "pass"}
    assert verdicts(made)["loss_diverging"] == "skip"


def test_a_loss_that_may_be_negative_is_judged_by_few_rules():
    generator = np.random.default_rng(3)
    made = curves(np.linspace(1, -2, 400) + generator.normal(0, 0.2, 400), chance=None)
    found = verdicts(made)
    assert found["lr_too_low"] == found["underfitting"] == found["no_learning"] == "skip"
    assert not loud(made)


def test_a_policy_gradient_s_loss_says_nothing():
    generator = np.random.default_rng(4)
    assert not loud(curves(generator.normal(0, 1, 800), chance=None))


def test_a_fit_that_was_trained_before_and_rests_is_in_peace():
    generator = np.random.default_rng(5)
    flat = with_noise(np.full(400, 0.2), generator)
    assert not loud(curves(flat, val=np.full(15, 0.25)))
    assert not loud(curves(flat, val=np.full(15, 0.25), chance=None))


def test_the_weight_of_a_term_may_grow():
    generator = np.random.default_rng(6)
    share = np.linspace(0, 1, 600)
    mean = 150 + 400 * np.exp(-np.arange(600) / 40) + 25 * share
    assert not loud(curves(with_noise(mean, generator), chance=None))


@pytest.mark.parametrize("n", [30, 45])
def test_a_short_fit_that_still_improves_is_in_peace(n):
    generator = np.random.default_rng(7)
    mean = np.linspace(CHANCE, 1.2, n)
    assert not loud(curves(with_noise(mean, generator), val=np.linspace(2, 1.2, 15)))


def test_a_good_metric_speaks_for_the_fit():
    generator = np.random.default_rng(8)
    mean = exponential(generator, floor=0.01, scale=60)
    fall = at_ends(exponential(generator, floor=0.9, scale=50)) + np.linspace(0, 1, 15)
    val = np.maximum(fall, 0.2)
    made = curves(with_noise(mean, generator), val=val)
    assert "overfitting" in loud(made)
    accurate = curves(with_noise(mean, generator), val=val, metric=np.linspace(0.5, 0.95, 15))
    assert not loud(accurate)


def test_metric_and_loss_apart_is_advice():
    made = curves(
        with_noise(exponential(None), np.random.default_rng(9)),
        val=[1.0, 0.5, 0.4, 0.41, 0.42, 0.43, 0.43, 0.44, 0.44, 0.45, 0.45, 0.46, 0.46, 0.47, 0.47],
        metric=np.linspace(0.6, 0.9, 15) ** 0.5,
    )
    [finding] = [f for f in diagnose(made) if f.code == "metric_apart_from_loss"]
    assert finding.verdict == "pass"
    assert "val_acc" in finding.hint
    assert finding.evidence["loss_step"] == 119
    assert finding.evidence["metric_step"] == 599


def test_validation_better_than_training_is_explained_by_what_is_on():
    mean = exponential(None, floor=0.5)
    made = curves(
        with_noise(mean, np.random.default_rng(1)), val=0.6 * at_ends(mean), regularized="dropout"
    )
    [finding] = [f for f in diagnose(made) if f.code == "train_val_mismatch"]
    assert finding.verdict == "pass"
    assert "dropout" in finding.hint


def test_a_warm_up_longer_than_the_fit_is_a_low_rate():
    mean = CHANCE * (1 - 0.1 * np.linspace(0, 1, 600) ** 2)
    generator = np.random.default_rng(2)
    rates = np.linspace(0, 1e-4, 600)
    made = curves(with_noise(mean, generator), val=at_ends(mean), rates=rates)
    [finding] = [f for f in diagnose(made) if f.code == "lr_too_low"]
    assert finding.verdict == "warn"
    assert "warm-up" in finding.hint


def test_curves_come_back_from_json():
    made, _ = broken("overfits", np.random.default_rng(0))
    assert Curves.from_json(made.to_json()) == made
    result = LossCurveResult(curves=made, findings=diagnose(made))
    assert len(json.loads(result.to_json())["findings"]) == 15


def test_the_figure_shows_curves_and_findings():
    made, _ = broken("overfits", np.random.default_rng(0))
    figure = LossCurveResult(curves=made, findings=diagnose(made)).plot()
    linear, log = figure.axes[:2]
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    assert any("overfitting" in text.get_text() for text in linear.texts)
    assert "overfitting" in figure.get_suptitle()
    figure.savefig("curves.png")


def test_a_figure_can_be_drawn_of_nothing():
    assert len(LossCurveResult(curves=Curves(train=Curve(name="loss"))).plot().axes) == 4


if __name__ == "__main__":
    for kinds, draw, judge in (
        (HEALTHY, healthy, lambda made: bool(loud(made))),
        (BROKEN, broken, named),
    ):
        for name, share in rates_of(kinds, draw, judge, 60, seed=1).items():
            print(f"{name:20} {share:.0%}")
