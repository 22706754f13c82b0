"""Replaces single elements of sequences, and looks at the times whose outputs change."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.examples import Examples, leaves, take_examples, with_leaves
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.observed import observe, unchanged
from lightning_tuning._trainer.wiring.small_batches import small_batch
from lightning_tuning._trainer.wiring.time_layouts import SequenceTrial, TimeLayout, time_layouts
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.sequence_reach import Reach, ahead, last_is_no_input, shift
from lightning_tuning.functional.wiring.wiring_future import FutureEvidence, future_leakage

_SHORTEST = 4
_MOST_DIMS = 3
_MOST_SEQUENCES = 4
_NO_SEQUENCE = "no sequence of the batch predicts itself"


class _Place(NamedTuple):
    """A dimension of a leaf that may be time."""

    leaf: int
    dim: int


def measure(probe: Probe) -> FutureEvidence:
    """Replace elements of each sequence of a small batch, in all examples at once.

    Raises:
        CannotProbeError: Examples can't be told apart, or the step can't be repeated.
    """
    examples, mode = small_batch(probe, take_examples(probe))
    blank = SequenceTrial(
        probe=probe, examples=examples, mode=mode, base=observe(probe, examples.batch, mode=mode)
    )
    setting = dataclasses.replace(blank, base=blank.observe(examples.batch))
    for number in range(len(setting.base.comparisons)):
        layouts = time_layouts(setting, number)
        reaches = {
            (place, layout): _reach(setting, place, number, layout)
            for layout in layouts
            for place in _places(setting)
        }
        for (place, layout), reach in reaches.items():
            found = _of_one(setting, place, reach)
            if found is None:
                found = _of_two(setting, place, layout, reaches)
            if found is not None:
                return found
    return FutureEvidence(why_not=_NO_SEQUENCE)


def _places(setting: SequenceTrial) -> list[_Place]:
    """Return the dimensions of the batch that may be time."""
    found = []
    for i, leaf in enumerate(leaves(setting.examples.batch.data)):
        own = setting.examples.dims[i]
        if own is None or leaf.dim() > _MOST_DIMS:
            continue
        found += [
            _Place(i, dim)
            for dim in range(leaf.dim())
            if dim != own and leaf.size(dim) >= _SHORTEST
        ]
    return found[:_MOST_SEQUENCES]


def _reach(setting: SequenceTrial, place: _Place, number: int, layout: TimeLayout) -> Reach:
    length = leaves(setting.examples.batch.data)[place.leaf].size(place.dim)
    inputs: dict[int, frozenset[int]] = {}
    targets: dict[int, frozenset[int]] = {}
    middle = length // 2
    for at in sorted({0, 1, middle, middle + 1, length - 2, length - 1} & set(range(length))):
        inputs[at] = targets[at] = frozenset()
        changed = setting.observe(_exchanged(setting.examples, place, at))
        if not setting.base.same_course(changed):
            continue
        reached = setting.base.comparisons[number].reached(changed.comparisons[number])
        if reached is not None:
            inputs[at], targets[at] = (_times(mask, layout) for mask in reached)
    return Reach(length=length, inputs=inputs, targets=targets)


def _times(mask: Tensor, layout: TimeLayout) -> frozenset[int]:
    each = mask.reshape(layout.shape).movedim(layout.time_dim, 0).flatten(1).any(1)
    return frozenset(each.nonzero().flatten().tolist())


def _exchanged(examples: Examples, place: _Place, at: int) -> ProbeBatch:
    """Return the batch with the elements at one time moved on to other examples."""
    tensors = leaves(examples.batch.data)
    own = examples.dims[place.leaf]
    assert own is not None
    leaf = tensors[place.leaf].clone()
    element = leaf.select(place.dim, at)
    along = own - (own > place.dim)
    versions = [element.roll(by, along) for by in range(1, examples.size)]
    best = max(versions, key=lambda version: int((version != element).sum()))
    element.copy_(best.clone())
    tensors[place.leaf] = leaf
    return examples.batch._replace(data=with_leaves(examples.batch.data, tensors))


def _of_one(setting: SequenceTrial, place: _Place, reach: Reach) -> FutureEvidence | None:
    """Judge a sequence that is input and target."""
    found = ahead(reach)
    if found is None:
        return None
    if found.steps > 0 or last_is_no_input(reach):
        return FutureEvidence(steps=found.steps, tested=found.tested, known=found.known)
    if found.causal and found.known == found.tested and _repeats(setting, place):
        return FutureEvidence(tested=found.tested, known=found.known, copies=True)
    return None


def _of_two(
    setting: SequenceTrial,
    place: _Place,
    layout: TimeLayout,
    reaches: dict[tuple[_Place, TimeLayout], Reach],
) -> FutureEvidence | None:
    """Judge a sequence of targets that is, in the data, the future of a sequence of inputs."""
    aims = reaches[place, layout]
    if any(aims.inputs.values()) or not any(aims.targets.values()):
        return None
    tensors = leaves(setting.examples.batch.data)
    for (other, there), reach in reaches.items():
        if there != layout or any(reach.targets.values()) or not any(reach.inputs.values()):
            continue
        steps = shift(
            _in_time(setting, other, tensors[other.leaf]),
            _in_time(setting, place, tensors[place.leaf]),
        )
        times = {at: min(t) for at, t in aims.targets.items() if len(t) == 1}
        lags = {at - time for at, time in times.items()}
        if steps is None or len(lags) != 1:
            continue
        total = steps + min(lags)
        aimed = {
            at: frozenset({at - total} if 0 <= at - total < aims.length else ())
            for at in reach.inputs
        }
        found = ahead(Reach(length=reach.length, inputs=reach.inputs, targets=aimed))
        if found is not None and found.steps > 0:
            return FutureEvidence(steps=found.steps, tested=found.tested, known=found.known)
        if (
            found is not None
            and found.causal
            and found.known == found.tested
            and _repeats(setting, other)
        ):
            return FutureEvidence(tested=found.tested, known=found.known, copies=True)
    return None


def _in_time(setting: SequenceTrial, place: _Place, leaf: Tensor) -> Tensor:
    own = setting.examples.dims[place.leaf]
    assert own is not None
    return leaf.movedim((own, place.dim), (0, 1))


def _repeats(setting: SequenceTrial, place: _Place) -> bool:
    """Whether tokens go into the model as they are: no noise, no mask."""
    leaf = leaves(setting.examples.batch.data)[place.leaf]
    if leaf.is_floating_point() or leaf.dtype == torch.bool:
        return False
    one, other = (
        setting.observe(setting.examples.batch, mode="silent", seed=seed) for seed in (1, 2)
    )
    return len(one.comparisons) == len(other.comparisons) and all(
        unchanged(a.output, b.output) and unchanged(a.target, b.target)
        for a, b in zip(one.comparisons, other.comparisons, strict=True)
    )


TOPIC = Topic(measure=measure, rules={"future_leakage": future_leakage})
