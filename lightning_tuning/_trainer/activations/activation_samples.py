"""Histograms of many samples, counted on the device together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tuning._trainer.activations.one_transfer import OneTransfer
from lightning_tuning.functional.activations.activation_stats import histograms
from lightning_tuning.functional.activations.activation_step import Sampled


class Histograms:
    """Samples of about equal length are counted together."""

    def __init__(self, transfer: OneTransfer, bins: int) -> None:
        self._transfer = transfer
        self._bins = bins
        self._waiting: dict[tuple[torch.device, int], list[Tensor]] = defaultdict(list)
        self._places: dict[tuple[torch.device, int], int] = {}

    def put(self, samples: Sequence[Tensor]) -> tuple[tuple[torch.device, int], int] | None:
        """Take a sample in parts; returns where its row will be."""
        if not samples:
            return None
        whole = samples[0] if len(samples) == 1 else torch.cat(list(samples))
        # so rows are no more than twice as long as what is in them
        key = whole.device, whole.numel().bit_length()
        group = self._waiting[key]
        group.append(whole)
        return key, len(group) - 1

    def count(self) -> None:
        """Count all on the device."""
        for key, group in self._waiting.items():
            self._places[key] = self._transfer.put(histograms(group, self._bins))

    def read(
        self, place: tuple[tuple[torch.device, int], int] | None, numbers: list[list[float]]
    ) -> Sampled | None:
        """Return a row of what was transferred."""
        if place is None:
            return None
        key, row = place
        width = len(numbers[self._places[key]]) // len(self._waiting[key])
        return Sampled.from_row(numbers[self._places[key]][row * width : (row + 1) * width])
