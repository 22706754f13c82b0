"""Where gradients end, and whether weights move."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import Step
from lightning_tuning._trainer.wiring.fates import Fate
from lightning_tuning._trainer.wiring.let_through import LetThrough
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning._trainer.wiring.uses import DELIBERATE
from lightning_tuning._trainer.wiring.watched_steps import (
    WatchedSteps,
    rescued,
    watched_steps,
)
from lightning_tuning.functional.wiring import wiring_flow as rules
from lightning_tuning.functional.wiring.wiring_flow import LostGradients, Updates

_FEW = 3
_MANY = 15
_AVERAGED = ("target", "ema", "teacher", "momentum", "averaged", "slow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the two rules read."""

    lost: LostGradients | None
    updates: Updates


def measure(probe: Probe) -> Evidence:
    """Look where gradients arrive in a few real steps, and what they do."""
    steps = watched_steps(probe)
    return Evidence(
        lost=None if steps.no_step else _lost(probe, steps),
        updates=_updates(probe, steps),
    )


def _lost(probe: Probe, steps: WatchedSteps) -> LostGradients:
    lost = [f for f in steps.fates if _is_lost(f) and not _has_twin(probe.module, f, steps.fates)]
    cuts = frozenset().union(*(f.cuts for f in lost)) if lost else frozenset()
    deliberate = all(f.guarded for f in lost) or not cuts - DELIBERATE
    fresh = all(f.fresh is not False for f in lost)
    alone = len(probe.trainer.optimizers) == 1
    ordinary = ordinary_run(probe).progress if alone else None
    worth = bool(lost) and deliberate and ordinary is not None and ordinary < _worth(fresh=fresh)
    return LostGradients(
        names=tuple(f.name for f in lost),
        cuts=tuple(sorted(cuts)),
        deliberate=deliberate,
        mixed=bool(cuts & DELIBERATE),
        fresh=fresh,
        felt=not deliberate and _is_felt(probe, lost),
        steps=max(steps.steps, default=0),
        ordinary=ordinary,
        rescue=rescued(
            probe,
            worth,
            watch=[LetThrough(probe.module)],
            patient=all(f.fresh for f in lost),
        ),
        starved=_starved(probe, steps),
    )


def _starved(probe: Probe, steps: WatchedSteps) -> tuple[str, ...]:
    """Return the parameters of an optimizer that steps again and again with no gradient at all.

    Where each optimizer has a loss of its own, one that nothing reaches is not waiting its turn.
    """
    optimizers = probe.trainer.optimizers
    if len(optimizers) < 2 or steps.losses < len(optimizers):
        return ()
    for optimizer, taken in zip(optimizers, steps.steps, strict=True):
        held = {id(p) for g in optimizer.param_groups for p in g["params"]}
        own = [f for f in steps.fates if id(f.parameter) in held]
        lost = [f for f in own if _is_lost(f)]
        untouched = all(f.passes == 0 and not f.moved and f.holders == 1 for f in own)
        new = all(f.fresh is not False and not _has_twin(probe.module, f, steps.fates) for f in own)
        if taken >= _MANY and lost and untouched and new and all(f.lr > 0 for f in own):
            return _names([lost])
    return ()


def _worth(*, fresh: bool) -> float:
    """Return below which progress it is worth a training with the gradient let through."""
    return rules.HALF if fresh else rules.LITTLE


def _is_lost(fate: Fate) -> bool:
    takes = fate.parameter.requires_grad and fate.holders > 0 and fate.called
    cut = bool(fate.cuts) or fate.guarded
    return takes and cut and not fate.fed and not fate.moved


def _has_twin(module: nn.Module, fate: Fate, fates: Sequence[Fate]) -> bool:
    """Whether another module of the same kind and shapes learns: then this one is its target."""
    if any(word in fate.name.lower() for word in _AVERAGED):
        return True
    fed = {id(f.parameter) for f in fates if f.fed}
    parts = dict(module.named_modules())
    path = fate.layer
    while path:
        part = parts.get(path)
        if part is None or any(id(p) in fed for p in part.parameters()):
            return False
        shapes = _shapes(part)
        twins = [p for p in parts.values() if p is not part and type(p) is type(part)]
        many = len(shapes) > 2
        if many and any(_shapes(t) == shapes and _learns(t, fed) for t in twins):
            return True
        path = path.rpartition(".")[0]
    return False


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in module.named_parameters()}


def _learns(module: nn.Module, fed: set[int]) -> bool:
    return all(id(p) in fed for p in module.parameters())


class _Mirrored:
    """Turns the sign of some parameters while it is active."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)

    @torch.no_grad()
    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.mul_(-1).add_(0.1)

    def __exit__(self, *_: object) -> None:
        """The step's own end puts everything back."""


def _is_felt(probe: Probe, lost: Sequence[Fate]) -> bool:
    """Whether predictions, or a loss without a known function, change with the parameters."""
    if not lost:
        return False
    batch = probe.batches(1)[0]
    plain = probe.step(batch, seed=1)
    changed = probe.step(batch, seed=1, watch=[_Mirrored(f.parameter for f in lost)])
    if len(plain.calls) != len(changed.calls):
        return True
    same_inputs = [
        _close(a.input, b.input) for a, b in zip(plain.calls, changed.calls, strict=True)
    ]
    targets = [_close(a.target, b.target) for a, b in zip(plain.calls, changed.calls, strict=True)]
    if plain.calls and all(same_inputs) and not all(targets):
        return False
    return not _same_loss(plain, changed)


def _same_loss(one: Step, other: Step) -> bool:
    if one.loss is None or other.loss is None:
        return one.loss is other.loss
    return _close(one.loss, other.loss)


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(
        torch.allclose(one.float(), other.float(), rtol=1e-5, atol=1e-6, equal_nan=True)
    )


def _updates(probe: Probe, steps: WatchedSteps) -> Updates:
    fed = [f for f in steps.fates if f.fed and f.holders]
    stepped = max(steps.steps, default=0)
    optimizers = probe.trainer.optimizers
    held = [{id(p) for g in o.param_groups for p in g["params"]} for o in optimizers]
    owners = [[f for f in fed if id(f.parameter) in ids] for ids in held]
    tried = [own for own, n in zip(owners, steps.steps, strict=True) if own and n >= _FEW]
    idle = [own for own, n in zip(owners, steps.steps, strict=True) if not n and _waits(own)]
    rated = [f for f in fed if f.lr > 0]
    still = [f for f in fed if f.used and not f.moved_by_step and stepped >= _FEW]
    rate_zero = [f for f in still if f.lr == 0.0 and not steps.scheduled]
    stuck = [f for f in still if f.lr > 0]
    badly = not steps.no_step and ordinary_run(probe).trains_badly
    return Updates(
        no_step=steps.no_step,
        idle=_names(idle) if stepped >= _MANY else (),
        cleared=_names(own for own in tried if not any(f.used for f in own)),
        undone=_names(own for own in tried if _is_undone(own)),
        rate_zero=_names([rate_zero]),
        all_rate_zero=len(rate_zero) == len(fed),
        stuck=_names([stuck]),
        all_stuck=len(stuck) == len(rated) > 0,
        trains_badly=badly,
        steps=stepped,
        rescue=rescued(
            probe,
            badly and bool(rate_zero) and bool(rated),
            prepare=lambda: _raise_rates(optimizers),
        ),
    )


def _waits(own: Sequence[Fate]) -> bool:
    """Whether gradients came again and again for parameters whose optimizer did nothing."""
    return bool(own) and all(f.passes >= _MANY // 2 for f in own)


def _is_undone(own: Sequence[Fate]) -> bool:
    return any(f.moved_by_step for f in own) and not any(f.moved for f in own)


def _names(groups: Iterable[Sequence[Fate]]) -> tuple[str, ...]:
    return tuple(fate.name for group in groups for fate in group)


def _raise_rates(optimizers: Sequence[Any]) -> None:
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rate = max(group["lr"] for group in groups)
    for group in groups:
        group["lr"] = group["lr"] or rate


TOPIC = Topic(
    measure=measure,
    rules={
        "no_grad_flow": lambda e: rules.no_grad_flow(e.lost),
        "weights_not_updating": lambda e: rules.weights_not_updating(e.updates),
    },
)
