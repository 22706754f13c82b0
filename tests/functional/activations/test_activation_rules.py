"""When a statistic of a layer is a fault: only in a fit that goes badly."""

import dataclasses
import math

import pytest

from lightning_tuning.functional.activations.activation_depth import rank_correlation
from lightning_tuning.functional.activations.activation_evidence import ActivationEvidence
from lightning_tuning.functional.activations.activation_non_finite import (
    NonFiniteEvidence,
    non_finite,
    non_finite_at_end,
)
from lightning_tuning.functional.activations.activation_result import ActivationRecord
from lightning_tuning.functional.activations.activation_rules import judge
from lightning_tuning.functional.activations.activation_step import (
    ActivationStep,
    LayerStep,
    Sampled,
    WeightStep,
)
from lightning_tuning.functional.fit_course import fit_course

STUCK = fit_course([2.3] * 100)
LEARNS = fit_course([2.3 * 0.97**k for k in range(100)])
FLAT = fit_course([2.3 * 0.5**k + 0.3 for k in range(100)])
UNKNOWN = fit_course([1.0, -1.0] * 50)
DIVERGED = fit_course([2.3] * 50 + [math.nan] * 50)


def layer(name, kind="weight", **fields):
    values = {"mean": 0.0, "std": 1.0, "low": -3.0, "high": 3.0, "gradient_norm": 1.0}
    return LayerStep(name=name, kind=kind, **values | {"input_rms": 1.0} | fields)


def fit_of(*layers, steps=10):
    record = ActivationRecord(every_n_steps=1)
    for number in range(steps):
        record.add(ActivationStep(step=number, layers=layers, weights=(), loss=1.0))
    return record.result()


def loud(course, *layers):
    findings = judge(ActivationEvidence(result=fit_of(*layers), course=course))
    assert len({f.code for f in findings}) == len(findings) == 5
    return [f.code for f in findings if f.verdict in ("warn", "fail")]


def deep(ratio, layers=6, **fields):
    return [layer(f"fc{k}", gradient_norm=ratio ** (k / (layers - 1))) for k in range(layers)]


HEAD, OUT = layer("a"), layer("out")
DEAD = [HEAD, layer("relu", "relu", dead=0.8), OUT]
SHUT = [layer("a", gradient_norm=0.0), layer("relu", "relu", dead=1.0), OUT]
FLATTENED = [HEAD, layer("tanh", "tanh", saturated=0.7), OUT]
TOO_LARGE = [layer("a", std=50.0), OUT]
TOO_SMALL = [layer(f"fc{k}", std=0.1**k) for k in range(6)]


@pytest.mark.parametrize(
    ("code", "layers"),
    [
        ("dead_relu", DEAD),
        ("saturated_activations", FLATTENED),
        ("bad_init_scale", TOO_LARGE),
        ("bad_init_scale", TOO_SMALL),
        ("vanishing_gradients", deep(1e5)),
        ("exploding_gradients", deep(1e-5)),
    ],
)
def test_a_symptom_is_a_fault_where_nothing_is_learnt_and_nowhere_else(code, layers):
    assert loud(STUCK, *layers) == [code]
    assert loud(LEARNS, *layers) == []


def test_a_layer_that_lets_no_gradient_pass_is_a_fault_in_any_fit():
    for course in (STUCK, FLAT, LEARNS, UNKNOWN):
        assert loud(course, *SHUT) == ["dead_relu"]
        # a residual branch may be dead: the layers before it still learn
        assert loud(course, layer("stem"), *SHUT) == (
            ["dead_relu"] if course in (STUCK, FLAT) else []
        )


def test_without_a_loss_that_tells_only_exact_facts_are_told():
    for layers in (DEAD, FLATTENED, TOO_LARGE, deep(1e5), deep(1e-5)):
        assert loud(UNKNOWN, *layers) == []
    assert loud(UNKNOWN, *SHUT) == ["dead_relu"]
    findings = judge(ActivationEvidence(result=fit_of(*DEAD), course=UNKNOWN))
    assert {f.verdict for f in findings} == {"skip"}
    assert any("negative at times" in f.message for f in findings)


def test_a_healthy_fit_that_has_converged_passes():
    healthy = [
        *(layer("a"), layer("a.relu", "relu", dead=0.3), layer("b", gradient_norm=0.1)),
        *(layer("b.tanh", "tanh", saturated=0.4), layer("c"), layer("out")),
    ]
    for course in (STUCK, FLAT, LEARNS, UNKNOWN, DIVERGED):
        assert loud(course, *healthy) == []


def test_the_activation_of_the_output_may_be_saturated():
    confident = [HEAD, OUT, layer("out.sigmoid", "sigmoid", saturated=1.0)]
    assert loud(STUCK, *confident) == []


def test_a_few_steep_layers_that_are_no_trend_pass():
    sizes = [1e-4, 1.0, 1e-4, 1.0, 1e-4, 1.0]
    zigzag = [layer(f"fc{k}", gradient_norm=size) for k, size in enumerate(sizes)]
    assert loud(STUCK, *zigzag) == []
    assert loud(STUCK, *deep(1e5, layers=3)) == []


def test_large_data_are_no_bad_start():
    assert loud(STUCK, layer("a", std=50.0, input_rms=100.0), OUT) == []


def test_rules_are_blind_to_the_scale_of_the_loss():
    for scale in (1e-6, 1e6):
        for layers in (DEAD, FLATTENED, deep(1e5)):
            scaled = [
                dataclasses.replace(row, gradient_norm=row.gradient_norm * scale) for row in layers
            ]
            assert loud(fit_course([2.3 * scale] * 100), *scaled) == loud(STUCK, *layers)


def test_one_warning_names_the_root():
    both = [layer("a", std=50.0), layer("tanh", "tanh", saturated=0.9), *deep(1e6)]
    findings = judge(ActivationEvidence(result=fit_of(*both), course=STUCK))
    assert [f.code for f in findings if f.verdict == "warn"] == ["saturated_activations"]
    assert next(f for f in findings if f.verdict == "warn").where == "tanh"


def test_a_layer_that_was_driven_flat_before_training_is_a_fault_until_the_fit_is_done():
    def squashed(std, saturated=0.95):
        return [layer("a", std=std), layer("tanh", "tanh", saturated=saturated), OUT]

    half_done = fit_course([2.3 - 1.5 * k / 100 for k in range(100)])
    assert loud(half_done, *squashed(60.0)) == ["saturated_activations"]
    # as in a pretrained network, whose weights are of usual size
    assert loud(half_done, *squashed(3.0)) == []
    assert loud(half_done, *squashed(60.0, saturated=0.6)) == []
    assert loud(LEARNS, *squashed(60.0)) == []


def test_what_is_not_there_is_skipped_with_the_reason():
    findings = judge(ActivationEvidence(result=fit_of(HEAD, OUT), course=STUCK, gradients=False))
    told = {f.code: (f.verdict, f.message) for f in findings}
    assert told["dead_relu"] == ("skip", "Not judged: no ReLU, GELU or SiLU was seen.")
    assert told["vanishing_gradients"] == ("skip", "Not judged: gradients=False.")
    empty = judge(ActivationEvidence(result=ActivationRecord(1).result(), course=STUCK))
    assert {f.verdict for f in empty} == {"skip"}


def test_rank_correlation_is_that_of_scipy():
    from scipy.stats import spearmanr

    values = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.6]
    assert rank_correlation(values) == pytest.approx(spearmanr(values, range(7)).statistic)


# ---------------------------------------------------------------------------------- not finite

GOOD = Sampled(rms=1.0, low=-1.0, high=1.0, total=0.0, non_finite=0, counts=(1, 1))


def step(number, *layers, loss=1.0):
    weight = WeightStep(name="a.weight", norm=1.0, gradients=GOOD)
    return ActivationStep(step=number, layers=layers, weights=(weight,), loss=loss)


def judged(now, *earlier, since=7, broken=("a.weight",)):
    return non_finite(NonFiniteEvidence(step=now, earlier=earlier, since=since, broken=broken))


def test_the_first_layer_of_the_forward_pass_is_named():
    fine, bad = layer("a", gradients=GOOD), layer("b", low=math.nan)
    found = judged(step(7, fine, bad, layer("c", high=math.inf), loss=math.nan), step(6, fine))
    assert (found.verdict, found.where, found.step) == ("fail", "b", 7)
    assert "forward pass" in found.message
    assert not found.evidence["backward"]


def test_the_first_layer_of_the_backward_pass_is_named():
    broken = [layer(n, gradients=GOOD, gradient_norm=math.nan) for n in ("a", "b")]
    earlier = step(6, *broken, layer("c", gradients=GOOD))
    found = judged(step(7, layer("a", low=math.nan), loss=math.nan), earlier)
    assert (found.where, found.evidence["backward"]) == ("b", True)
    assert "backward pass" in found.message
    assert "step 6" in found.message


def test_the_loss_itself_is_named_where_all_layers_are_finite():
    found = judged(step(7, layer("a"), loss=math.inf))
    assert found.where == ""
    assert "loss itself" in found.message


def test_a_loss_that_costs_no_weight_is_no_failure():
    assert judged(step(7, layer("a"), loss=math.nan), broken=()) is None
    [passed] = non_finite_at_end(None, [0, 1, 2], [1.0, math.nan, 1.0])
    assert passed.verdict == "pass"
    assert "1 of 3" in passed.message
    [unseen] = non_finite_at_end(None, [0, 1, 2], [1.0, 1.0, math.nan])
    assert unseen.verdict == "fail"
    assert "every_n_steps=1" in unseen.hint
    assert non_finite_at_end(None, [], [])[0].verdict == "pass"
