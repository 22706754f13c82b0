import dataclasses

import numpy as np
import pytest

from lightning_tuning.functional.filters.filter_findings import FilterEvidence, filters_noisy
from lightning_tuning.functional.filters.filter_result import FilterResult

RNG = np.random.default_rng(0)
STUCK = tuple(2.3 + 0.05 * RNG.normal(size=200))
FALLING = tuple(np.geomspace(2.3, 0.4, 200))


def result(*readings, moved=2.0):
    found = FilterResult(layer="net.0", shape=readings[0].shape)
    for index, filters in enumerate(readings):
        found = found.with_reading(index, filters, moved if index else 0.0)
    return found


def noise(shape=(32, 3, 7, 7)):
    return RNG.normal(size=shape)


def evidence(**changes):
    """Noisy filters that have gone far, in a fit that learns nothing."""
    settings = {
        "result": result(noise(), noise(), noise()),
        "input_shape": (32, 32),
        "input_smoothness": 0.9,
        "losses": STUCK,
        "step": 200,
    }
    return FilterEvidence(**{**settings, **changes})


def only(evidence):
    [finding] = filters_noisy(evidence)
    assert finding.code == "noisy_filters"
    return finding


def test_noise_in_a_fit_that_learns_nothing_is_named():
    found = only(evidence())
    assert found.verdict == "warn"
    assert found.where == "net.0"
    assert found.step == 200
    assert abs(found.evidence["smoothness"]) < 0.1
    assert found.evidence["moved"] == 2.0
    assert "2.0 times their length" in found.message
    assert found.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": FALLING},
        {"losses": tuple(2.3 - 0.001 * np.arange(200))},
        {"input_smoothness": 0.2},
        {"result": result(noise(), noise(), np.cumsum(noise(), -1))},
        {"result": result(noise(), np.cumsum(noise(), -1), noise())},  # one reading is not enough
    ],
    ids=["falls", "falls slowly", "rough input", "smooth", "once smooth"],
)
def test_else_it_passes_with_the_number(changes):
    found = only(evidence(**changes))
    assert found.verdict == "pass"
    assert "have smoothness" in found.message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"result": None, "reason": "no convolution"}, "no convolution"),
        ({"result": FilterResult(layer="a", shape=(1, 1, 7, 7))}, "nothing was read"),
        ({"result": result(*[noise((32, 3, 3, 3))] * 3)}, "3 x 3 weights are too few"),
        ({"result": result(*[noise((32, 3, 64))] * 3)}, "64 weights are too few"),
        ({"result": result(*[np.zeros((4, 1, 7, 7))] * 3)}, "zero or not finite"),
        ({"result": result(noise(), noise())}, "100 steps and 3 readings"),
        ({"result": result(noise(), noise(), noise(), moved=0.3)}, "0.30 times their length"),
        ({"result": result(noise(), noise(), noise(), moved=float("nan"))}, "nan times"),
        ({"input_shape": (8, 8)}, "16 or more pixels"),
        ({"input_shape": ()}, "16 or more pixels"),
        ({"input_smoothness": float("nan")}, "were not seen"),
        ({"losses": STUCK[:99]}, "100 steps"),
        ({"loss_reason": "with several optimizers"}, "several optimizers"),
        ({"losses": tuple(x - 2.3 for x in STUCK)}, "negative"),
    ],
)
def test_where_it_cannot_know_it_says_why(changes, reason):
    found = only(evidence(**changes))
    assert found.verdict == "skip"
    assert reason in found.message


def test_a_loss_that_is_lost_is_a_fit_that_goes_badly():
    lost = (*STUCK[:100], *[float("nan")] * 100)
    assert only(evidence(losses=lost)).verdict == "warn"


def test_filters_that_are_a_little_smooth_pass_whatever_the_sample():
    verdicts = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        white = rng.normal(size=(32, 3, 8, 8))
        filters = white[..., 1:, 1:] + 0.2 * (white[..., :-1, 1:] + white[..., 1:, :-1])
        verdicts.append(only(evidence(result=result(filters, filters, filters))).verdict)
    assert verdicts == ["pass"] * 30


def test_what_it_does_not_use_changes_nothing():
    first = only(evidence())
    scaled = evidence(result=result(*[1e-5 * noise() for _ in range(3)]))
    assert only(scaled).verdict == first.verdict
    assert only(dataclasses.replace(evidence(), step=7)).step == 7
