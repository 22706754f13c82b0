"""For how many measured steps each unit has been silent."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

_STEPS, _EXAMPLES, _MOST = 5, 256, 15


def window(examples: int) -> int:
    """Return after how many silent steps a unit counts as dead.

    So many that it has seen some hundred examples, as far as a short fit has them, and never one
    batch alone.

    Example:
        >>> window(32), window(512), window(1)
        (8, 5, 15)
    """
    return min(max(_STEPS, -(-_EXAMPLES // max(examples, 1))), _MOST)


class SilentUnits:
    """Counts, on the device, the measured steps since each unit last spoke."""

    def __init__(self) -> None:
        self._layout: tuple[tuple[Hashable, int], ...] = ()
        self._silent: dict[Hashable, Tensor] = {}
        self._all: Tensor | None = None
        self._owner: Tensor | None = None
        self.seen: dict[Hashable, int] = {}
        """Measured steps of each layer."""

    def update(self, loudness: Sequence[tuple[Hashable, Tensor]], steps: int) -> Tensor:
        """Take a step; return the number of units of each layer that are silent for ``steps``.

        Args:
            loudness: For each layer a number per unit, above zero where it spoke.
            steps: The window.
        """
        layout = tuple((key, values.numel()) for key, values in loudness)
        if layout != self._layout or self._all is None or self._owner is None:
            self._all, self._owner = self._laid_out(loudness)
            self._layout = layout
        for key, _ in loudness:
            self.seen[key] = self.seen.get(key, 0) + 1
        values = torch.cat([values for _, values in loudness])
        self._all += 1
        self._all *= values <= 0
        dead = torch.zeros(len(loudness), device=values.device)
        return dead.index_add_(0, self._owner, (self._all >= steps).float())

    def _laid_out(self, loudness: Sequence[tuple[Hashable, Tensor]]) -> tuple[Tensor, Tensor]:
        if self._all is not None:
            parts = torch.split(self._all, [count for _, count in self._layout])
            self._silent.update(
                {key: part for (key, _), part in zip(self._layout, parts, strict=True)}
            )
        known, owners = [], []
        for place, (key, values) in enumerate(loudness):
            before = self._silent.get(key)
            if before is None or before.numel() != values.numel():
                before, self.seen[key] = torch.zeros_like(values), 0
            known.append(before)
            owners.append(torch.full_like(values, place, dtype=torch.int64))
        return torch.cat(known), torch.cat(owners)
