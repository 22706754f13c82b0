"""One fit, watched layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_tuning._trainer.activations.activation_calls import StepTransfer, display_names
from lightning_tuning._trainer.activations.activation_hooks import ActivationRecorder
from lightning_tuning._trainer.activations.activation_layers import Choice
from lightning_tuning._trainer.activations.activation_writing import ActivationWriter
from lightning_tuning._trainer.activations.broken_weights import broken_weights
from lightning_tuning._trainer.cadence import Cadence
from lightning_tuning._trainer.fit_gate import course_of
from lightning_tuning._trainer.fit_losses import fit_losses
from lightning_tuning._trainer.report import logged_step, report
from lightning_tuning.findings import Finding
from lightning_tuning.functional.activations.activation_evidence import ActivationEvidence
from lightning_tuning.functional.activations.activation_non_finite import (
    NonFiniteEvidence,
    first_of_tail,
    non_finite,
    non_finite_at_end,
)
from lightning_tuning.functional.activations.activation_result import (
    ActivationRecord,
    ActivationResult,
)
from lightning_tuning.functional.activations.activation_rules import judge
from lightning_tuning.functional.activations.activation_step import ActivationStep


class ActivationWatch:
    """Measures, writes and judges the layers of one fit.

    Args:
        trainer: In ``on_fit_start``, before any graph of ``torch.compile`` exists.
        module: Its module.
        layers: Which layers.
        gradients: Whether gradients are measured.
        bins: Of each histogram.
        every_n_steps: Optimizer steps from one measurement to the next.
        suffix: Keeps apart the tags of several monitors.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        layers: str | Sequence[str] | None,
        gradients: bool,
        bins: int,
        every_n_steps: int | None,
        suffix: str,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._gradients = gradients
        self._every = every_n_steps
        self._recorder = ActivationRecorder(module, Choice(layers), gradients=gradients)
        self._recorder.put_into_graphs()
        self._transfer = StepTransfer(bins, {})
        self._writer = ActivationWriter(suffix)
        self._cadence: Cadence | None = None
        self._record: ActivationRecord | None = None
        self._measuring = False
        self._pre_hooks: list[RemovableHandle] = []
        self._scale: Tensor | None = None
        self._said: Finding | None = None
        self._done = False

    def start(self) -> Cadence:
        """Begin; all is restored at this moment. Returns which steps are measured."""
        self._cadence = Cadence(self._trainer, self._every)
        self._record = ActivationRecord(self._cadence.every_n_steps)
        self._writer.start(self._trainer)
        return self._cadence

    def before_batch(self) -> bool:
        """Look at the batch that begins if its step is to be measured; returns whether it is."""
        if self._cadence is None or self._record is None or not self._cadence.due():
            return False
        self._measuring, self._scale = True, None
        self._recorder.inputs = not self._record.steps()
        self._recorder.begin()
        if self._gradients and not self._module.automatic_optimization:
            # optimizers that a module steps by hand have no other hook
            for optimizer in self._trainer.optimizers:
                hook = optimizer.register_step_pre_hook(self._stepping())
                self._pre_hooks.append(hook)
        return True

    def before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Take the gradients of weights; they are unscaled and not clipped yet."""
        if self._measuring and self._module.automatic_optimization:
            if self._gradients:
                self._read(optimizer)
            self._recorder.close()

    def after_forward(self) -> None:
        """Look away from what is done to every parameter; a module that steps itself goes on."""
        if self._measuring and self._module.automatic_optimization:
            self._recorder.look_away()

    def before_backward(self) -> None:
        """Remember what the loss is multiplied by."""
        self.after_forward()
        if self._measuring:
            scale = _scale(self._trainer)
            self._scale = None if scale is None else scale.clone()

    def after_batch(self, outputs: object) -> tuple[Finding, ...]:
        """Bring to the host what was measured; returns what must be known at once."""
        fit_losses(self._trainer).note(self._trainer, outputs)
        if not self._measuring or self._cadence is None or self._record is None:
            return ()
        self._stop()
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            loss = None  # a module that steps its optimizers by hand may return anything
        step = self._measured(loss)
        self._record.add(step)
        self._writer.write(self._trainer, step)
        rank = self._first_rank(where=loss is not None and not math.isfinite(step.loss))
        return () if rank is None else self._not_finite(step, rank)

    def after_validation(self) -> None:
        """Draw, where there is time for it."""
        if self._record is not None and not self._trainer.sanity_checking:
            self._writer.draw_in_between(self._trainer, self._record)

    def finish(self) -> tuple[tuple[Finding, ...], ActivationResult | None]:
        """End; returns what there is to say, and all that was measured."""
        self.remove()
        if self._done or self._record is None or self._cadence is None:
            return (), None
        self._done = True
        result = self._record.result()
        if self._trainer.world_size > 1:
            # ranks see other examples, and must say the same
            result = self._trainer.strategy.broadcast(result)
        steps, losses = fit_losses(self._trainer).read(self._trainer)
        evidence = ActivationEvidence(
            result=result,
            course=course_of(self._trainer),
            step=logged_step(self._trainer),
            gradients=self._gradients,
            compiled=self._recorder.has_graph,
        )
        last = non_finite_at_end(self._said, steps, losses)
        return (*last, *judge(evidence)), result

    def draw(self, result: ActivationResult) -> None:
        """Write the result and draw it; all ranks must call it."""
        self._writer.draw(self._trainer, result)

    def remove(self) -> None:
        """Leave no hook behind."""
        self._stop()
        self._recorder.remove()

    def _stop(self) -> None:
        self._measuring = False
        self._recorder.end()
        for hook in self._pre_hooks:
            hook.remove()
        self._pre_hooks = []

    def _stepping(self) -> Callable[..., None]:
        def hook(optimizer: Optimizer, *_: Any) -> None:
            self._read(optimizer)

        return hook

    def _read(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        self._recorder.read_weight_gradients(parameters, self._scale if fused else None)

    def _measured(self, loss: Tensor | None) -> ActivationStep:
        assert self._cadence is not None
        recorder = self._recorder
        recorder.weights.add_up_shards(self._trainer.strategy.reduce)
        layers, weights, value, factor = self._transfer.run(
            recorder.calls.values(),
            recorder.weights.found.values(),
            scale=self._scale,
            loss=loss,
        )
        names = display_names(recorder.calls)
        recorder.calls, recorder.weights.found = {}, {}
        return ActivationStep(
            step=self._cadence.step,
            layers=tuple(layer.renamed(names[calls.key]) for calls, layer in layers),
            weights=tuple(weights),
            loss=value,
            scale=factor,
        )

    def _first_rank(self, *, where: bool) -> int | None:
        """Return the first rank for which something is so; all ranks must call it."""
        trainer = self._trainer
        if trainer.world_size == 1:
            return 0 if where else None
        ranks = torch.zeros(trainer.world_size, device=trainer.strategy.root_device)
        ranks[trainer.global_rank] = float(where)
        told = trainer.strategy.reduce(ranks, reduce_op="sum").tolist()
        return next((rank for rank, is_so in enumerate(told) if is_so), None)

    def _not_finite(self, step: ActivationStep, rank: int) -> tuple[Finding, ...]:
        """Say it once, as the rank sees it on which it happened; all ranks must call it."""
        if self._said is not None or self._record is None:
            return ()
        steps, losses = fit_losses(self._trainer).read(self._trainer)
        since = first_of_tail(steps, losses)
        evidence = NonFiniteEvidence(
            step=step,
            earlier=self._record.steps()[:-1],
            since=since,
            broken=broken_weights(self._trainer, self._module),
        )
        found = non_finite(evidence)
        if self._trainer.world_size > 1:
            found = self._trainer.strategy.broadcast(found, src=rank)
        if found is None:
            return ()
        self._said = found
        report(self._trainer, (found,))
        return (found,)


def _scale(trainer: Trainer) -> Tensor | None:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # `get_scale` would wait for the device
    scale = getattr(scaler, "_scale", None)
    return scale if isinstance(scale, torch.Tensor) else None
