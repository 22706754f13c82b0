"""What is noted after each step of a short training: how far weights went, and the rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.overfit_batch.settings_candidates import Peaks


class Movement:
    """Tells how far weights went from where they were in the first step."""

    def __init__(self, module: nn.Module, steps: int) -> None:
        self._last = steps - 1
        self._weights = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
        self._start = [p.detach().clone() for p in self._weights]
        self.farthest = 0.0

    def __call__(self, step: int, _loss: Tensor) -> bool:
        if step == self._last:
            ways = [
                (p.detach() - start).norm() / start.norm().clamp(min=1e-12)
                for p, start in zip(self._weights, self._start, strict=True)
            ]
            self.farthest = float(torch.stack([w.float() for w in ways]).max()) if ways else 0.0
        return False


class LastRate:
    """Notes the largest share of its base rate that a group has, after the first step and later."""

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = [(group, peak) for group, peak in peaks if peak > 0]
        self.first = math.nan
        self.last = math.nan

    def __call__(self, step: int, _loss: Tensor) -> bool:
        self.last = max(float(group["lr"]) / peak for group, peak in self._peaks)
        if step == 0:
            self.first = self.last
        return False
