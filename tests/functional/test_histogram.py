import dataclasses

import numpy as np
import pytest

from lightning_tuning.functional.histogram import Histogram


def of(values, edges):
    counts, _ = np.histogram(values, edges)
    return Histogram(
        limits=tuple(edges[1:]),
        counts=tuple(counts.tolist()),
        min=float(values.min()),
        max=float(values.max()),
        num=values.size,
        sum=float(values.sum()),
        sum_squares=float((values**2).sum()),
    )


def test_its_edges_are_those_it_was_counted_in():
    edges = [float(edge) for edge in range(5)]
    assert of(np.array([0.0, 0.5, 3.5]), edges).edges == tuple(edges)
    # nothing lies in the first bin, so that the least value is no edge
    assert of(np.array([2.5, 3.5]), edges).edges == tuple(edges)


def test_one_bin_has_two_edges():
    lone = Histogram(limits=(2.0,), counts=(1,), min=3.0, max=3.0, num=1, sum=3.0, sum_squares=9.0)
    assert lone.edges == (1.0, 2.0)
    assert lone.centres == (1.5,)


def test_its_middles_give_the_mean_back():
    values = np.random.default_rng(0).normal(size=5000)
    found = of(values, np.linspace(-6, 6, 121))
    weighted = np.average(found.centres, weights=found.counts)
    assert weighted == pytest.approx(found.sum / found.num, abs=0.02)


def test_it_is_frozen_and_refuses_other_lengths():
    found = of(np.array([0.5]), [0.0, 1.0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.num = 3
    with pytest.raises(ValueError, match="0 limits and 0 counts"):
        dataclasses.replace(found, limits=(), counts=())
    with pytest.raises(ValueError, match="2 limits and 1 counts"):
        dataclasses.replace(found, limits=(1.0, 2.0))
