"""The moving averages of a fit: what each optimizer moves, averaged after each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_tuning._trainer.averaging.average_track import AverageSettings, AverageTrack
from lightning_tuning._trainer.averaging.averaged_buffers import AveragedBuffers
from lightning_tuning._trainer.averaging.exchange import Exchange
from lightning_tuning._trainer.shards import reshard


class Averages:
    """One average for each optimizer, of the module's parameters that it holds.

    Parameters that no optimizer holds (frozen, or changed by the program itself) serve as they are.
    Each optimizer's own steps count. Buffers go with the first optimizer.

    Args:
        trainer: A trainer inside ``fit``, its weights restored.
        module: Its module.
        settings: How the averages move.
        paused: Tells whether a step is not one of the fit, but of a probe.

    Attributes:
        decay: Set by :meth:`set_decay`; None before it.
        length: Optimizer steps of the whole fit, or its batches; None if nobody knows them.
        per_batch: Whether the decay is that of a batch.
        settings: How the averages move.
        tracks: The average of each optimizer's parameters.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        settings: AverageSettings,
        *,
        paused: Callable[[], bool],
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._paused = paused
        self.settings = settings
        self._exchange: Exchange | None = None
        self.decay: float | None = None
        self.per_batch = False
        self.length: float | None = None
        reshard(module)
        self._names = {id(p): name for name, p in module.named_parameters()}
        self.tracks = [AverageTrack(settings) for _ in trainer.optimizers]
        self._by_optimizer = dict(zip(map(id, trainer.optimizers), self.tracks, strict=True))
        self._buffers = AveragedBuffers(module, settings.buffers, settings.every_n_steps)
        self._num_parameters: dict[int, int] = {}
        for optimizer in trainer.optimizers:
            self._find_parameters(optimizer)
        self._handles = [o.register_step_post_hook(self._after_step) for o in trainer.optimizers]
        if not module.automatic_optimization:
            # a step by hand on a bare optimizer calls no other hook
            self._handles += [o.register_step_pre_hook(self._before) for o in trainer.optimizers]

    @property
    def started(self) -> bool:
        """Whether any average has begun."""
        return any(track.since is not None for track in self.tracks)

    @property
    def steps(self) -> int:
        """Steps of the optimizer that has taken most, those included that a device skipped."""
        return max((track.steps for track in self.tracks), default=0)

    @property
    def batch(self) -> int:
        """Number of the latest training batch."""
        return int(self._trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def set_decay(self, decay: float) -> None:
        """Set the decay of one step, or, if ``per_batch``, of each batch that it accumulated."""
        self.decay = decay
        for track in self.tracks:
            track.decay, track.per_batch = decay, self.per_batch

    def exchange(self) -> Exchange:
        """Return what puts the averages into the module; they must not be in it."""
        self.wait()
        if self._exchange is None or self._buffers.kept:
            begun = [track for track in self.tracks if track.average]
            tensors: dict[str, Tensor] = {
                self._names[id(p)]: p for t in begun for p in t.parameters
            }
            averages = [average for track in begun for average in track.average]
            values = dict(zip(tensors, averages, strict=True))
            own = self._buffers.own()
            self._exchange = Exchange(
                self._module, {**tensors, **own}, {**values, **self._buffers.values}
            )
        return self._exchange

    def before_step(self, optimizer: Optimizer) -> None:
        """Note that a step is about to be taken, which fp16 may skip yet."""
        track = self._by_optimizer.get(id(getattr(optimizer, "optimizer", optimizer)))
        if track is not None:
            track.before_step(self.batch)

    def wait(self) -> None:
        """Wait until the averages are up to date, where they lie on the host."""
        for track in self.tracks:
            track.wait()

    def close(self) -> None:
        """Let go of the optimizers."""
        for handle in self._handles:
            handle.remove()
        for track in self.tracks:
            track.close()

    def state(self) -> list[dict[str, Any]]:
        """Return what a resume needs besides the averages, for each optimizer."""
        return [track.state(self.batch) for track in self.tracks]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Take up the state; what has begun begins with the weights, to be overwritten."""
        if len(state) == 1:
            state = state * len(self.tracks)
        for track, numbers in zip(self.tracks, state, strict=False):
            track.load(numbers, self.batch)
        if self.started:
            self._buffers.start()
        self._exchange = None

    @torch.no_grad()
    def overwrite(self, values: Mapping[str, Tensor]) -> None:
        """Set averages to those given, local parts of sharded ones."""
        for name, average in self.exchange().other_values().items():
            if name in values and values[name].shape == average.shape:
                average.copy_(values[name])

    def _find_parameters(self, optimizer: Optimizer) -> None:
        """Give each parameter of the module to the first optimizer that holds it."""
        held = [p for group in optimizer.param_groups for p in group["params"]]
        track = self._by_optimizer[id(optimizer)]
        others = {id(p) for t in self.tracks if t is not track for p in t.parameters}
        track.hold([p for p in held if id(p) in self._names and id(p) not in others])
        self._num_parameters[id(optimizer)] = len(held)
        self._exchange = None

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        if not self._paused():
            self.before_step(optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        if self._paused():
            return
        held = sum(len(group["params"]) for group in optimizer.param_groups)
        if held != self._num_parameters[id(optimizer)]:
            self._find_parameters(optimizer)
        track = self._by_optimizer[id(optimizer)]
        begins = track.since is None
        decay = track.step(self.batch, getattr(optimizer, "found_inf", None))
        if decay is None:
            return
        if begins:
            self._exchange = None
        if track is self.tracks[0]:
            if begins:
                self._buffers.start()
            else:
                self._buffers.update(decay)
