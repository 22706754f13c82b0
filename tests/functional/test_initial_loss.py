import math

import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn import functional

from lightning_tuning.functional.initial_loss import (
    InitialLossResult,
    LossTerm,
    loss_terms,
    mean_and_error,
    total_term,
)
from lightning_tuning.functional.initial_loss_findings import said, unknown_loss
from lightning_tuning.functional.loss_calls import LOSS_FUNCTIONS, bound_call


def called(name, output, target, **options):
    function = LOSS_FUNCTIONS[name]
    output = output.clone().requires_grad_()
    return bound_call(function, [output, target], options, function(output, target, **options))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, classes=10, seed=0):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def verdicts(result):
    return [(finding.verdict, finding.code) for finding in said(result)]


def judged(term, progress=None, rtol=0.5):
    return verdicts(InitialLossResult(terms=(term,), rtol=rtol, progress=progress))


SOFT = draw(32, 10).softmax(1)
KINDS = {
    "ten classes": ("cross_entropy", (32, 10), labels(32), {}, math.log(10)),
    "smoothed": ("cross_entropy", (32, 10), labels(32), {"label_smoothing": 0.2}, math.log(10)),
    "weighted": (
        *("cross_entropy", (32, 10), labels(32)),
        *({"weight": torch.arange(1.0, 11)}, math.log(10)),
    ),
    "some ignored": ("cross_entropy", (32, 10), labels(32), {"ignore_index": 3}, math.log(10)),
    "soft targets": ("cross_entropy", (32, 10), SOFT, {}, math.log(10)),
    "for each pixel": ("cross_entropy", (4, 3, 8, 8), labels(4, 8, 8, classes=3), {}, math.log(3)),
    "for each token": ("cross_entropy", (4, 50, 12), labels(4, 12, classes=50), {}, math.log(50)),
    "for each label": (
        *("binary_cross_entropy_with_logits", (32, 5)),
        *(labels(32, 5, classes=2).float(), {}, math.log(2)),
    ),
    "hinge, as torch scales it": ("multi_margin_loss", (32, 10), labels(32), {}, 9 / 10),
}


@pytest.mark.parametrize("kind", KINDS)
def test_small_outputs_are_at_chance_and_large_ones_above(kind):
    name, shape, target, options, level = KINDS[kind]
    quiet = [called(name, 0.01 * draw(*shape, seed=s), target, **options) for s in range(4)]
    [term] = loss_terms([[call] for call in quiet])
    assert term.high == pytest.approx(level, rel=1e-5)
    assert term.mean == pytest.approx(level, rel=0.05)
    assert term.place(0.5) == "at"
    loud = [called(name, 30 * draw(*shape, seed=s), target, **options) for s in range(4)]
    [term] = loss_terms([[call] for call in loud])
    assert term.place(0.5) == "above"


def test_a_head_that_starts_with_the_class_prior_is_right():
    target = labels(400).clamp(max=1)  # nine of ten are in one class
    counts = torch.bincount(target, minlength=10).double()
    prior = (counts / counts.sum()).clamp(min=1e-9).log().float().expand(400, 10)
    calls = [[called("cross_entropy", prior + 0.01 * draw(400, 10), target)]] * 4
    [term] = loss_terms(calls)
    assert term.low == pytest.approx(scipy.stats.entropy(counts.numpy()), rel=1e-3)
    assert judged(term) == [("pass", "initial_loss")]


@pytest.mark.parametrize(("name", "spread"), [("mse_loss", 1.0), ("l1_loss", 0.798)])
def test_values_are_compared_with_their_own_spread(name, spread):
    target = 150 + 20 * draw(4000, 1)
    quiet = called(name, 0.1 * draw(4000, 1), target)
    [term] = loss_terms([[quiet]] * 2)
    power = 2 if name == "mse_loss" else 1
    assert term.low == pytest.approx(spread * 20**power, rel=0.05)
    assert term.high == pytest.approx(float((target.abs() ** power).mean()), rel=1e-4)
    assert term.place(0.5) == "at"
    at_the_mean = called(name, 150 + 0.1 * draw(4000, 1), target)
    assert loss_terms([[at_the_mean]] * 2)[0].place(0.5) == "at"


def test_a_default_network_on_a_tiny_batch_raises_no_alarm():
    places = []
    for seed in range(60):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
        steps = [
            [called("cross_entropy", net(draw(2, 20, seed=s)), labels(2, seed=s))] for s in range(4)
        ]
        places += [term.place(0.5) for term in loss_terms(steps)]
    assert places == ["at"] * 60


def test_the_tolerance_and_the_noise_both_count():
    def place(losses, rtol=0.5):
        return LossTerm(name="mse_loss", losses=losses, low=1.0, high=2.0, what="").place(rtol)

    assert place((3.9, 4.1)) == "above"
    assert place((3.9, 4.1), rtol=1.0) == "at"
    assert place((3.5, 4.5)) == "at"
    assert place((3.5, 4.5, 90.0, 4.0)) == "at"
    assert place((3.5, 4.5, 90.0, 4.0, 4.0)) == "above"  # the mean is noisy, but all agree
    assert place((2.5, 4.5, 90.0, 4.0, 4.0)) == "at"
    assert place((0.19, 0.21)) == "below"
    assert place((0.19, 0.21), rtol=0.9) == "at"
    assert place((5.9,)) == "at"
    assert place((6.1,)) == "above"


def test_what_is_not_trained_does_not_count():
    constant = bound_call(
        functional.mse_loss, [draw(4), draw(4, seed=1)], {}, functional.mse_loss(draw(4), draw(4))
    )
    trained = called("cross_entropy", draw(8, 10), labels(8))
    [term] = loss_terms([[constant, trained]])
    assert term.name == "cross_entropy"


def test_places_are_told_apart_by_number():
    calls = [called("cross_entropy", draw(8, c), labels(8, classes=c)) for c in (3, 7)]
    first, second = loss_terms([calls, calls])
    assert (first.name, second.name) == ("cross_entropy 1", "cross_entropy 2")
    assert (first.what, second.what) == ("ln 3", "ln 7")


def test_a_loss_without_a_known_level_has_no_term():
    call = called(
        "kl_div", draw(8, 4).log_softmax(1), draw(8, 4, seed=1).softmax(1), reduction="batchmean"
    )
    assert loss_terms([[call]]) == ()
    assert "expected=" in unknown_loss().hint


ABOVE = LossTerm(name="cross_entropy", losses=(39.0, 41.0), low=2.2, high=2.3, what="ln 10")


def test_far_above_is_a_warning_only_where_the_program_trains_badly_too():
    assert judged(ABOVE, progress=-0.5) == [("warn", "loss_not_at_chance")]
    assert judged(ABOVE, progress=0.6) == [("pass", "initial_loss")]
    assert judged(ABOVE, progress=None) == [("skip", "loss_not_at_chance")]


def test_far_below_asks():
    below = LossTerm(name="cross_entropy", losses=(0.1, 0.11), low=2.2, high=2.3, what="ln 10")
    [finding] = said(InitialLossResult(terms=(below,), rtol=0.5))
    assert finding.verdict == "skip"
    assert "trained before" in finding.hint


def test_a_person_who_gives_the_level_means_it():
    result = InitialLossResult(terms=(total_term([9.1, 8.9, 9.0], expected=9.0),), rtol=0.1)
    assert verdicts(result) == [("pass", "initial_loss")]
    result = InitialLossResult(terms=(total_term([19.1, 18.9, 19.0], expected=9.0),), rtol=0.1)
    assert verdicts(result) == [("fail", "loss_not_at_chance")]


def test_a_loss_that_is_no_number_fails():
    assert judged(total_term([math.nan, 1.0], expected=None)) == [("fail", "non_finite")]
    assert judged(total_term([1.0, 1.0], expected=None)) == [("skip", "initial_loss")]


@pytest.mark.parametrize(
    ("losses", "verdict"), [((1.0, 1.5, 6.0), "pass"), ((1.0, 1.0, 1.0), "fail")]
)
def test_more_regularization_must_cost_more(losses, verdict):
    result = InitialLossResult(terms=(), rtol=0.5, strengths=(0.0, 0.1, 1.0), regularized=losses)
    [finding] = said(result)
    assert finding.verdict == verdict
    assert finding.evidence["loss_at_0.1"] == losses[1]


def test_the_standard_error_is_scipys():
    values = [1.0, 2.5, 2.0, 7.0]
    mean, stderr = mean_and_error(values)
    assert mean == pytest.approx(3.125)
    assert stderr == pytest.approx(scipy.stats.sem(values))
    assert mean_and_error([4.0]) == (4.0, math.inf)


def test_it_survives_json():
    result = InitialLossResult(
        terms=(ABOVE,), rtol=0.5, progress=-0.5, strengths=(0.0, 1.0), regularized=(2.0, 3.0)
    )
    assert InitialLossResult.from_json(result.to_json()) == result
