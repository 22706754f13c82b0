"""Gives the network other inputs, and looks whether its outputs change."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.examples import Examples, leaves, take_examples
from lightning_tuning._trainer.probe import Probe, Watch
from lightning_tuning._trainer.probe_mode import Mode
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.wiring.live_networks import NoisyWeights, leaky_units, scores
from lightning_tuning._trainer.wiring.observed import Observed, observe, unchanged
from lightning_tuning._trainer.wiring.small_batches import small_batch
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.wiring.wiring_inputs import (
    InputEvidence,
    constant_input,
    input_ignored,
)

_MOST_BATCHES = 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """A step with the weights as they are, and one with noise on them."""

    plain: Observed
    noisy: Observed
    fed: tuple[Tensor, ...]

    def outputs(self) -> list[Tensor]:
        """Return all that the network gave."""
        return [*scores(self.plain), *scores(self.noisy)]

    def losses(self) -> list[Tensor | None]:
        return [self.plain.loss, self.noisy.loss]

    def targets(self) -> list[Tensor | None]:
        return [each.target for each in self.plain.comparisons]


def measure(probe: Probe) -> InputEvidence:
    """Replace inputs by those of other examples.

    Raises:
        CannotProbeError: Examples can't be told apart, or the step can't be repeated.
    """
    whole = take_examples(probe)
    examples, mode = small_batch(probe, whole)
    base = _see(probe, examples.batch, mode)
    if not all(bool(t.isfinite().all()) for t in base.outputs()):
        return InputEvidence(why_not="the outputs are not finite")
    renewed = _see(probe, examples.renewed(range(len(examples.dims))), mode)
    if base.plain.comparisons and not _alike(base.outputs(), renewed.outputs()):
        return InputEvidence(examples=examples.size)
    if _felt_within_a_batch(probe, examples):
        return InputEvidence(examples=examples.size)
    changes = _Changes.of(probe, examples, mode, base)
    constant = [i for i in changes.judged if examples.constant(i)]
    trial = _Trial(probe, examples, mode)
    if constant and trial.only_constant_inputs(base, changes, constant):
        several = take_examples(probe, num_batches=_MOST_BATCHES)
        if all(several.constant(i) for i in constant):
            return InputEvidence(examples=len(several.others), constant=True)
    if not changes.has_target:
        return InputEvidence(why_not="no target of the loss is in the batch")
    ignored = changes.ignored(examples, base, constant)
    return InputEvidence(
        examples=examples.size,
        ignored=ignored,
        constant=ignored and _dies_before_the_first_layer(examples, base),
    )


def _felt_within_a_batch(probe: Probe, examples: Examples) -> bool:
    """Whether inputs have an effect where normalisation is by the batch.

    Many layers normalised by statistics that nobody measured yet let nothing through.
    """
    try:
        base, renewed = (
            [call.input for call in probe.step(batch, mode="silent", seed=1).calls]
            for batch in (examples.batch, examples.renewed(range(len(examples.dims))))
        )
    except StepError:
        return False
    return bool(base) and not _alike(base, renewed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Changes:
    """What changes when single leaves of the batch are renewed.

    Attributes:
        judged: The leaves that were renewed.
        outputs: Those that change what the network gives.
        targets: Those that change what it is compared with, or a loss written by hand.
        fed: Those that change what goes into a layer with parameters.
    """

    judged: tuple[int, ...]
    outputs: frozenset[int]
    targets: frozenset[int]
    fed: frozenset[int]
    by_hand: bool

    @classmethod
    def of(cls, probe: Probe, examples: Examples, mode: Mode, base: _Seen) -> _Changes:
        """Renew the leaves one by one."""
        judged, outputs, targets, fed = [], set(), set(), set()
        by_hand = not base.plain.comparisons
        for i, dim in enumerate(examples.dims):
            if dim is None:
                continue
            try:
                seen = _see(probe, examples.renewed([i]), mode)
            except StepError:  # leaves that belong together
                continue
            judged.append(i)
            if not _alike(base.outputs(), seen.outputs()):
                outputs.add(i)
            known = base.losses() if by_hand else base.targets()
            if not _alike(known, seen.losses() if by_hand else seen.targets()):
                targets.add(i)
            if not _alike(base.fed, seen.fed):
                fed.add(i)
        return cls(
            judged=tuple(judged),
            outputs=frozenset(outputs),
            targets=frozenset(targets),
            fed=frozenset(fed),
            by_hand=by_hand,
        )

    @property
    def has_target(self) -> bool:
        """Whether something is a target, and not fed into the network where that is not sure."""
        return bool(self.targets - self.fed if self.by_hand else self.targets)

    def ignored(self, examples: Examples, base: _Seen, constant: Sequence[int]) -> bool:
        """Whether the inputs have no effect."""
        if self.by_hand:
            # what a layer gives is not what the loss is made of
            return bool(self.fed) and not self.fed & self.targets
        if self.outputs or not base.plain.comparisons:
            return False
        tensors = leaves(examples.batch.data)
        # an integer for each example may be its number
        idle = [
            i
            for i in self.judged
            if i not in self.targets
            and i not in constant
            and (tensors[i].is_floating_point() or tensors[i].numel() > examples.size)
        ]
        return bool(self.fed) or (bool(idle) and None not in examples.dims)


class _Trial(NamedTuple):
    """A small batch, and how it is run."""

    probe: Probe
    examples: Examples
    mode: Mode

    def only_constant_inputs(self, base: _Seen, changes: _Changes, constant: Sequence[int]) -> bool:
        """Whether the only inputs are some that are the same for all examples."""
        if changes.outputs or not changes.has_target or None in self.examples.dims:
            return False
        if any(i in constant for i in changes.targets):
            return False
        return any(self._is_input(i, base, changes, constant) for i in constant)

    def _is_input(
        self, which: int, base: _Seen, changes: _Changes, constant: Sequence[int]
    ) -> bool:
        batch = self.examples.with_noise(which)
        if batch is None:  # nothing but targets is left
            return set(changes.judged) == set(constant) | changes.targets
        try:
            return not _alike(base.outputs(), _see(self.probe, batch, self.mode).outputs())
        except StepError:
            return False


def _dies_before_the_first_layer(examples: Examples, base: _Seen) -> bool:
    """Whether the first layer gets the same for all examples, and as much as an input has."""
    if not base.fed:
        return False
    first = base.fed[0]
    if first.dim() < 2 or first.size(0) != examples.size:
        return False
    sizes = {
        leaf.numel()
        for leaf, dim in zip(leaves(examples.batch.data), examples.dims, strict=True)
        if dim is not None
    }
    return first.numel() in sizes and bool((first == first[:1]).all())


def _see(probe: Probe, batch: ProbeBatch, mode: Mode) -> _Seen:
    layers = _LayerInputs(probe.module)
    plain = observe(probe, batch, mode=mode, watch=[layers, leaky_units()])
    watch: list[Watch] = [leaky_units(), NoisyWeights(probe.module)]
    noisy = observe(probe, batch, mode=mode, watch=watch)
    return _Seen(plain=plain, noisy=noisy, fed=tuple(layers.inputs))


def _alike(some: Iterable[Tensor | None], others: Iterable[Tensor | None]) -> bool:
    one, other = list(some), list(others)
    return len(one) == len(other) and all(unchanged(a, b) for a, b in zip(one, other, strict=True))


class _LayerInputs(contextlib.AbstractContextManager[None]):
    """Keeps what goes into each layer with parameters of its own, in the order of calls."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.inputs: list[Tensor] = []

    def __enter__(self) -> None:
        self._handles = [
            layer.register_forward_pre_hook(self._keep)
            for layer in self._module.modules()
            if any(True for _ in layer.parameters(recurse=False)) and layer is not self._module
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, _layer: nn.Module, inputs: Any) -> None:
        self.inputs += [tensor.detach() for tensor in leaves(inputs)[:1]]


TOPIC = Topic(
    measure=measure, rules={"input_ignored": input_ignored, "constant_input": constant_input}
)
