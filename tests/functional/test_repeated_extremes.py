"""What counts as a value of failed readings, and distributions that have none."""

import pytest
import torch

from lightning_tuning.functional.repeated_extremes import repeated_extremes


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def failing(value, every=100):
    data = normal(1000, 3)
    data[::every, 0] = value
    return data


def test_a_value_that_repeats_far_away_is_found_and_filled():
    data = failing(-200.0)
    found = repeated_extremes(data)
    assert (found.values.tolist(), found.count, found.share) == ([-200.0], 10, 10 / 3000)
    assert 190 < found.distance < 210
    filled = found.filled(data)
    assert filled[::100, 0].unique().tolist() == [float(data[:, 0].median())]
    same = torch.ones(1000, 3, dtype=torch.bool)
    same[::100, 0] = False
    assert torch.equal(filled[same], data[same])
    # in whatever shape and precision the batch has them
    assert found.filled(data.reshape(10, 100, 3)).shape == (10, 100, 3)
    assert found.filled(data.double()).dtype == torch.float64


def test_two_such_values_over_all_columns():
    data = normal(1000, 3)
    data[::200, 0], data[::250, 2] = -999.0, 9999.0
    found = repeated_extremes(data)
    assert (found.values.tolist(), found.count) == ([-999.0, 9999.0], 9)


def test_values_that_are_no_failed_readings():
    assert repeated_extremes(normal(1000, 3)) is None
    # not far enough, not often enough, too often
    assert repeated_extremes(failing(-15.0)) is None
    assert repeated_extremes(failing(-200.0, every=500)) is None
    assert repeated_extremes(failing(-200.0, every=4)) is None
    # a long tail, also one that is cut off
    tail = (3 * normal(5000, 1)).exp()
    assert repeated_extremes(tail) is None
    assert repeated_extremes(tail.clamp(max=float(tail.quantile(0.995)))) is None
    # no two are alike
    data = normal(1000, 3)
    data[::100, 0] = -200.0 + normal(10)
    assert repeated_extremes(data) is None
    # mostly zeros: nothing to measure by
    sparse = (normal(1000, 3) > 2).float() * 99999.0
    assert repeated_extremes(sparse) is None
    assert repeated_extremes(torch.zeros(100, 2)) is None


def test_a_value_stays_where_it_is_ordinary():
    data = torch.stack([normal(1000), -200 + 50 * normal(1000, seed=1)], 1).round()
    data[::100, 0] = -200.0
    found = repeated_extremes(data)
    assert found.values.tolist() == [-200.0]
    assert torch.equal(found.filled(data)[:, 1], data[:, 1])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((-99.0, True), (-9999.0, True), (999.0, True), (9.96921e36, True), (-1e20, True)),
        *((-100.0, False), (-990.0, False), (99.9, False), (1e6, False)),
    ],
)
def test_what_people_write_for_a_missing_value(value, expected):
    assert repeated_extremes(failing(value)).stands_for_missing is expected
