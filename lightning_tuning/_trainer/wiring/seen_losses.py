"""Loss calls of single steps, with what their arguments come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.step_trace import Observer, StepTrace, TracedCall, batch_size
from lightning_tuning.functional.loss_calls import LossCall, bound_call

BATCHES = 3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SeenLoss:
    """A loss call in its place.

    Attributes:
        call: The call.
        place: The how-manieth of its step.
        batch_size: Examples in the step's batch.
        target_marks: Where its target comes from, see :mod:`step_trace`.
        target: The target as the program gave it.
    """

    call: LossCall
    place: int
    batch_size: int
    target_marks: int
    target: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SeenStep:
    """One traced step.

    Attributes:
        loss: Its loss; None where it raised or has none.
        losses: Its loss calls.
        batch: What the step was given, on the device.
        error: What it raised.
    """

    loss: Tensor | None
    losses: tuple[SeenLoss, ...]
    batch: object
    error: str = ""

    @property
    def trained(self) -> list[SeenLoss]:
        """Return the losses that the step trains by."""
        return [
            seen
            for seen in self.losses
            if seen.call.trained and (self.error or seen.call.slope is not None)
        ]

    def is_all(self, seen: SeenLoss) -> bool:
        """Whether the value of a call is the whole loss."""
        value = seen.call.value
        return (
            self.loss is not None
            and value.numel() == 1
            and bool((self.loss - value.reshape(())).abs() <= 1e-4 * self.loss.abs() + 1e-12)
        )


class LossesSeen:
    """Notes the loss calls of a step, for a :class:`StepTrace`."""

    def __init__(self) -> None:
        self.losses: list[SeenLoss] = []

    def __call__(self, call: TracedCall) -> None:
        """Note the call if it is one of a loss."""
        loss = bound_call(call.function, call.args, call.kwargs, call.value, call.trace.origins)
        if loss is None:
            return
        target = call.argument(1, "target")
        self.losses.append(
            SeenLoss(
                call=loss,
                place=len(self.losses),
                batch_size=batch_size(call.trace.batch) or 0,
                target_marks=call.trace.marks(target),
                target=target,
            )
        )


def seen_steps(
    probe: Probe, *, before: Sequence[Observer] = (), after: Sequence[Observer] = ()
) -> list[SeenStep]:
    """Trace single steps on the first batches, with a backward pass each."""
    steps = []
    batches = probe.batches(BATCHES)
    probe.rewind()
    for batch in batches:
        losses = LossesSeen()
        trace = StepTrace(probe.module, before=before, after=(losses, *after))
        loss, problem = None, ""
        try:
            loss = probe.step(batch, mode="silent", backward=True, watch=[trace]).loss
        except StepError as error:
            problem = str(error)
        steps.append(
            SeenStep(loss=loss, losses=tuple(losses.losses), batch=trace.batch, error=problem)
        )
    return steps


def by_place(steps: Sequence[SeenStep]) -> list[list[SeenLoss]]:
    """Return the losses that steps train by, those of one place and function together."""
    places: dict[tuple[int, str], list[SeenLoss]] = {}
    for step in steps:
        for seen in step.trained:
            places.setdefault((seen.place, seen.call.name), []).append(seen)
    return list(places.values())


def finite(tensor: Tensor) -> Tensor:
    """Return the finite values of a tensor, flat."""
    flat = tensor.detach().double().flatten() if tensor.device.type != "mps" else tensor.flatten()
    return flat[torch.isfinite(flat)]
