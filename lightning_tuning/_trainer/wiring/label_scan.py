"""The labels that a program's outputs meet, looked at before the call that may fail on them."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.step_trace import DATA, MODEL, TracedCall, batch_size, tensors_in
from lightning_tuning.functional.wiring.wiring_outputs import Labels

_SECONDS = 2.0
_LOSSES = (functional.cross_entropy, functional.nll_loss)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Met:
    """Labels at a function; ``valid`` counts out those that the loss ignores."""

    name: str
    classes: int
    given: Tensor
    ignored: int | None
    per_example: bool

    def outside(self, labels: Tensor) -> Tensor:
        labels = labels if self.ignored is None else labels[labels != self.ignored]
        return (labels < 0) | (labels >= self.classes)


class LabelsMet:
    """Notes labels before a call, and stops the step where one has no output.

    On a GPU the call itself would end the process' use of the device.
    """

    def __init__(self) -> None:
        self.met: list[_Met] = []

    def __call__(self, call: TracedCall) -> None:
        """Look at the call's labels."""
        met = _labels_of_loss(call) or _labels_of_one_hot(call) or _labels_of_index(call)
        if met is None:
            return
        self.met.append(met)
        if bool(met.outside(met.given).any()):
            raise IndexError(f"{met.name} was given labels that have no output")


def _labels_of_loss(call: TracedCall) -> _Met | None:
    if call.function not in _LOSSES:
        return None
    given = inspect.signature(call.function).bind(*call.args, **call.kwargs).arguments
    output, target = given["input"], given["target"]
    if target.is_floating_point() or output.dim() == 0:
        return None
    return _Met(
        name=call.name,
        classes=output.size(0 if output.dim() == 1 else 1),
        given=target.detach(),
        ignored=given.get("ignore_index", -100),
        per_example=target.dim() == 1
        and output.dim() == 2
        and len(target) == batch_size(call.trace.batch),
    )


def _labels_of_one_hot(call: TracedCall) -> _Met | None:
    labels, classes = call.argument(0, "tensor"), call.argument(1, "num_classes")
    if call.name != "one_hot" or not isinstance(classes, int) or classes < 1:
        return None
    if call.trace.marks(labels) != DATA or labels.dim() != 1:
        return None
    return _Met(
        name="one_hot",
        classes=classes,
        given=labels.detach(),
        ignored=None,
        per_example=len(labels) == batch_size(call.trace.batch),
    )


def _labels_of_index(call: TracedCall) -> _Met | None:
    """Labels that pick from outputs: ``gather(1, y[:, None])``, ``logp[arange, y]``."""
    source = call.argument(0, "input")
    if call.name == "gather":
        dim, labels = call.argument(1, "dim"), call.argument(2, "index")
    elif call.name == "getitem" and isinstance(call.args[1], tuple) and len(call.args[1]) == 2:
        dim, labels = 1, call.args[1][1]
    else:
        return None
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.long, torch.int):
        return None
    marks = call.trace.marks
    if marks(source) != MODEL | DATA or marks(labels) != DATA or source.dim() < 2:
        return None
    return _Met(
        name=call.name,
        classes=source.size(dim),
        given=labels.detach(),
        ignored=None,
        per_example=False,
    )


def labels_seen(probe: Probe, met: LabelsMet, batches: list[Any]) -> tuple[Labels, ...]:
    """Return what the labels of a pass are, for each function that took some.

    Args:
        probe: The probe.
        met: What was met in single steps.
        batches: The batches of those steps, on the device.
    """
    found = []
    for name in dict.fromkeys((m.name, m.classes) for m in met.met):
        group = [m for m in met.met if (m.name, m.classes) == name]
        parts = [m.given.flatten() for m in group]
        index = _place_in_batch(group, batches)
        if index is not None and group[0].per_example:
            parts = list(_of_the_pass(probe, index)) or parts
        labels = torch.cat([part.cpu() for part in parts])
        kept = labels if group[0].ignored is None else labels[labels != group[0].ignored]
        if len(kept) == 0:
            continue
        found.append(
            Labels(
                where=name[0],
                classes=name[1],
                lowest=int(kept.min()),
                highest=int(kept.max()),
                outside=int(group[0].outside(labels).sum()),
                examples=len(kept),
                per_example=group[0].per_example,
            )
        )
    return tuple(found)


def _place_in_batch(group: list[_Met], batches: list[Any]) -> int | None:
    """Return which tensor of a batch the labels are, by their values in every batch."""
    if len(group) != len(batches):
        return None
    places: set[int] | None = None
    for met, batch in zip(group, batches, strict=True):
        same = {
            place
            for place, tensor in enumerate(tensors_in(batch))
            if tensor.dim() <= 2
            and tensor.numel() == met.given.numel()
            and bool((tensor.flatten() == met.given.flatten()).all())
        }
        places = same if places is None else places & same
    return min(places) if places else None


def _of_the_pass(probe: Probe, place: int) -> Iterator[Tensor]:
    """Yield the labels of one pass, for as long as it is quick."""
    probe.rewind()
    started = time.monotonic()
    for batch in probe.box._batches.one_pass(epoch=probe.trainer.current_epoch):
        tensors = list(tensors_in(batch.data))
        if place < len(tensors):
            yield tensors[place].flatten().long()
        if time.monotonic() - started > _SECONDS:
            break
    probe.rewind()
