"""Replaces single examples of a batch, and looks at whose outputs change."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.examples import Examples, leaves, take_examples
from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_mode import Mode
from lightning_tuning._trainer.step_trace import Intercept
from lightning_tuning._trainer.wiring.observed import Observed, observe, unchanged
from lightning_tuning._trainer.wiring.small_batches import small_batches
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning._trainer.wiring.watched_steps import rescued
from lightning_tuning._trainer.wiring.wiring_layout import Reshapes, by_transpose, mixed_classes
from lightning_tuning.functional.batch_links import Reach, differs, links
from lightning_tuning.functional.wiring.wiring_examples import (
    HALF,
    ExampleEvidence,
    batch_leakage,
    dims_scrambled,
)
from lightning_tuning.functional.wiring.wiring_parameters import Rescue

_SEEDS = (1, 2)
_MOST_ROWS = 7


class _Setting(NamedTuple):
    probe: Probe
    examples: Examples
    mode: Mode


class _Found(NamedTuple):
    foreign: Tensor
    own: Tensor
    tested: Tensor


def measure(probe: Probe) -> ExampleEvidence:
    """Replace the examples of a small batch one by one.

    Raises:
        CannotProbeError: Examples can't be told apart, or the step can't be repeated.
    """
    whole = take_examples(probe)
    why_not = "the loss compares nothing with targets of single examples"
    for examples, mode in small_batches(probe, whole):
        setting = _Setting(probe, examples, mode)
        found = _by_comparisons(setting) or _by_network_output(setting)
        if found is not None and found.tested.any():
            evidence = _evidence(setting, found)
            reshapes = Reshapes(examples.size)
            observe(probe, examples.batch, mode=mode, watch=[reshapes])
            exchanged = reshapes.exchanged and not (reshapes.found or evidence.leaks)
            worth = exchanged and _learns_little(probe)
            return dataclasses.replace(
                evidence,
                reshaped=reshapes.found,
                transposed=_transposed(probe) if worth else None,
            )
    return ExampleEvidence(tested=0, leaking=0, strangers=0, reached=0, why_not=why_not)


def _transposed(probe: Probe) -> Rescue | None:
    # around the whole of it, since it is judged by what the exchange gives as well
    with Intercept(by_transpose):
        return rescued(probe, True)


def _learns_little(probe: Probe) -> bool:
    ordinary = ordinary_run(probe)
    return ordinary.learns_less_than(HALF)


def _evidence(setting: _Setting, found: _Found) -> ExampleEvidence:
    probe, examples, mode = setting
    later = torch.ones(found.foreign.shape[:2], dtype=torch.bool).triu(1)
    leaking = found.foreign.any(1) & found.tested
    return ExampleEvidence(
        tested=int(found.tested.sum()),
        leaking=int(leaking.sum()),
        strangers=int((leaking & ~found.own).sum()),
        reached=int(found.foreign.sum(1).max()),
        mixed_classes=mixed_classes(probe, examples.batch, mode),
        in_time=not bool((found.foreign & ~later).any()) and _reads_in_order(probe),
    )


def _reads_in_order(probe: Probe) -> bool:
    loader = probe.trainer.fit_loop._combined_loader
    samplers = [getattr(each, "sampler", None) for each in getattr(loader, "flattened", [])]
    return any(isinstance(sampler, SequentialSampler) for sampler in samplers)


def _by_comparisons(setting: _Setting) -> _Found | None:
    """Judge by what torch's loss functions compared; None where they compare no examples."""
    everywhere: list[Tensor] = []
    own: Tensor | None = None
    tested: Tensor | None = None
    for seed in _SEEDS:
        base = observe(setting.probe, setting.examples.batch, mode=setting.mode, seed=seed)
        judged = [
            i for i, c in enumerate(base.comparisons) if not c.pairs_up(setting.examples.size)
        ]
        if not judged:
            return None
        reaches = _reaches(setting, base, judged, seed)
        foreign, mine = links(reaches)
        everywhere.append(foreign)
        sits = torch.stack([torch.stack([t.any() for t in r.targets]).any() for r in reaches]).cpu()
        own = mine.any(0) if own is None else own | mine.any(0)
        tested = sits if tested is None else tested & sits
    assert own is not None
    assert tested is not None
    if len({foreign.shape for foreign in everywhere}) > 1:
        return None
    return _Found(torch.stack(everywhere).all(0).any(0), own, tested)


def _reaches(setting: _Setting, base: Observed, judged: list[int], seed: int) -> list[Reach]:
    """Return what each replaced example changed; nothing where one changed the step's course."""
    examples = setting.examples
    reaches: list[Reach] = []
    for row in range(min(examples.size, _MOST_ROWS)):
        # targets made of two examples may need a certain other example to change
        doubled = [examples.doubled(row, row + 1), examples.doubled(row, row - 1)]
        batches = [examples.replaced(row), *doubled]
        seen = [
            base if batch is None else observe(setting.probe, batch, mode=setting.mode, seed=seed)
            for batch in batches
        ]
        changes = [_changes(base, each, judged) for each in seen]
        reaches.append(
            Reach(
                outputs=tuple(output for output, _ in changes[0]),
                targets=tuple(
                    torch.stack([change[i][1] for change in changes]).any(0)
                    for i in range(len(judged))
                ),
            )
        )
    return reaches


def _changes(base: Observed, changed: Observed, judged: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Return which outputs and targets changed, for each comparison that is judged."""
    same = changed if base.same_course(changed) else base
    pairs = [base.comparisons[i].reached(same.comparisons[i]) for i in judged]
    known = [pair for pair in pairs if pair is not None]
    return known if len(known) == len(pairs) else _changes(base, base, judged)


def _by_network_output(setting: _Setting) -> _Found | None:
    """Judge by the rows of what the network gave, where the loss is written by hand.

    Programs without targets may mix examples on purpose, and those of several optimizers too.
    """
    probe, examples = setting.probe, setting.examples
    base = observe(probe, examples.batch, mode=setting.mode)
    if base.comparisons or base.output is None or len(probe.trainer.optimizers) != 1:
        return None
    counts = [n for n in base.output.shape if n in (examples.size, 2 * examples.size)]
    if counts != [examples.size] or not _has_target(setting, base):
        return None
    dim = base.output.shape.index(examples.size)
    rows = range(min(examples.size, _MOST_ROWS))
    matrix = torch.zeros(len(rows), examples.size, dtype=torch.bool)
    for row in rows:
        batch = examples.replaced(row)
        if batch is None:
            continue
        changed = observe(probe, batch, mode=setting.mode)
        if changed.output is None or changed.output.shape != base.output.shape:
            continue
        if base.same_course(changed):
            different = differs(base.output, changed.output).movedim(dim, 0)
            matrix[row] = different.reshape(examples.size, -1).any(1).cpu()
    square = matrix[:, : len(rows)]
    own = square.diagonal().clone()
    return _Found(square & ~torch.eye(len(rows), dtype=torch.bool), own, matrix.any(1))


def _has_target(setting: _Setting, base: Observed) -> bool:
    """Whether something in the batch changes the loss and not the output."""
    for i in range(len(leaves(setting.examples.batch.data))):
        if setting.examples.dims[i] is None:
            continue
        batch = setting.examples.renewed([i])
        try:
            changed = observe(setting.probe, batch, mode=setting.mode)
        except CannotProbeError:
            continue
        if unchanged(base.output, changed.output) and not unchanged(base.loss, changed.loss):
            return True
    return False


TOPIC = Topic(
    measure=measure, rules={"batch_leakage": batch_leakage, "dims_scrambled": dims_scrambled}
)
