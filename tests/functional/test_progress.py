import math

import pytest

from lightning_tuning.functional.progress import progress


@pytest.mark.parametrize(
    ("before", "after", "chance", "expected"),
    [
        (2.0, 0.5, None, 0.75),
        (2.0, 2.0, None, 0.0),
        (2.0, 3.0, None, -0.5),
        (30.0, 2.3, 2.3, 0.0),
        (30.0, 1.15, 2.3, 0.5),
        (1.0, 0.5, 2.3, 0.5),
        (2.0, 0.5, math.nan, 0.75),
        (-1.0, -3.0, None, 2.0),
        (2.0, math.nan, None, -math.inf),
        (2.0, math.inf, 2.3, -math.inf),
        (math.inf, 1.0, None, 1.0),
    ],
)
def test_the_share_of_the_loss_that_was_learnt(before, after, chance, expected):
    assert progress(before, after, chance=chance) == pytest.approx(expected)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_it_does_not_depend_on_the_unit_of_the_loss(unit):
    assert progress(5 * unit, 2 * unit, chance=4 * unit) == pytest.approx(0.5)
