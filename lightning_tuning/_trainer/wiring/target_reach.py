"""What part of the targets the activation at a network's end can reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_tuning._trainer.step_trace import MODEL
from lightning_tuning._trainer.wiring.meetings import Meeting
from lightning_tuning._trainer.wiring.seen_losses import SeenLoss, finite
from lightning_tuning.functional.chance_loss import class_dim
from lightning_tuning.functional.wiring.wiring_outputs import RANGES, Reach

_VALUES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_BINARY = ("binary_cross_entropy", "binary_cross_entropy_with_logits")
_LOGITS = ("cross_entropy", "binary_cross_entropy_with_logits")
_SQUASHED_LOGITS = ("tanh", "tanh_", "softsign", "relu", "relu_", "relu6")
_FAR = 30.0


def reaches_of_losses(places: Sequence[Sequence[SeenLoss]]) -> Iterator[Reach]:
    """Yield one for each place of a known loss that has targets in a range."""
    for place in places:
        first = place[0].call
        activation = "" if first.origin is None else first.origin.name
        if any(seen.target_marks & MODEL for seen in place):
            continue
        if first.name in _VALUES and activation in RANGES and _same_shape(place):
            yield _of_values(first.name, activation, torch.cat([_counted(s) for s in place]))
        if first.name in _BINARY:
            targets = torch.cat([_counted(seen) for seen in place])
            yield _of_binary(first.name, targets)
        if first.name in _LOGITS and activation in _SQUASHED_LOGITS:
            yield _of_logits(activation, place)


def reaches_by_hand(met: Sequence[Meeting]) -> Iterator[Reach]:
    """Yield one for the differences of an output and a target that are squared, together."""
    known: dict[str, list[Tensor]] = {}
    for meeting in met:
        fits = meeting.distance and meeting.output.shape == meeting.target.shape
        if meeting.name not in ("sub", "rsub") or not fits or meeting.target_marks & MODEL:
            continue
        activation = "" if meeting.origin is None else meeting.origin.name
        grad = meeting.result.grad
        if activation in RANGES and grad is not None:
            known.setdefault(activation, []).append(finite(meeting.target[grad != 0]))
    for activation, targets in known.items():
        yield _of_values("squared difference", activation, torch.cat(targets))


def _same_shape(place: Sequence[SeenLoss]) -> bool:
    return all(seen.call.input.shape == seen.call.target.shape for seen in place)


def _counted(seen: SeenLoss) -> Tensor:
    """Return the targets that count: a program may mask others out after the loss."""
    target, grad = seen.call.target, seen.call.result.grad
    if grad is not None and grad.shape == target.shape:
        target = target[grad != 0]
    return finite(target.float())


def _of_values(where: str, activation: str, targets: Tensor) -> Reach:
    low, high = RANGES[activation]
    if len(targets) == 0:
        return Reach(where=where, activation=activation, unreachable=0.0, lowest=0.0, highest=0.0)
    missed = (targets - targets.clamp(low, high)).square().mean()
    variance = targets.var(correction=0)
    return Reach(
        where=where,
        activation=activation,
        unreachable=float(missed / variance) if float(variance) > 0 else float(missed > 0),
        lowest=float(targets.min()),
        highest=float(targets.max()),
    )


def _of_binary(where: str, targets: Tensor) -> Reach:
    if len(targets) == 0:
        return Reach(where=where, activation="", unreachable=0.0, lowest=0.0, highest=0.0)
    outside = ((targets < -1e-3) | (targets > 1 + 1e-3)).double().mean()
    return Reach(
        where=where,
        activation="",
        unreachable=0.0,
        lowest=float(targets.min()),
        highest=float(targets.max()),
        outside_unit=float(outside),
    )


def _of_logits(activation: str, place: Sequence[SeenLoss]) -> Reach:
    """Compare the lowest loss that such logits can have with the loss of zeros."""
    low, high = (max(min(bound, _FAR), -_FAR) for bound in RANGES[activation])
    best, chance = [], []
    for seen in place:
        call = seen.call
        wanted = call.target
        if not wanted.is_floating_point():
            classes = call.input.size(class_dim(call))
            ids = torch.arange(classes, device=wanted.device)
            shape = [1] * call.input.dim()
            shape[class_dim(call)] = -1
            wanted = wanted.unsqueeze(class_dim(call)) == ids.view(shape)
        ideal = torch.where(wanted > 0.5, high, low).to(call.input)
        best.append(call.replay(ideal.expand_as(call.input)).mean())
        chance.append(call.replay(torch.zeros_like(call.input)).mean())
    floor = float(torch.stack(best).mean() / torch.stack(chance).mean())
    return Reach(
        where=place[0].call.name,
        activation=activation,
        unreachable=floor,
        lowest=float(place[0].call.target.min()),
        highest=float(place[0].call.target.max()),
        of_loss=True,
    )
