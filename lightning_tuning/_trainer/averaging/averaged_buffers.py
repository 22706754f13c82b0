"""Buffers of a module that a moving average has values of its own for."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_tuning.functional.ema_update import averaging_dtype, group_tensors, update_average

BufferMode = Literal["copy", "average", "skip"]


class AveragedBuffers:
    """Averages, or copies as old as the average, of the buffers that need them.

    Buffers are looked up by name each time, because a module may replace one (``self.seen =
    self.seen + 1``), resize it or set it to None. Where the average is updated after every step, a
    copied buffer is the module's own: there is nothing to keep.

    Args:
        module: The module.
        mode: Copy them at each update, average the floating ones, or skip all.
        every_n_steps: Steps from one update of the average to the next.

    Attributes:
        values: The averages and copies, by path; empty before :meth:`start`.
    """

    def __init__(self, module: nn.Module, mode: BufferMode, every_n_steps: int) -> None:
        self._module = module
        self._average = mode == "average"
        self._copy = mode != "skip" and every_n_steps > 1
        self.values: dict[str, Tensor] = {}

    @property
    def kept(self) -> bool:
        """Whether there may be buffers with values of their own."""
        return self._average or self._copy

    def own(self) -> dict[str, Tensor]:
        """Return the module's own, of those that have another value here."""
        found = dict(self._module.named_buffers()) if self.values else {}
        same = {n: b for n, b in found.items() if n in self.values}
        return {n: b for n, b in same.items() if b.shape == self.values[n].shape}

    def start(self) -> None:
        """Begin with the module's own values."""
        self.values = {
            name: buffer.detach().to(self._dtype(buffer), copy=True)
            for name, buffer in self._module.named_buffers()
            if self._copy or (self._average and _is_number(buffer))
        }

    @torch.no_grad()
    def update(self, decay: float | Tensor) -> None:
        """Move the averages, and copy the rest."""
        if not self.kept:
            return
        before = self.values
        self.start()
        moved = {
            name: before[name]
            for name, value in self.values.items()
            if self._average and _is_number(value) and _alike(before.get(name), value)
        }
        if moved:
            own = self._module.get_buffer
            groups = group_tensors(list(moved.values()), [own(name) for name in moved])
            update_average(groups, decay)
        self.values |= moved

    def _dtype(self, buffer: Tensor) -> torch.dtype:
        return averaging_dtype(buffer.dtype) if self._average else buffer.dtype


def _is_number(buffer: Tensor) -> bool:
    return buffer.is_floating_point() or buffer.is_complex()


def _alike(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and one.dtype == other.dtype
