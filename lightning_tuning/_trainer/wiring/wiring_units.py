"""Whether units that start the same become different."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.ordinary_run import OrdinaryRun, ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.fates import Fate
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning._trainer.wiring.watched_steps import rescued, watched_steps
from lightning_tuning.functional.wiring.wiring_flow import HALF, SameUnits, zero_init

_SAME = 1e-3
_FEW = 3
_ROUNDINGS = 50


def measure(probe: Probe) -> SameUnits:
    """Look at matrices with equal rows before and after a few real steps."""
    steps = watched_steps(probe)
    stepped = max(steps.steps, default=0)
    layers = dict(probe.module.named_modules())
    uniform = [
        f
        for f in steps.fates
        if f.uniform and f.reached and f.holders and f.lr > 0 and stepped >= _FEW
    ]
    silent = [f for f in steps.fates if f.parameter.dim() > 1 and f.reached and not f.fed]
    dead = [f for f in uniform if not f.fed and any(_elsewhere(s, f) for s in silent)]
    # rows of an embedding meet different examples, and become different by that
    uniform = [f for f in uniform if not isinstance(layers.get(f.layer), _TABLES)]
    same = [f for f in uniform if f.fed and f.moved and f.spread <= _SAME]
    matrices = [f for f in uniform if isinstance(layers.get(f.layer), _LAYERS)]
    open_question = bool(matrices) and not same and not dead and not steps.no_step
    parameters = [f.parameter for f in matrices]
    stuck = _stuck(probe, parameters) if open_question else False
    return SameUnits(
        same=_names(same),
        dead=_names(dead),
        started=_names(matrices),
        steps=stepped,
        spread=max((f.spread for f in same), default=0.0),
        rescue=rescued(
            probe,
            open_question and _trains_slowly(ordinary_run(probe), stuck=stuck),
            prepare=lambda: _draw(parameters),
        ),
    )


class _FirstGradients:
    """Notes whether the first gradient of some matrices is the same for all of their units.

    Args:
        parameters: The matrices.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.alike = False
        self._parameters = parameters

    def __enter__(self) -> _FirstGradients:
        return self

    def __exit__(self, *_: object) -> None:
        gradients = [p.grad.detach().float() for p in self._parameters if p.grad is not None]
        if gradients:
            sizes = torch.stack([gradient.abs().max() for gradient in gradients])
            self.alike = any(_alike(gradient, sizes.max()) for gradient in gradients)


def _alike(gradient: Tensor, largest: Tensor) -> bool:
    """Whether the rows of a gradient are the same, or nothing but rounding."""
    rows = gradient.flatten(1)
    rounding = _ROUNDINGS * torch.finfo(rows.dtype).eps * largest
    return bool((rows - rows[:1]).abs().max() <= _SAME * rows.abs().max() + rounding)


def _stuck(probe: Probe, parameters: Sequence[Tensor]) -> bool:
    """Whether the first step would leave all units of one of these matrices the same.

    That of a zero-initialised head or of a branch's last layer would not: what enters them, or
    the error that comes back, differs from unit to unit.
    """
    probe.rewind()
    watch = _FirstGradients(parameters)
    probe.step(probe.batches(1)[0], backward=True, watch=[watch])
    return watch.alike


def _trains_slowly(ordinary: OrdinaryRun, *, stuck: bool) -> bool:
    return ordinary.learns_less_than(HALF) if stuck else ordinary.trains_badly


def _elsewhere(one: Fate, other: Fate) -> bool:
    return one.layer != other.layer or (not one.layer and one.name != other.name)


_TABLES = (nn.Embedding, nn.EmbeddingBag)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _draw(parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def _names(fates: Sequence[Fate]) -> tuple[str, ...]:
    return tuple(fate.name for fate in fates)


TOPIC = Topic(measure=measure, rules={"zero_init": zero_init})
