"""Samples of a step, counted on the host or on a device."""

import math

import pytest
import torch

from lightning_tuning._trainer.activations import activation_samples
from lightning_tuning._trainer.activations.activation_samples import Histograms
from lightning_tuning._trainer.activations.one_transfer import OneTransfer


def counted(samples, bins=32):
    transfer = OneTransfer()
    histograms = Histograms(transfer, bins)
    places = [histograms.put(parts) for parts in samples]
    histograms.count()
    found = histograms.read(transfer.fetch()[1])
    return [None if place is None else found[place] for place in places]


def test_a_device_counts_what_the_host_counts(monkeypatch):
    samples = [[torch.randn(size) * 10.0**size] for size in (1, 9, 3, 30, 12, 1)]
    samples += [[], [torch.randn(5), torch.randn(7)], [torch.tensor([1.0, math.nan])]]
    host = counted(samples)
    # so that what lies on the host is taken for what lies on a device
    monkeypatch.setattr(activation_samples, "_HOST", torch.device("meta"))
    device = counted(samples)
    assert [sampled is None for sampled in host] == [not parts for parts in samples]
    for one, other in zip(host, device, strict=True):
        if one is not None and other is not None:
            assert (one.counts, one.non_finite) == (other.counts, other.non_finite)
            for field in ("rms", "low", "high", "total"):
                assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-5)
