"""Tests whether a network is one affine function, and whether that hurts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.examples import Examples, leaves, take_examples, with_leaves
from lightning_tuning._trainer.ordinary_run import ordinary_run, within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_mode import Mode
from lightning_tuning._trainer.probe_results import Run
from lightning_tuning._trainer.wiring.discarded import DiscardedActivations
from lightning_tuning._trainer.wiring.live_networks import NoisyWeights, scores
from lightning_tuning._trainer.wiring.observed import Observed, observe
from lightning_tuning._trainer.wiring.small_batches import small_batch
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning._trainer.wiring.weight_layers import Activated, WeightLayers
from lightning_tuning.functional.wiring.wiring_structure import (
    StructureEvidence,
    missing_nonlinearity,
)

_STEPS = 300
_BATCHES = 40
_ROUNDINGS = 200


class _Affinity(NamedTuple):
    error: float
    tolerance: float


class _Network(NamedTuple):
    layers: int
    widest: int
    needed: int
    hidden: tuple[Tensor, ...]


def measure(probe: Probe) -> StructureEvidence:
    """Look for lost activations; ask an affine network what activations would give.

    Raises:
        CannotProbeError: The program can't be put back.
    """
    discarded = _discarded(probe)
    if discarded:
        return StructureEvidence(discarded=discarded[0], discarded_calls=len(discarded))
    examples, mode = small_batch(probe, take_examples(probe))
    affinity = _affinity(probe, examples, mode)
    if affinity is None:
        return StructureEvidence(why_not="the outputs do not follow floating-point inputs")
    network = _network(probe, examples, mode)
    evidence = StructureEvidence(
        error=affinity.error,
        tolerance=affinity.tolerance,
        layers=network.layers,
        widest=network.widest,
        needed=network.needed,
    )
    return _with_rescue(probe, evidence, network.hidden) if evidence.idle_layers else evidence


def _discarded(probe: Probe) -> list[str]:
    """Return the activations that are thrown away on each of two batches."""
    found: list[list[str]] = []
    for batch in probe.batches(2):
        watch = DiscardedActivations()
        probe.step(batch, watch=[watch])
        found.append(watch.names)
    return found[0] if found and all(found) else []


def _affinity(probe: Probe, examples: Examples, mode: Mode) -> _Affinity | None:
    """Return how far f((a + b) / 2) is from the middle of f(a) and f(b)."""
    a, b = examples.batch, examples.renewed(range(len(examples.dims)))
    inputs = _inputs(probe, examples, mode)
    if not inputs:
        return None
    b = _only(a, b, inputs)
    a = _even(a, inputs)
    b = _even(b, inputs)
    outputs = [scores(_noisy(probe, batch, mode)) for batch in (a, b, _middle(a, b, inputs))]
    error, tolerance, spread = 0.0, 0.0, 0.0
    for fa, fb, fm in zip(*outputs, strict=True):
        if fa.shape != fb.shape or fa.shape != fm.shape or not fa.is_floating_point():
            return None
        size = float((fa - fb).abs().max())
        spread = max(spread, size)
        if size > 0:
            off = float((fm - (fa + fb) / 2).abs().max()) / size
            error = max(error, off if math.isfinite(off) else math.inf)
        tolerance = max(tolerance, _ROUNDINGS * torch.finfo(fa.dtype).eps)
    return _Affinity(error, tolerance) if spread > 0 else None


def _inputs(probe: Probe, examples: Examples, mode: Mode) -> list[int]:
    """Return the leaves that change the outputs; none where one of them holds indices."""
    base = scores(_noisy(probe, examples.batch, mode))
    found = []
    tensors = leaves(examples.batch.data)
    for i, dim in enumerate(examples.dims):
        if dim is None:
            continue
        other = scores(_noisy(probe, examples.renewed([i]), mode))
        if len(other) != len(base) or any(
            x.shape != y.shape or not torch.equal(x, y) for x, y in zip(base, other, strict=True)
        ):
            if not (tensors[i].is_floating_point() or tensors[i].dtype == torch.uint8):
                return []
            found.append(i)
    return found


def _noisy(probe: Probe, batch: ProbeBatch, mode: Mode) -> Observed:
    return observe(probe, batch, mode=mode, watch=[NoisyWeights(probe.module)])


def _only(batch: ProbeBatch, other: ProbeBatch, which: Collection[int]) -> ProbeBatch:
    """Return a batch with some of its leaves taken from another."""
    pairs = zip(leaves(batch.data), leaves(other.data), strict=True)
    tensors = [theirs if i in which else own for i, (own, theirs) in enumerate(pairs)]
    return batch._replace(data=with_leaves(batch.data, tensors))


def _even(batch: ProbeBatch, which: Collection[int]) -> ProbeBatch:
    """Return a batch whose integers can be halved."""
    tensors = [
        leaf // 2 * 2 if i in which and leaf.dtype == torch.uint8 else leaf
        for i, leaf in enumerate(leaves(batch.data))
    ]
    return batch._replace(data=with_leaves(batch.data, tensors))


def _middle(a: ProbeBatch, b: ProbeBatch, which: Collection[int]) -> ProbeBatch:
    tensors = [
        _half(one) + _half(two) if i in which else one
        for i, (one, two) in enumerate(zip(leaves(a.data), leaves(b.data), strict=True))
    ]
    return a._replace(data=with_leaves(a.data, tensors))


def _half(leaf: Tensor) -> Tensor:
    return leaf / 2 if leaf.is_floating_point() else leaf // 2


def _network(probe: Probe, examples: Examples, mode: Mode) -> _Network:
    products = WeightLayers()
    observe(probe, examples.batch, mode=mode, watch=[products])
    chain = products.chain()
    if len(chain) < 2:
        return _Network(len(chain), 0, 0, ())
    hidden = chain[:-1]
    return _Network(
        layers=len(chain),
        widest=max(layer.made for layer in hidden) // examples.size,
        needed=min(chain[0].given, chain[-1].made) // examples.size,
        hidden=tuple(products.weights[layer.weight] for layer in hidden),
    )


def _with_rescue(
    probe: Probe, evidence: StructureEvidence, hidden: Collection[Tensor]
) -> StructureEvidence:
    """Train with and without activations, and judge by examples that were not trained on."""
    batches = probe.batches(_BATCHES)
    trained = [batch for i, batch in enumerate(batches) if i % 4 != 3]
    unseen = [batch for i, batch in enumerate(batches) if i % 4 == 3]
    if not unseen:
        return evidence

    def train() -> Run:
        return probe.run(_STEPS, batches=trained, judged_by=unseen, until=within_time(probe))

    plain = train()
    with Activated(hidden):
        rescued = train()
    return dataclasses.replace(
        evidence,
        before=plain.before,
        chance=ordinary_run(probe).chance,
        linear=plain.after,
        rescued=rescued.after,
    )


TOPIC = Topic(measure=measure, rules={"missing_nonlinearity": missing_nonlinearity})
