"""The average of what one optimizer moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_tuning._trainer.averaging.averaged_buffers import BufferMode
from lightning_tuning._trainer.averaging.host_average import HostAverage
from lightning_tuning._trainer.shards import have_moved, local_part
from lightning_tuning.functional.ema import ema_decay
from lightning_tuning.functional.ema_update import (
    AverageGroup,
    averaging_dtype,
    group_tensors,
    update_average,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageSettings:
    """How an average moves; see the arguments of ``EMAWeights``."""

    every_n_steps: int
    update_after_step: int
    warmup: bool
    buffers: BufferMode
    on_host: bool


_MOST_SKIPPED = 64
"""Steps that a loss scaler may skip before the first that counts: it halves a float32 each time."""


class AverageTrack:
    """The moving average of some parameters, and the steps that it has seen.

    Args:
        settings: How the average moves.

    Attributes:
        decay: The decay of one step, or, if ``per_batch``, of each batch that a step accumulated.
        per_batch: Which of the two.
        steps: Steps taken so far.
        since: Steps since the average began; None before it.
        retained: The share that the average keeps at its next update.
        batch: Number of the batch that ended with the last step, or with one that fp16 skipped.
    """

    def __init__(self, settings: AverageSettings) -> None:
        self._settings = settings
        self.decay = 0.0
        self.per_batch = False
        self.steps = 0
        self.since: int | None = None
        self.retained: float | Tensor = 1.0
        self.batch = 0
        self._batches: int | None = None
        self.parameters: list[nn.Parameter] = []
        self.average: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._sharded = False
        self._skipped: Tensor | None = None
        self._groups: list[AverageGroup] = []
        self._host: HostAverage | None = None

    def hold(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average these; those that are new begin with their weights."""
        kept = self._kept()
        self.parameters = list(parameters)
        if self.since is not None:
            self._begin(kept)

    def start(self, since: int = 0) -> None:
        """Begin: the average is the weights."""
        self.since = since
        self._begin({})

    def before_step(self, batch: int) -> None:
        """Note a step that is about to be taken, or skipped; wait for the last copy of the weights.

        Args:
            batch: Number of the batch that ends with it.
        """
        if self._batches is None or batch != self.batch:
            self._batches, self.batch = batch - self.batch, batch
        if self._host is not None:
            self._host.before_step()

    def step(self, batch: int, found_inf: Tensor | None) -> float | Tensor | None:
        """Count one step of the optimizer, and move the average if it is due.

        Args:
            batch: Number of the batch that ended with it.
            found_inf: Above zero if the optimizer skipped the step, which only the device knows:
                then the step does not count.

        Returns:
            The decay with which the average has moved; None if it has not.
        """
        self.steps += 1
        batches = batch - self.batch if self._batches is None else self._batches
        self._batches, self.batch = None, batch
        if found_inf is not None or self._skipped is not None:
            self._count_skipped(found_inf)
        if self.since is None:
            if self.steps <= self._settings.update_after_step:
                return None
            self.start()
            return 0.0
        self.since += 1
        decay = self.decay**batches if self.per_batch else self.decay
        if self._skipped is None:
            self.retained *= ema_decay(self.since, decay=decay, warmup=self._settings.warmup)
        else:
            self._count_on_device(decay, found_inf)
        if self.since % self._settings.every_n_steps != 0:
            return None
        moved, self.retained = self.retained, 1.0
        self._move(moved)
        return moved

    def wait(self) -> None:
        """Wait until the average is up to date, where it lies on the host."""
        if self._host is not None:
            self._host.wait()

    def close(self) -> None:
        """End the thread of an average on the host."""
        if self._host is not None:
            self._host.close()

    def state(self, batch: int) -> dict[str, Any]:
        """Return what an exact resume needs besides the average itself, as plain numbers."""
        return {
            "steps": self.steps,
            "since": self.since,
            "skipped": 0 if self._skipped is None else int(self._skipped),
            "retained": float(self.retained),
            "batches": batch - self.batch,
        }

    def load(self, state: dict[str, Any], batch: int) -> None:
        """Take up the state; the parameters must hold the averages."""
        self.steps, self.retained = state["steps"], state["retained"]
        self.batch = batch - state["batches"]
        if state["skipped"]:
            self._skipped = torch.tensor(float(state["skipped"]))
        if state["since"] is not None:
            self.start(state["since"])

    def _begin(self, kept: dict[int, Tensor]) -> None:
        self.close()
        self._host = None
        self._weights = weights = [local_part(p) for p in self.parameters]
        self._sharded = any(isinstance(p, DTensor) for p in self.parameters)
        if not self._settings.on_host or all(w.device.type == "cpu" for w in weights):
            self.average = self._copies(kept, weights, empty=False)
            self._groups = group_tensors(self.average, weights)
            return
        # all new ones can be copied while the training goes on
        self.average = self._copies(kept, weights, empty=not kept)
        self._host = HostAverage(self.average, weights)
        if not kept:
            self._host.start()

    def _copies(
        self, kept: dict[int, Tensor], weights: list[Tensor], *, empty: bool
    ) -> list[Tensor]:
        """Return averages for the parameters, of the weights or empty; ``kept`` by their ids."""
        averages = []
        for parameter, weight in zip(self.parameters, weights, strict=True):
            device = torch.device("cpu") if self._settings.on_host else weight.device
            dtype = averaging_dtype(weight.dtype)
            if id(parameter) in kept:
                averages.append(kept[id(parameter)])
            elif empty:
                averages.append(torch.empty_like(weight, device=device, dtype=dtype).detach())
            else:
                averages.append(weight.detach().to(device, dtype, copy=True))
        return averages

    def _kept(self) -> dict[int, Tensor]:
        return {id(p): a for p, a in zip(self.parameters, self.average, strict=False)}

    def _move(self, decay: float | Tensor) -> None:
        if self._sharded and have_moved(self.parameters, self._weights):
            self._begin(self._kept())
        if self._host is not None:
            self._host.update(decay)
        else:
            update_average(self._groups, decay)

    def _count_skipped(self, found_inf: Tensor | None) -> None:
        if found_inf is None:
            # another optimizer goes on, which does not call its hooks when it skips a step
            skipped, self._skipped = int(self._skipped or 0), None
            self.steps -= skipped
            self.since = None if self.since is None else max(0, self.since - skipped)
            return
        skipped_now = (found_inf > 0).to(_precise(found_inf.device))
        self._skipped = (
            skipped_now if self._skipped is None else self._skipped.to(skipped_now) + skipped_now
        )

    def _count_on_device(self, decay: float, found_inf: Tensor | None) -> None:
        """Let the device work out what the average retains, as it knows which steps count."""
        assert self.since is not None
        assert self._skipped is not None
        assert found_inf is not None
        since = self.since - self._skipped
        long_run = torch.full_like(since, decay)
        if self._settings.warmup:
            long_run = ((1 + since) / (10 + since)).clamp(max=decay)
        retained = torch.where(found_inf > 0, 1.0, long_run) * self.retained
        begins = since <= 0
        if self.since % self._settings.every_n_steps == 0:
            self.retained = torch.where(begins, 0.0, retained)
            return
        self.retained = torch.where(begins, 1.0, retained)
        if self.since <= _MOST_SKIPPED:
            # no step has counted yet, perhaps: then the average is the weights after this one
            self._move(torch.where(begins, 0.0, 1.0).to(since))


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
