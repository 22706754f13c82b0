"""Histograms: against NumPy's, on a device and on the host, and what must not change them."""

import math

import numpy as np
import pytest
import torch

from lightning_tuning.functional.activations.activation_histograms import (
    FACTS,
    REACH,
    edges,
    histograms,
    histograms_on_host,
)


def on_host(samples, bins):
    return torch.from_numpy(histograms_on_host(samples, bins))


WAYS = pytest.mark.parametrize("count", [histograms, on_host])


def numpy_histogram(values, bins):
    values = values.numpy().astype(np.float64)
    finite = values[np.isfinite(values)]
    rms = math.sqrt((finite**2).sum() / len(values))
    place = np.copysign(np.log1p(np.abs(finite) / rms), finite).clip(-REACH, REACH)
    return rms, np.histogram(place, bins, (-REACH, REACH))[0]


@WAYS
@pytest.mark.parametrize("bins", [8, 64])
def test_histograms_are_those_of_numpy(count, bins):
    rows = torch.stack([torch.randn(5000) * scale for scale in (1e-6, 1.0, 1e6)])
    rows[1, :50] *= 300
    for row, values in zip(count(list(rows), bins), rows, strict=True):
        rms, counts = numpy_histogram(values, bins)
        assert float(row[0]) == pytest.approx(rms, rel=1e-5)
        assert np.abs(row[FACTS:].numpy() - counts).sum() <= 4  # values on an edge
        assert row[FACTS:].sum() == 5000
        assert row[1:3].tolist() == [float(values.min()), float(values.max())]
        assert float(row[3]) == pytest.approx(float(values.double().sum()), rel=1e-3, abs=rms)


@WAYS
def test_a_histogram_keeps_its_shape_under_scale_and_turns_with_the_sign(count):
    values = torch.randn(1, 4096)
    counts = count(list(values), 64)[:, FACTS:]
    assert torch.equal(counts, count(list(values * 2.0**40), 64)[:, FACTS:])
    mirrored = count(list(-values), 64)[:, FACTS:].flip(1)
    assert (counts - mirrored).abs().sum() <= 4


@WAYS
def test_many_rows_are_counted_as_each_alone(count):
    rows = [torch.randn(257 - number % 100) for number in range(3000)]
    together = count(rows, 64)
    alone = torch.cat([count([row], 64) for row in rows])
    # sums of floats depend on how many are added at once
    torch.testing.assert_close(together[:, :FACTS], alone[:, :FACTS], rtol=1e-6, atol=1e-5)
    # so a value next to an edge may change sides
    assert (together[:, FACTS:] - alone[:, FACTS:]).abs().sum() < 1e-4 * 3000 * 257
    assert together[:, FACTS:].sum(1).tolist() == [len(row) for row in rows]


@WAYS
def test_values_that_are_not_finite_count_nowhere(count):
    row = count([torch.tensor([1.0, -1.0, math.nan, math.inf, -math.inf, 0.5])], 8)[0]
    assert row[4] == 3
    assert row[FACTS:].sum() == 3
    assert row[1:3].tolist() == [-1.0, 1.0]
    zeros = count([torch.zeros(10)], 8)[0]
    assert zeros[0] == 0
    assert zeros[FACTS:].sum() == 10


def test_host_and_device_count_alike():
    scales = torch.randint(-12, 12, (40,)).tolist()
    sizes = (1366, 320, 10, 1, 2048) * 8
    rows = [torch.randn(n) * 10.0**k for n, k in zip(sizes, scales, strict=True)]
    rows[3][:] = 0.0
    rows[5][7], rows[10][:3], rows[13][:] = math.nan, -math.inf, math.nan
    rows[20][0] = 1e30  # whose square is infinite
    apart = torch.cat([histograms([row], 64) for row in rows])
    together = on_host(rows, 64)
    torch.testing.assert_close(
        together[:, :FACTS], apart[:, :FACTS], rtol=1e-5, atol=1e-3, equal_nan=True
    )
    assert (together[:, FACTS:] - apart[:, FACTS:]).abs().sum() <= 4
    broken = [row for row in rows if not row.isfinite().all()]
    assert (on_host(broken, 64)[:, 4] > 0).all()


def test_deterministic_algorithms_are_no_obstacle():
    torch.use_deterministic_algorithms(True)
    try:
        assert histograms([torch.randn(100)], 8)[0, FACTS:].sum() == 100
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_edges_are_symmetric_and_finer_near_zero():
    found = np.array(edges(64))
    assert found == pytest.approx(-found[::-1])
    assert found[-1] == pytest.approx(math.expm1(REACH))
    assert (np.diff(np.diff(found[32:])) > 0).all()
