"""Whether gradients are cleared between steps, and how batches add up to one."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning._trainer.wiring.watched_steps import rescued, stepping
from lightning_tuning.functional.wiring import wiring_steps as rules
from lightning_tuning.functional.wiring.wiring_steps import Accumulation, Clearings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the two rules read."""

    clearings: Clearings
    accumulation: Accumulation


def measure(probe: Probe) -> Evidence:
    """Look what gradients are like when steps use them."""
    steps = stepping(probe)
    clearings = Clearings(
        optimizers=tuple(type(o).__name__ for o in probe.trainer.optimizers),
        old=steps.old_gradients,
        steps=steps.steps,
    )
    manual = not probe.module.automatic_optimization
    windows = [n for window in steps.windows for n in window]
    batches = int(statistics.median(windows)) if manual and windows else 1
    kept = any((share or 0.0) > 0 for share in steps.old_gradients)
    unclear = batches > 1 and not kept
    slope = _slope(probe) if unclear else None
    worth = ordinary_run(probe).trains_badly and unclear
    rescue = rescued(probe, worth, watch=[_Divided(batches)])
    return Evidence(
        clearings=clearings,
        accumulation=Accumulation(manual=manual, batches=batches, slope=slope, rescue=rescue),
    )


def _slope(probe: Probe) -> float | None:
    step = probe.step(probe.batches(1)[0], backward=True)
    slopes = [call.slope for call in step.calls if call.value.numel() == 1]
    known = [slope for slope in slopes if slope is not None]
    return known[0] if len(known) == 1 else None


class _Divided:
    """Divides all gradients before each step while it is active."""

    def __init__(self, batches: int) -> None:
        self._batches = batches

    def __enter__(self) -> None:
        self._handle = register_optimizer_step_pre_hook(self._on_step)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    @torch.no_grad()
    def _on_step(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(self._batches)


TOPIC = Topic(
    measure=measure,
    rules={
        "missing_zero_grad": lambda e: rules.missing_zero_grad(e.clearings),
        "accumulation_unscaled": lambda e: rules.accumulation_unscaled(e.accumulation),
    },
)
