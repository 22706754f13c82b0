"""Looks for values that stand for failed readings, and trains without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_tuning._trainer.changed_batches import changed
from lightning_tuning._trainer.ordinary_run import STEPS, within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.data_leaves import first_pass, leaves
from lightning_tuning.functional.repeated_extremes import RepeatedExtremes, repeated_extremes
from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.wiring.wiring_signal import FailedReadings

_BATCHES = 200
_SECONDS = 2.0
_VALUES = 4_000_000
_JUDGES = 4


def failed_readings(probe: Probe, chance: float | None) -> FailedReadings | None:
    """Return what repeats far from everything else in the data, and what it does to training.

    Both trainings are judged by the same batches, without these values. Among targets a rare
    event may have such a number rightly, so that there it must be one that people write for what
    is missing.

    Args:
        probe: The probe.
        chance: The loss at chance, where it is known.
    """
    found = _found(probe)
    if not found:
        return None
    where = max(found, key=lambda path: found[path].count)
    worst = found[where]

    def fill(data: Any) -> Any:
        return _filled(data, found)

    judges = [changed(batch, fill) for batch in probe.batches(_JUDGES)]
    plain = probe.run(STEPS, judged_by=judges, until=within_time(probe))
    filled = probe.run(STEPS, change=fill, until=within_time(probe))
    return FailedReadings(
        where=where,
        value=float(worst.values[0]),
        count=worst.count,
        share=worst.share,
        distance=worst.distance,
        trained=Trained(before=plain.before, after=plain.after, chance=chance),
        filled=filled.after,
    )


def _found(probe: Probe) -> dict[str, RepeatedExtremes]:
    targets = _targets(probe)
    parts: dict[str, list[Tensor]] = {}
    size = 0
    for batch in first_pass(probe, limit=_BATCHES, seconds=_SECONDS):
        for path, leaf in leaves(batch.data):
            if leaf.is_floating_point() and leaf.dim() and leaf.numel():
                rows = leaf.detach().reshape(-1, leaf.size(-1) if leaf.dim() > 1 else 1)
                parts.setdefault(path, []).append(rows)
                size += leaf.numel()
        if size > _VALUES:
            break
    found = {
        path: repeated_extremes(torch.cat(rows))
        for path, rows in parts.items()
        if len({part.size(1) for part in rows}) == 1
    }
    return {
        path: extremes
        for path, extremes in found.items()
        if extremes is not None and (path not in targets or extremes.stands_for_missing)
    }


def _targets(probe: Probe) -> set[str]:
    """Return the places of what a loss function compares with."""
    batch = probe.batches(1)[0]
    calls = probe.step(batch, mode="silent").calls
    compared = [call.target.detach().flatten().cpu() for call in calls]
    return {
        path
        for path, leaf in leaves(batch.data)
        if any(torch.equal(leaf.detach().flatten().to(t.dtype), t) for t in compared)
    }


def _filled(data: Any, found: Mapping[str, RepeatedExtremes]) -> Any:
    known = {id(leaf): found[path] for path, leaf in leaves(data) if path in found}

    def one(leaf: Tensor) -> Tensor:
        return known[id(leaf)].filled(leaf) if id(leaf) in known else leaf

    return apply_to_collection(data, Tensor, one)
