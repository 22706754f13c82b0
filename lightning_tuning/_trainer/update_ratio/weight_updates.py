"""What the optimizers' steps do to the weights, watched on single batches of a fit."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_tuning._trainer.update_ratio.measured_step import MeasuredStep, OptimizerStep
from lightning_tuning._trainer.update_ratio.tracked_parameters import TrackedParameters
from lightning_tuning.functional.update_ratio.update_history import UpdateRow
from lightning_tuning.functional.update_ratio.update_ratio import log10_ratio


class WeightUpdates:
    """Watches all optimizers from :meth:`watch` to :meth:`collect`, and nothing in between.

    Modes that see torch's functions, another monitor's or the program's own, don't see what is done
    here.

    The first step of each optimizer counts, if it makes several in a batch. One that a module
    drives itself and that makes none is waited for in the next batches, until :meth:`stop`.

    Args:
        trainer: A trainer in ``on_train_start``.
        module: Its module.
        include: Found in the names of the parameters that are measured; None for all.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, include: str | None) -> None:
        self.tracked = TrackedParameters(trainer, module, include)
        self._trainer = trainer
        self._automatic = module.automatic_optimization
        self._steps: dict[Optimizer, MeasuredStep] = {}
        self._hooks: dict[Optimizer, list[Any]] = {}

    @property
    def watching(self) -> bool:
        """Whether the steps of this batch are measured."""
        return bool(self._hooks)

    def watch(self) -> None:
        """Begin; in ``on_train_batch_start``."""
        self.stop()
        self.tracked.update()
        for optimizer in self._trainer.optimizers:
            step = MeasuredStep(optimizer, wanted=self.tracked.wanted, by_row=self.tracked.by_row)
            self._steps[optimizer] = step
            after = functools.partial(self._after_step, step)
            before = functools.partial(self._before_step, step)
            self._hooks[optimizer] = [
                optimizer.register_step_post_hook(after),
                optimizer.register_step_pre_hook(before),
            ]

    def before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Look at weights and gradients; in ``on_before_optimizer_step``.

        Optimizers that call their closure several times come here several times.
        """
        step = self._steps.get(optimizer)
        if step is None:
            return
        if step.has_gradients:
            step.gradients_again()
            return
        with torch._C.DisableTorchFunction():
            if not step.has_copies:
                step.copy_weights()
            # what is clipped by hand was clipped before
            step.read_gradients(before_clipping=self._automatic, scale=self._scale(optimizer))

    def collect(self, at: int) -> UpdateRow | None:
        """Bring to the host what was found in a batch; None where no optimizer has stepped.

        All processes must call it where weights are spread over them.

        Args:
            at: The place of this batch on the loggers' axis.
        """
        steps = [self._steps.get(optimizer) for optimizer in self._trainer.optimizers]
        self._wait_for_the_rest()
        with torch._C.DisableTorchFunction():
            vectors = [step.on_device(self._total) for step in steps if step and step.has_gradients]
            if not vectors:
                return None
            values = torch.cat([vector.to(vectors[0].device) for vector in vectors]).tolist()
        done: list[OptimizerStep | None] = []
        for step in steps:
            if step and step.has_gradients:
                size = len(vectors.pop(0))
                done.append(step.read(values[:size]))
                del values[:size]
            else:
                done.append(None)
        return self._row(at, done)

    def stop(self) -> None:
        """End, and forget what was found; also after an exception."""
        for optimizer in [*self._steps]:
            self._let_go(optimizer)

    def _wait_for_the_rest(self) -> None:
        """Stay with optimizers that a module drives itself and has not in this batch."""
        for optimizer, step in [*self._steps.items()]:
            if self._automatic or step.has_copies or step.has_gradients:
                self._let_go(optimizer)

    def _let_go(self, optimizer: Optimizer) -> None:
        del self._steps[optimizer]
        for hook in self._hooks.pop(optimizer):
            hook.remove()

    def _before_step(
        self,
        step: MeasuredStep,
        _: Optimizer,
        args: Sequence[object],
        kwargs: dict[str, object],
    ) -> None:
        step.depth += 1
        if not self._automatic and not step.has_copies:
            with torch._C.DisableTorchFunction():
                step.copy_weights(before_backward=bool(args or kwargs))

    def _after_step(self, step: MeasuredStep, optimizer: Optimizer, *_: object) -> None:
        # an optimizer that calls the step of its base class comes here twice
        step.depth -= 1
        if step.depth == 0 and step.has_copies and not step.finished:
            with torch._C.DisableTorchFunction():
                step.finish(getattr(optimizer, "found_inf", None))

    def _scale(self, optimizer: Optimizer) -> Tensor | None:
        """Return what gradients still are multiplied by, since fused optimizers unscale them."""
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
            return None
        scale: Tensor | None = scaler._scale
        return scale

    def _total(self, squares: Tensor) -> Tensor:
        torch.distributed.all_reduce(squares)
        return squares

    def _row(self, at: int, done: Sequence[OptimizerStep | None]) -> UpdateRow:
        ratios: dict[int, float] = {}
        weights: dict[int, float] = {}
        updates: dict[int, float] = {}
        gradients: dict[int, float] = {}
        rates: list[float] = []
        for optimizer, step in zip(self._trainer.optimizers, done, strict=True):
            groups = len(optimizer.param_groups)
            taken = step is not None and step.taken
            rates += step.rates if step is not None and taken else [math.nan] * groups
            for parameter, tensor in step.tensors.items() if step is not None and taken else ():
                place = self.tracked.place(parameter)
                ratios[place] = log10_ratio(tensor.update, tensor.weight)
                weights[place] = tensor.weight
                updates[place] = tensor.update
                gradients[place] = tensor.gradient
        return UpdateRow(
            step=at,
            log10_ratios=ratios,
            weight_norms=weights,
            update_norms=updates,
            gradient_norms=gradients,
            before_clipping=tuple(s.before_clipping if s and s.taken else math.nan for s in done),
            after_clipping=tuple(s.after_clipping if s and s.taken else math.nan for s in done),
            learning_rates=tuple(rates),
        )
