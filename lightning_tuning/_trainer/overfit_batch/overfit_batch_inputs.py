"""Which tensors of a batch are inputs of the network, and whether it heeds them at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.examples import leaves
from lightning_tuning._trainer.overfit_batch.overfit_batch_data import with_leaves
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning.functional.loss_calls import LossCall

_GAINS = (1.0, 4.0)
"""Of the random weights: through small ones a deep network passes on too little to be seen."""
_MANY = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What each tensor of a batch does.

    Attributes:
        inputs: Numbers of those that change the network's output and not the targets.
        targets: Numbers of those that change the targets.
        idle: Numbers of those that differ between examples and change neither.
        heeded: Whether any tensor of the batch changes the output.
        own_targets: Whether targets depend on the weights, as a teacher's do.
    """

    inputs: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()
    heeded: bool = True
    own_targets: bool = False

    @property
    def ignored(self) -> bool:
        """Whether there are inputs and targets, and the network heeds nothing, at any weights."""
        return not self.heeded and bool(self.idle) and bool(self.targets) and not self.own_targets


class RandomWeights:
    """Random numbers for weights while it is active; who uses it puts the old ones back.

    Args:
        module: The module.
        gain: Each weight is drawn from N(0, gain^2 / fan-in).
    """

    def __init__(self, module: nn.Module, gain: float) -> None:
        self._module = module
        self._gain = gain

    def __enter__(self) -> RandomWeights:
        with torch.no_grad():
            for parameter in self._module.parameters():
                if parameter.is_floating_point():
                    fan_in = parameter.numel() / max(parameter.size(0), 1) if parameter.dim() else 1
                    parameter.normal_(std=self._gain / max(fan_in, 1.0) ** 0.5)
        return self

    def __exit__(self, *_: object) -> None:
        pass


def inputs_of(probe: Probe, batch: ProbeBatch) -> Inputs | None:
    """Find out what each tensor of a batch does, with random weights in the network.

    Each tensor in turn is exchanged between examples; what then becomes of the arguments of the
    loss functions is compared bit for bit.

    Returns:
        None where it is unclear: the step calls no known loss function, or its tensors are
        out of sight or too many, or its output is the same whatever the weights are.
    """
    count = len(leaves(batch.data))
    if not 0 < count <= _MANY:
        return None
    try:
        as_they_are = _seen(probe, batch, None)
        at_random = [_seen(probe, batch, gain) for gain in _GAINS]
    except StepError:
        return None
    if not at_random[0] or _same(at_random[0], at_random[1], "input"):
        return None  # an output that weights do not change either says nothing of inputs
    changed = [_exchanged(probe, batch, number, at_random) for number in range(count)]
    outputs = {number for number, (output, _) in enumerate(changed) if output}
    targets = {number for number, (_, target) in enumerate(changed) if target}
    idle = {
        number
        for number, leaf in enumerate(leaves(batch.data))
        if number not in outputs | targets and leaf.numel() and not torch.equal(leaf, _rolled(leaf))
    }
    return Inputs(
        inputs=tuple(sorted(outputs - targets)),
        targets=tuple(sorted(targets)),
        idle=tuple(sorted(idle)),
        heeded=bool(outputs),
        own_targets=not _same(as_they_are, at_random[0], "target"),
    )


def _exchanged(
    probe: Probe, batch: ProbeBatch, number: int, known: list[tuple[LossCall, ...]]
) -> tuple[bool, bool]:
    """Return whether the outputs and the targets change with one tensor; yes where it raises."""
    other = batch._replace(data=with_leaves(batch.data, _rolled, [number]))
    output = target = False
    for gain, calls in zip(_GAINS, known, strict=True):
        try:
            seen = _seen(probe, other, gain)
        except StepError:
            return True, False
        output |= not _same(calls, seen, "input")
        target |= not _same(calls, seen, "target")
    return output, target


def _seen(probe: Probe, batch: ProbeBatch, gain: float | None) -> tuple[LossCall, ...]:
    watch: list[Any] = [] if gain is None else [RandomWeights(probe.module, gain)]
    calls = probe.step(batch, mode="silent", seed=1, watch=watch).calls
    return tuple(call for call in calls if call.trained)


def _same(ones: tuple[LossCall, ...], others: tuple[LossCall, ...], which: str) -> bool:
    pairs = [
        (getattr(one, which), getattr(other, which))
        for one, other in zip(ones, others, strict=False)
    ]
    nan_is_nan = which == "target"  # where it may stand on purpose
    return len(ones) == len(others) and all(_equal(*pair, nan_is_nan) for pair in pairs)


def _equal(one: Tensor, other: Tensor, nan_is_nan: bool) -> bool:
    if one.shape != other.shape:
        return False
    equal = one == other
    if nan_is_nan:
        equal |= one.isnan() & other.isnan()
    return bool(equal.all())


def _rolled(leaf: Tensor) -> Tensor:
    """Give each example the values of its neighbour."""
    if leaf.dim() and leaf.size(0) > 1:
        return leaf.roll(1, 0)
    return leaf.flatten().roll(1).reshape(leaf.shape)


def features_of(data: Any, inputs: Inputs | None) -> int | None:
    """Return how many numbers the inputs of one example are; None where that can't be told."""
    if inputs is None or not inputs.inputs:
        return None
    chosen = [leaf for number, leaf in enumerate(leaves(data)) if number in inputs.inputs]
    return sum(leaf.numel() // max(leaf.size(0), 1) if leaf.dim() else 1 for leaf in chosen)


def same_inputs(data: Any, inputs: Inputs | None) -> Tensor | None:
    """Return for each example the number of the group of those with the same inputs.

    Returns:
        Numbers below the number of examples, shape (samples,); None where that can't be told.
    """
    found = leaves(data)
    chosen = [found[number] for number in inputs.inputs] if inputs is not None else []
    sizes = {leaf.size(0) if leaf.dim() else 0 for leaf in chosen}
    if len(sizes) != 1 or 0 in sizes:
        return None
    columns = [
        torch.unique(leaf.detach().cpu().flatten(1).double(), dim=0, return_inverse=True)[1]
        if leaf.dim() > 1
        else torch.unique(leaf.detach().cpu().double(), return_inverse=True)[1]
        for leaf in chosen
    ]
    groups: Tensor = torch.unique(torch.stack(columns, 1), dim=0, return_inverse=True)[1]
    return groups
