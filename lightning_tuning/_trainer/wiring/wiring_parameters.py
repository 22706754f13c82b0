"""Which parameters no optimizer trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from lightning_tuning._trainer.ordinary_run import BADLY, ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.fates import Fate
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning._trainer.wiring.watched_steps import hold, rescued, stepping
from lightning_tuning.functional.wiring import wiring_parameters as rules
from lightning_tuning.functional.wiring.wiring_parameters import Frozen, NotHeld, Rescue

_WELL = 0.75
"""Up to here it is worth trying to train random weights that no optimizer holds.

Nobody leaves them out on purpose and lets their gradients be computed; trained ones may be meant
to stay.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the two rules read."""

    not_held: NotHeld
    frozen: Frozen


def measure(probe: Probe) -> Evidence:
    """Look which parameters get a gradient, and who holds them."""
    steps = stepping(probe)
    missing = [f for f in steps.fates if f.fed and not f.holders and f.registered]
    hidden = [f for f in steps.fates if _is_hidden(f)]
    held = [f for f in steps.fates if f.fed and f.holders]
    fresh = all(f.fresh for f in missing)
    several = len(probe.trainer.optimizers) > 1
    not_held = NotHeld(
        missing=_names([*hidden, *missing]),
        unregistered=_names(hidden),
        behind=_names(f for f in missing if f.fresh and f.behind and not f.on_data),
        held_and_reached=len(held),
        twice=_names(f for f in steps.fates if f.holders > 1) if several else (),
        losses_for_nobody=steps.losses_for_nobody,
        fresh=fresh,
        rescue=_with(probe, missing, below=_WELL if fresh else BADLY, patient=fresh),
    )
    frozen = [f for f in steps.fates if _is_frozen(f)]
    called = sum(f.parameter.numel() for f in steps.fates if f.called)
    numbers = sum(f.parameter.numel() for f in frozen)
    return Evidence(
        not_held=not_held,
        frozen=Frozen(
            names=_names(frozen),
            numbers=numbers,
            share=numbers / max(called, 1),
            rescue=_with(probe, frozen),
            unread=steps.unread,
        ),
    )


def _is_hidden(fate: Fate) -> bool:
    return fate.fed and not fate.holders and not fate.registered and fate.fresh is not False


def _is_frozen(fate: Fate) -> bool:
    parameter = fate.parameter
    still = fate.called and not fate.moved and not parameter.requires_grad
    return still and parameter.is_floating_point()


def _with(
    probe: Probe, fates: Sequence[Fate], *, below: float = BADLY, patient: bool = False
) -> Rescue | None:
    """Train with some parameters more, where the program learns too little without them."""
    worth = bool(fates) and ordinary_run(probe).learns_less_than(below)
    return rescued(
        probe,
        worth,
        prepare=lambda: hold(probe, [f.parameter for f in fates]),
        patient=patient,
    )


def _names(fates: Iterable[Fate]) -> tuple[str, ...]:
    return tuple(f.name for f in fates)


TOPIC = Topic(
    measure=measure,
    rules={
        "params_not_in_optimizer": lambda e: rules.params_not_in_optimizer(e.not_held),
        "frozen_params": lambda e: rules.frozen_params(e.frozen),
    },
)
