"""The pure rules on losses and outputs, at their borders."""

import dataclasses

import pytest

from lightning_tuning.functional.wiring import (
    wiring_loss_flow,
    wiring_losses,
    wiring_metrics,
    wiring_non_finite,
    wiring_outputs,
)


def verdict(findings):
    [finding] = findings
    return finding.verdict


LOGITS = wiring_losses.LossInput(
    name="cross_entropy",
    chain=(),
    classes=3,
    lowest=-1.0,
    highest=2.0,
    sum_error=1.5,
    log_sum_error=2.0,
    is_all=True,
)


def entered(**changes):
    return wiring_losses.LossEvidence(inputs=(dataclasses.replace(LOGITS, **changes),), batches=3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "pass"),
        ({"chain": ("softmax",)}, "fail"),
        ({"chain": ("sigmoid",)}, "fail"),
        ({"chain": ("log_softmax",)}, "pass"),
        ({"chain": ("log", "softmax")}, "pass"),
        ({"lowest": 0.1, "highest": 0.8, "sum_error": 1e-4}, "fail"),
        ({"lowest": 0.1, "highest": 0.8, "sum_error": 0.1}, "pass"),
        ({"name": "nll_loss"}, "fail"),
        ({"name": "nll_loss", "is_all": False}, "pass"),
        ({"name": "nll_loss", "highest": -0.1, "log_sum_error": 0.0}, "pass"),
        ({"name": "nll_loss", "highest": -0.1, "log_sum_error": 3.0}, "pass"),
        ({"name": "mse_loss"}, "skip"),
    ],
)
def test_softmax_before_ce(changes, expected):
    assert verdict(wiring_losses.softmax_before_ce(entered(**changes))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "pass"),
        ({"chain": ("sigmoid",)}, "fail"),
        ({"lowest": 0.1, "highest": 0.9}, "pass"),
        ({"lowest": 0.1, "highest": 0.9, "rescue": 0.5}, "fail"),
        ({"lowest": 0.1, "highest": 0.9, "rescue": 0.1}, "pass"),
        ({"name": "binary_cross_entropy", "chain": ("sigmoid",)}, "skip"),
    ],
)
def test_sigmoid_before_bce_logits(changes, expected):
    seen = entered(**({"name": "binary_cross_entropy_with_logits"} | changes))
    assert verdict(wiring_losses.sigmoid_before_bce_logits(seen)) == expected


def test_single_logit_softmax():
    rule = wiring_losses.single_logit_softmax
    assert verdict(rule(entered())) == "pass"
    assert verdict(rule(entered(classes=1))) == "fail"
    ones = {"name": "binary_cross_entropy", "classes": 1, "lowest": 1.0, "highest": 1.0}
    assert verdict(rule(entered(**ones, chain=("softmax",)))) == "fail"
    assert verdict(rule(entered(**ones, chain=("sigmoid",)))) == "pass"


def test_loss_detached():
    rule, evidence = wiring_loss_flow.loss_detached, wiring_loss_flow.GraphEvidence
    assert verdict(rule(evidence())) == "pass"
    assert verdict(rule(evidence(reason="no loss"))) == "skip"
    assert verdict(rule(evidence(has_graph=False))) == "fail"
    assert verdict(rule(evidence(reaches=False))) == "fail"
    term = wiring_loss_flow.Term(name="mse_loss", value=1.0, share=0.5)
    [finding] = rule(evidence(terms=(term,)))
    assert finding.verdict == "fail"
    assert finding.evidence["share"] == 0.5


def test_loss_reduction_sum():
    rule = wiring_loss_flow.loss_reduction_sum
    bad = wiring_loss_flow.SumEvidence(trains_badly=True, ratio=2.0, batch_size=32, rescued=0.9)
    assert verdict(rule(bad)) == "fail"
    assert verdict(rule(dataclasses.replace(bad, trains_badly=False))) == "pass"
    assert verdict(rule(dataclasses.replace(bad, ratio=1.0))) == "pass"
    assert verdict(rule(dataclasses.replace(bad, rescued=0.2))) == "pass"
    assert verdict(rule(dataclasses.replace(bad, rescued=float("nan")))) == "pass"
    assert verdict(rule(dataclasses.replace(bad, rescued=None))) == "pass"
    assert verdict(rule(wiring_loss_flow.SumEvidence(reason="no batch"))) == "skip"


def test_loss_sign_flipped():
    rule, evidence = wiring_loss_flow.loss_sign_flipped, wiring_loss_flow.SignEvidence
    assert verdict(rule(evidence(negated="cross_entropy"))) == "fail"
    away = evidence(pairs=3, away=True, fall=5.0, rise=1.0, agreement=-0.9, agreement_negated=0.5)
    assert verdict(rule(away)) == "fail"
    assert verdict(rule(dataclasses.replace(away, away=False))) == "pass"
    assert verdict(rule(dataclasses.replace(away, fall=-5.0))) == "pass"
    assert verdict(rule(dataclasses.replace(away, rise=500.0))) == "pass"
    assert verdict(rule(dataclasses.replace(away, agreement_negated=0.0))) == "pass"
    assert verdict(rule(evidence())) == "skip"


def test_broadcast_mismatch():
    rule, evidence = wiring_outputs.broadcast_mismatch, wiring_outputs.OutputEvidence
    spread = wiring_outputs.Broadcast(where="sub", output=(4, 1), target=(4,), result=(4, 4))
    assert verdict(rule(evidence())) == "pass"
    assert verdict(rule(evidence(broadcasts=(spread,)))) == "fail"
    meant = dataclasses.replace(spread, explicit=True)
    for rescue, expected in ((None, "pass"), (1.0, "pass"), (0.5, "fail")):
        seen = dataclasses.replace(meant, rescue=rescue)
        assert verdict(rule(evidence(broadcasts=(seen,)))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "pass"),
        ({"unreachable": 0.04}, "pass"),
        ({"unreachable": 0.06}, "fail"),
        ({"unreachable": 0.06, "of_loss": True}, "pass"),
        ({"unreachable": 0.3, "of_loss": True}, "fail"),
        ({"outside_unit": 0.5}, "fail"),
    ],
)
def test_output_range_mismatch(changes, expected):
    reach = {"where": "mse_loss", "activation": "tanh", "unreachable": 0.0}
    seen = wiring_outputs.Reach(**(reach | {"lowest": -1.0, "highest": 1.0} | changes))
    evidence = wiring_outputs.OutputEvidence(reaches=(seen,), batches=3)
    assert verdict(wiring_outputs.output_range_mismatch(evidence)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "pass"),
        ({"outside": 1}, "fail"),
        ({"classes": 99}, "pass"),
        ({"classes": 100}, "warn"),
        ({"classes": 100, "examples": 150}, "pass"),
        ({"classes": 100, "per_example": False}, "pass"),
    ],
)
def test_wrong_num_classes(changes, expected):
    labels = {"where": "cross_entropy", "classes": 10, "lowest": 0, "highest": 9, "outside": 0}
    seen = wiring_outputs.Labels(**(labels | {"examples": 500, "per_example": True} | changes))
    evidence = wiring_outputs.OutputEvidence(labels=(seen,), batches=3)
    assert verdict(wiring_outputs.wrong_num_classes(evidence)) == expected


def test_metric_wrong():
    rule, evidence = wiring_metrics.metric_wrong, wiring_metrics.MetricEvidence
    assert verdict(rule(evidence(faults=(), comparisons=0))) == "skip"
    assert verdict(rule(evidence(faults=(), comparisons=2))) == "pass"
    fault = wiring_metrics.MetricFault(stage="validation", function="argmax", shape=(8, 3), dim=0)
    assert verdict(rule(evidence(faults=(fault,), comparisons=1))) == "fail"
    fault = wiring_metrics.MetricFault(
        stage="validation", function="numel", shape=(8, 9, 5), answers=(8, 9)
    )
    [finding] = rule(evidence(faults=(fault,), comparisons=1))
    assert finding.verdict == "fail"
    assert "at most 0.2" in finding.message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fail"),
        ({"found": False}, "pass"),
        ({"reason": "the data hold NaN"}, "skip"),
        ({"largest_input": 1e20}, "pass"),
        ({"largest_gradient": 1e20}, "pass"),
        ({"growth": 1e3}, "pass"),
        ({"loss_growth": 1e4}, "pass"),
        ({"operation": ""}, "pass"),
    ],
)
def test_non_finite(changes, expected):
    seen = {"found": True, "operation": "log", "largest_input": 1.0} | changes
    evidence = wiring_non_finite.NonFiniteEvidence(**seen)
    assert verdict(wiring_non_finite.non_finite(evidence)) == expected
