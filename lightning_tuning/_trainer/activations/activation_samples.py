"""Histograms of many samples, counted together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tuning._trainer.activations.one_transfer import Array, OneTransfer
from lightning_tuning.functional.activations.activation_histograms import (
    histograms,
    histograms_on_host,
)
from lightning_tuning.functional.activations.activation_step import Sampled

_HOST = torch.device("cpu")


class Histograms:
    """Counts samples where they lie: on a device those of about equal length together."""

    def __init__(self, transfer: OneTransfer, bins: int) -> None:
        self._transfer = transfer
        self._bins = bins
        self._number = 0
        self._waiting: dict[tuple[torch.device, int], list[tuple[int, Tensor]]] = defaultdict(list)
        self._places: dict[tuple[torch.device, int], int] = {}

    def put(self, samples: Sequence[Tensor]) -> int | None:
        """Take a sample in parts; returns its place in what :meth:`read` returns."""
        if not samples:
            return None
        whole = samples[0] if len(samples) == 1 else torch.cat(list(samples))
        # so rows are no more than twice as long as what is in them
        length = 0 if whole.device == _HOST else whole.numel().bit_length()
        place = self._number
        self._waiting[whole.device, length].append((place, whole))
        self._number += 1
        return place

    def count(self) -> None:
        """Count all on their devices, before the transfer."""
        for key, group in self._waiting.items():
            if key[0] != _HOST:
                rows = histograms([sample for _, sample in group], self._bins)
                self._places[key] = self._transfer.put_array(rows)

    def read(self, arrays: Sequence[Array]) -> list[Sampled]:
        """Return all histograms, given the arrays that were transferred."""
        found: list[Sampled | None] = [None] * self._number
        for key, group in self._waiting.items():
            rows = (
                histograms_on_host([sample for _, sample in group], self._bins)
                if key[0] == _HOST
                else arrays[self._places[key]]
            )
            for (place, _), sampled in zip(group, Sampled.from_rows(rows), strict=True):
                found[place] = sampled
        return [sampled for sampled in found if sampled is not None]
