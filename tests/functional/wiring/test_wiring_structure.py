import dataclasses

import pytest

from lightning_tuning.functional.wiring.wiring_structure import (
    StructureEvidence,
    missing_nonlinearity,
)

LINEAR = StructureEvidence(
    error=1e-7,
    tolerance=2e-5,
    layers=3,
    widest=64,
    needed=2,
    before=0.7,
    linear=0.69,
    rescued=0.2,
)


def verdict(**changes):
    [finding] = missing_nonlinearity(dataclasses.replace(LINEAR, **changes))
    return finding.verdict


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "warn"),
        ({"error": 0.1}, "pass"),
        ({"error": 2e-5}, "warn"),
        ({"error": float("inf")}, "pass"),
        ({"layers": 1}, "pass"),
        ({"widest": 2}, "pass"),
        ({"rescued": None}, "pass"),
        ({"rescued": 0.56}, "pass"),
        ({"rescued": 0.54}, "warn"),
        ({"rescued": float("nan")}, "pass"),
        ({"before": 1.4, "linear": 0.69}, "pass"),
        ({"before": 10.0, "linear": 0.69, "chance": 0.7}, "warn"),
        ({"before": -1.0, "linear": -2.0, "rescued": -9.0}, "pass"),
        ({"error": None, "why_not": "indices"}, "skip"),
        ({"error": None, "discarded": "relu", "discarded_calls": 2}, "fail"),
    ],
)
def test_verdicts(changes, expected):
    assert verdict(**changes) == expected


def test_the_message_has_the_numbers():
    [finding] = missing_nonlinearity(LINEAR)
    assert "3 layers, 64 wide" in finding.message
    assert finding.evidence["rescued"] == 0.2
