"""Where in time the elements of a sequence are inputs, and where they are targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

Times = Mapping[int, frozenset[int]]
_FEWEST = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reach:
    """What the elements of a sequence change, by their place in it.

    Attributes:
        length: Of the sequence.
        inputs: The times of the outputs that each of some elements changes.
        targets: The times of the targets that it changes.
    """

    length: int
    inputs: Times
    targets: Times


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ahead:
    """How far the targets are ahead of the outputs, and which outputs know their target.

    Attributes:
        steps: So many; 0 where the target is the element that stands at the output's own place.
        tested: How many elements are both an input and a target.
        known: How many of these reach the very output that is to predict them.
        causal: Whether no output depends on a later element, and some on an earlier one.
    """

    steps: int
    tested: int
    known: int
    causal: bool


def ahead(reach: Reach) -> Ahead | None:
    """Return how a sequence predicts itself; None where it does not.

    Example:
        >>> places = (0, 1, 2, 3)
        >>> targets = {s: frozenset({s - 1} if s else ()) for s in places}
        >>> future = {s: frozenset(range(s, 3)) for s in places}
        >>> ahead(Reach(length=4, inputs=future, targets=targets)).known
        0
        >>> everywhere = {s: frozenset(range(3) if s < 3 else ()) for s in places}
        >>> ahead(Reach(length=4, inputs=everywhere, targets=targets)).known
        2
    """
    aimed = {place: times for place, times in reach.targets.items() if times}
    if len(aimed) < 3 or any(len(times) != 1 for times in aimed.values()):
        return None
    offsets = {place - min(times) for place, times in aimed.items()}
    if len(offsets) != 1 or min(offsets) < 0:
        return None
    steps = min(offsets)
    # a prompt may come first that is no target; the middle alone is what a convolution leaves over
    expected = [place for place in reach.targets if place >= min(aimed)]
    if steps > 0 and any(place not in aimed for place in expected):
        return None
    if steps > 1 and reach.inputs[reach.length - 1]:  # the first outputs were left out
        return None
    both = [place for place in aimed if reach.inputs[place]]
    if len(both) < _FEWEST:
        return None
    later = [min(reach.inputs[place]) >= place for place in both]
    remembered = any(max(reach.inputs[place]) > place for place in both)
    return Ahead(
        steps=steps,
        tested=len(both),
        known=sum(aimed[place] <= reach.inputs[place] for place in both),
        causal=all(later) and remembered,
    )


def last_is_no_input(reach: Reach) -> bool:
    """Whether the last element alone is only a target, as where a start token is put in front."""
    last = reach.length - 1
    return (
        not reach.inputs[last]
        and bool(reach.targets[last])
        and all(times for place, times in reach.inputs.items() if place < last)
    )


def shift(inputs: Tensor, targets: Tensor, *, most: int = 2) -> int | None:
    """Return by how many steps targets are their inputs' future; None where they are not.

    Both have examples first and time second. Targets may be one of the inputs' features; negative
    integers stand for ignored targets.

    Example:
        >>> x = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
        >>> shift(x[:, :-1], x[:, 1:])
        1
    """
    if targets.dim() == inputs.dim() + 1 and targets.size(-1) == 1:
        targets = targets.squeeze(-1)
    length = min(inputs.size(1), targets.size(1))
    if inputs.size(0) != targets.size(0) or inputs.is_floating_point() != (
        targets.is_floating_point()
    ):
        return None
    for steps in range(most + 1):
        future, aimed = inputs[:, steps:length], targets[:, : length - steps]
        if future.dim() == aimed.dim() and future.shape == aimed.shape:
            features = [future]
        elif future.dim() == 3 and aimed.shape in (future.shape[:2], (*future.shape[:2], 1)):
            aimed = aimed.reshape(future.shape[:2])
            features = list(future.unbind(-1))
        else:
            return None
        counts = torch.ones_like(aimed, dtype=torch.bool)
        if not aimed.is_floating_point():
            counts = aimed >= 0
        if not bool(counts.any()):
            return None
        if any(bool((feature == aimed)[counts].all()) for feature in features):
            return steps
    return None
