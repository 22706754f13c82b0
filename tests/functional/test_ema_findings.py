import pytest

from lightning_tuning.functional.ema import decay_half_life
from lightning_tuning.functional.ema_findings import half_life_finding, not_started_finding


@pytest.mark.parametrize(
    ("decay", "length", "warmup", "verdict"),
    [
        (0.999, 10_000, True, "pass"),
        (0.999, 10_000, False, "pass"),
        (0.999, 694, False, "pass"),
        (0.999, 692, False, "warn"),
        (0.999, 200, True, "pass"),
        (0.999, None, False, "skip"),
    ],
)
def test_a_half_life_longer_than_the_fit_is_told(decay, length, warmup, verdict):
    found = half_life_finding(
        decay_half_life(decay), length, unit="optimizer steps", decay=decay, warmup=warmup
    )
    assert (found.code, found.verdict) == ("ema_half_life", verdict)
    assert "693" in found.message
    assert ("warm-up" in found.message) == (warmup and length == 200)
    assert found.evidence["length"] == length


def test_an_average_that_never_began_is_told_with_its_numbers():
    found = not_started_finding(12, 100)
    assert found.verdict == "warn"
    assert "12" in found.message
    assert "100" in found.message
