import math

import pytest

from lightning_tuning import ema_decay
from lightning_tuning.functional.ema import (
    HalfLife,
    decay_half_life,
    half_life_decay,
    parse_half_life,
    warmup_steps,
)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        (700, 700, "steps"),
        (0.5, 0.5, "steps"),
        ("700", None, None),
        ("700 steps", 700, "steps"),
        ("1 step", 1, "steps"),
        ("10000 samples", 10000, "samples"),
        ("1e4 samples", 10000, "samples"),
        ("10_000 samples", 10000, "samples"),
        ("0.5 epochs", 0.5, "epochs"),
        (" .5epochs ", 0.5, "epochs"),
        ("0 epochs", None, None),
        ("-1 epochs", None, None),
        ("3 weeks", None, None),
        ("1e999 steps", None, None),
        ("epochs", None, None),
        (0, None, None),
        (-3.0, None, None),
        (math.inf, None, None),
        (True, None, None),
    ],
)
def test_half_life_is_read(text, value, unit):
    if value is None:
        with pytest.raises(ValueError, match="half_life="):
            parse_half_life(text)
    else:
        assert parse_half_life(text) == HalfLife(value=value, unit=unit)


@pytest.mark.parametrize("half_life", [0.3, 1.0, 7.0, 693.147, 1e6])
def test_half_life_halves(half_life):
    decay = half_life_decay(half_life)
    assert decay**half_life == pytest.approx(0.5)
    assert decay_half_life(decay) == pytest.approx(half_life)


def test_no_decay_has_no_half_life():
    assert decay_half_life(0.0) == 0.0


def test_the_docstring_states_the_warmup():
    values = {1: 0.182, 10: 0.55, 100: 0.918, 1000: 0.991}
    assert {step: round(ema_decay(step), 3) for step in values} == values
    for value in values.values():
        assert f"{value}" in ema_decay.__doc__


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5, 0.9, 0.99, 0.999, 0.9999])
def test_warmup_rises_to_the_decay(decay):
    steps = warmup_steps(decay)
    assert ema_decay(steps, decay=decay) == decay
    assert steps == 1 or ema_decay(steps - 1, decay=decay) < decay
    rising = [ema_decay(step, decay=decay) for step in range(1, 200)]
    assert rising == sorted(rising)


def test_warmup_is_polynomial_decay_averaging():
    """Shamir and Zhang: the t-th weight has the share (eta + 1) / (t + eta), counted from 1."""
    eta = 8
    for step in range(1, 500):
        share = 1 - ema_decay(step, decay=0.99999)
        assert share == pytest.approx((eta + 1) / ((step + 2) + eta))


def test_without_warmup_the_decay_is_constant_from_the_second_step_on():
    assert [ema_decay(step, decay=0.9, warmup=False) for step in (-1, 0, 1, 2)] == [0, 0, 0.9, 0.9]
