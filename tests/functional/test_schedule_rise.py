import dataclasses

import pytest

from lightning_tuning.functional.schedule_rise import ScheduleRise
from lightning_tuning.functional.settings_findings import (
    Rescue,
    SettingsEvidence,
    settings_findings,
)

ZERO = ScheduleRise(
    length=1000, followed=1000, zeros=1000, changes=1000, highest=0.0, last=0.0, unmoved=True
)


def verdict(evidence, code):
    return next(f.verdict for f in settings_findings(evidence) if f.code == code)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fail"),
        ({"zeros": 600, "highest": 1.0, "last": 1.0}, "warn"),
        ({"zeros": 500, "highest": 1.0, "last": 1.0}, "pass"),
        ({"length": None, "zeros": 100, "followed": 101}, "warn"),
        ({"length": None, "zeros": 99, "followed": 100}, "pass"),
        ({"unmoved": False}, "pass"),
        # an epoch at zero, by a schedule that goes by epochs
        ({"length": None, "zeros": 400, "followed": 401, "changes": 1}, "pass"),
    ],
)
def test_a_rate_of_zero(changes, expected):
    rise = dataclasses.replace(ZERO, **changes)
    assert verdict(SettingsEvidence(progress=(0.5,), rise=rise), "lr_too_low") == expected


def test_a_warm_up_that_the_fit_does_not_see_the_end_of():
    rising = dataclasses.replace(ZERO, zeros=1, highest=0.05, last=0.05)
    assert rising.never_ends
    assert not dataclasses.replace(rising, highest=0.06).never_ends
    assert not dataclasses.replace(rising, length=None).never_ends
    assert not dataclasses.replace(rising, followed=10).never_ends


@pytest.mark.parametrize(
    ("code", "as_it_is", "changed", "expected"),
    [
        ("momentum_too_high", (0.2, 0.3), (0.9, 0.9), "warn"),
        ("momentum_too_high", (0.2, 0.3), (0.9, 0.8), "pass"),
        ("clip_too_small", (0.6, 0.6), (0.95, 0.95), "warn"),
        ("clip_too_small", (0.2, 0.8), (0.9, 0.99), "pass"),
        ("clip_too_small", (0.2, 0.2), (0.75, 0.7), "pass"),
        ("clip_too_small", (0.8, 0.8), (0.99, 0.99), "pass"),
        # a lower rate is slower where nothing is wrong
        ("lr_too_high", (0.2, 0.3), (0.6, 0.66), "warn"),
        ("lr_too_high", (0.2, 0.3), (0.6, 0.64), "pass"),
    ],
)
def test_another_setting_must_leave_far_less_of_the_loss_twice(code, as_it_is, changed, expected):
    rescue = Rescue(code=code, change="", progress=changed)
    evidence = SettingsEvidence(progress=as_it_is, rescues=(rescue,))
    assert verdict(evidence, code) == expected
