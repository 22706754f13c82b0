import math

import pytest

from lightning_tuning.functional.rescue import Trained


@pytest.mark.parametrize(
    ("trained", "rescued", "cured"),
    [
        (Trained(before=2.3, after=2.3), 1.7, True),
        (Trained(before=2.3, after=2.3), 1.8, False),
        # falling to chance is no learning, and no cure
        (Trained(before=30.0, after=2.4, chance=2.3), 2.2, False),
        (Trained(before=30.0, after=2.4, chance=2.3), 1.0, True),
        # what diverged is cured by less
        (Trained(before=2.3, after=50.0), 1.9, True),
        (Trained(before=2.3, after=50.0), 2.1, False),
        (Trained(before=2.3, after=math.nan), 1.9, True),
        # the better it trained, the more must be won
        (Trained(before=2.0, after=1.0), 0.4, True),
        (Trained(before=2.0, after=1.0), 0.6, False),
        (Trained(before=2.0, after=0.7), 0.001, False),
        # losses below zero
        (Trained(before=-1.0, after=-1.0), -1.4, True),
        (Trained(before=-1.0, after=-1.0), -1.1, False),
        (Trained(before=2.3, after=2.3), None, False),
        (Trained(before=2.3, after=2.3), math.nan, False),
    ],
)
def test_a_cure_is_much_better(trained, rescued, cured):
    assert trained.cured_by(rescued) == cured
