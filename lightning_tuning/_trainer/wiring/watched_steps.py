"""A few real steps of the program as it is, and what became of each parameter in them."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.ordinary_run import STEPS, ordinary_run, within_time
from lightning_tuning._trainer.probe import Probe, Watch
from lightning_tuning._trainer.unread_flags import unread_flags
from lightning_tuning._trainer.wiring.fates import Fate, FateReader
from lightning_tuning._trainer.wiring.gradient_ledger import (
    Clearing,
    GradientLedger,
    NoStepError,
    flags_on_host,
)
from lightning_tuning._trainer.wiring.owners import Owned, owned_tensors
from lightning_tuning._trainer.wiring.uses import Uses, leaves
from lightning_tuning.functional.progress import progress
from lightning_tuning.functional.unread_flags import UnreadFlag
from lightning_tuning.functional.untouched import untouched
from lightning_tuning.functional.wiring.wiring_parameters import Rescue

_WATCHED = 20
_SECONDS = 10.0
_LONGER = 4
"""So many times longer are trainings that are to tell a slow one from none."""
_FEW = 3
_KNOWN: weakref.WeakKeyDictionary[object, WatchedSteps] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WatchedSteps:
    """What a few real steps have shown.

    Attributes:
        fates: One for each parameter of the module, of its loss, and of its optimizers.
        losses: Backward passes of one batch.
        losses_for_nobody: Backward passes that reached parameters, but none of an optimizer.
        steps: How many steps each of the fit's optimizers took.
        old_gradients: For each optimizer, at which share of its steps its parameters held the
            gradient of the step before as well; None where too few steps tell.
        windows: For each optimizer the number of batches that went into each step.
        no_step: Whether losses went backward and no optimizer ever took a step.
        scheduled: Whether something schedules the learning rate.
        unread: Attributes that were to freeze or to thaw, and did not.
    """

    fates: tuple[Fate, ...]
    losses: int
    losses_for_nobody: int
    steps: tuple[int, ...]
    old_gradients: tuple[float | None, ...]
    windows: tuple[tuple[int, ...], ...]
    no_step: bool
    scheduled: bool
    unread: tuple[UnreadFlag, ...]


def watched_steps(probe: Probe) -> WatchedSteps:
    """Take a few steps of the program as it is; done once for all checks of a fit.

    Raises:
        CannotProbeError: The weights are sharded, or the program breaks down at once.
    """
    loader = probe.trainer.fit_loop._combined_loader
    known = _KNOWN.get(loader)
    if known is None:
        known = _KNOWN[loader] = _measured(probe)
    return known


def stepping(probe: Probe) -> WatchedSteps:
    """Return the same for a program that takes steps.

    Raises:
        CannotProbeError: Also where no optimizer ever takes one.
    """
    steps = watched_steps(probe)
    if steps.no_step:
        raise CannotProbeError("no optimizer took a step in 200 batches")
    return steps


def rescued(
    probe: Probe,
    worth: bool,
    *,
    prepare: Callable[[], None] | None = None,
    watch: Sequence[Watch] = (),
    patient: bool = False,
) -> Rescue | None:
    """Train the program with something about it changed, if that is worth it.

    Args:
        probe: The probe.
        worth: Whether it is worth it.
        prepare: See :meth:`~lightning_tuning._trainer.probe.Probe.run`.
        watch: See there.
        patient: Whether both trainings are made longer where a hundred steps show little.
    """
    if not worth:
        return None
    ordinary = ordinary_run(probe)

    def learnt(steps: int, **change: Any) -> float:
        run = probe.run(steps, until=within_time(probe), **change)
        return progress(run.before, run.after, chance=ordinary.chance)

    change: dict[str, Any] = {"prepare": prepare, "watch": watch}
    rescue = Rescue(ordinary=ordinary.progress, changed=learnt(STEPS, **change))
    if not (patient and rescue.may_help):
        return rescue
    more = _LONGER * STEPS
    return Rescue(ordinary=learnt(more), changed=learnt(more, **change), steps=more)


def hold(probe: Probe, parameters: Sequence[Tensor]) -> None:
    """Let the last optimizer train these too; a rewind undoes it."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    probe.trainer.optimizers[-1].param_groups[-1]["params"].extend(parameters)


def _measured(probe: Probe) -> WatchedSteps:
    trainer = probe.trainer
    owned = owned_tensors(probe.module)
    if any(isinstance(o.tensor, DTensor) for o in owned.values()):
        raise CannotProbeError("the weights are sharded")
    held = [p for o in trainer.optimizers for g in o.param_groups for p in g["params"]]
    uses = Uses(o.tensor for o in owned.values())
    probe.step(probe.batches(1)[0], backward=True, watch=[uses])
    ends = [leaves([root]) for root in uses.roots]
    watched = _watched(owned, held, ends, uses)
    fresh = {o.path: untouched(o.layer) for o in watched.values()}
    ledger = GradientLedger(trainer, {name: o.tensor for name, o in watched.items()})
    run = probe.run(_WATCHED, watch=[ledger], until=within_time(probe, _SECONDS))
    no_step = NoStepError.__name__ in run.error
    if run.error and not no_step and not ledger.steps:
        raise CannotProbeError(f"training broke down: {run.error}")
    reads = FateReader(held=held, fed=_fed(ledger), uses=uses, fresh=fresh)
    accounts = [ledger.accounts[name] for name in watched]
    rows = flags_on_host(accounts)
    held_ids = {id(p) for p in held}
    fates = tuple(
        reads.fate(name, o, account, row)
        for (name, o), account, row in zip(watched.items(), accounts, rows, strict=True)
    )
    return WatchedSteps(
        fates=fates,
        losses=len(ends),
        losses_for_nobody=sum(_for_nobody(end, held_ids, owned) for end in ends),
        steps=tuple(ledger.steps.get(id(o), 0) for o in trainer.optimizers),
        old_gradients=tuple(_old(ledger.clearings(o)) for o in trainer.optimizers),
        windows=tuple(tuple(ledger.windows.get(id(o), ())) for o in trainer.optimizers),
        no_step=no_step,
        scheduled=bool(trainer.lr_scheduler_configs),
        # what the steps have set is still there
        unread=unread_flags(trainer, {id(f.parameter) for f in fates if f.fed and f.holders}),
    )


def _watched(
    owned: Mapping[int, Owned],
    held: Sequence[nn.Parameter],
    ends: Sequence[Mapping[int, Tensor]],
    uses: Uses,
) -> dict[str, Owned]:
    """Return what is registered or held, and what a loss reaches, by path."""
    reached = {key: t for end in ends for key, t in end.items() if key not in uses.differentiated}
    wanted = [o for key, o in owned.items() if o.registered or key in reached]
    strangers = {id(p): p for p in (*held, *reached.values()) if isinstance(p, nn.Parameter)}
    for i, (key, parameter) in enumerate(strangers.items()):
        if key not in owned:
            path = f"(unregistered {i + 1})"
            wanted.append(
                Owned(
                    path=path,
                    tensor=parameter,
                    layer=nn.Identity(),
                    layer_path="",
                    registered=False,
                )
            )
    return {o.path: o for o in wanted}


def _fed(ledger: GradientLedger) -> set[int]:
    return {id(a.parameter) for a in ledger.accounts.values() if a.calls}


def _for_nobody(
    end: Mapping[int, Tensor], held: Collection[int], owned: Mapping[int, Owned]
) -> bool:
    mine = [owned[key] for key in end if key in owned and key not in held]
    return (
        len(mine) > 0
        and not any(key in held for key in end)
        and any(untouched(o.layer) is not False for o in mine)
    )


def _old(clearings: Sequence[Clearing]) -> float | None:
    """Return the share of steps with old gradients, over the parameters that could tell."""
    if not clearings:
        return None
    device = clearings[0].old.device
    old = float(torch.stack([c.old.to(device) for c in clearings]).sum())
    could = float(torch.stack([c.all.to(device) for c in clearings]).sum())
    return old / could if could >= _FEW * len(clearings) / 2 else None
