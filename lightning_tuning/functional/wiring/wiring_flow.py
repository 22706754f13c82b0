"""Gradients that do not arrive, weights that do not move, units that do not differ: the rules."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring
from lightning_tuning.functional.wiring.wiring_parameters import Rescue, listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class LostGradients:
    """Parameters of an optimizer that the step uses and that no gradient reaches.

    Attributes:
        names: Their names.
        cuts: The functions at which their gradient ends.
        deliberate: Whether only ``detach`` or ``no_grad`` holds it back, as a person may wish.
        mixed: Whether these are among what holds it back.
        fresh: Whether nobody trained them before.
        felt: Whether the prediction, not only the target, changes with their values.
        steps: Number of real steps.
        ordinary: Share of the loss that a hundred steps took away; None where it tells nothing.
        rescue: Training with the gradient let through; None where not tried.
        starved: What an optimizer steps again and again with, where no backward pass reaches it.
    """

    names: tuple[str, ...]
    cuts: tuple[str, ...]
    deliberate: bool
    mixed: bool
    fresh: bool
    felt: bool
    steps: int
    ordinary: float | None
    rescue: Rescue | None
    starved: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Updates:
    """Whether the steps of the optimizers change anything.

    Attributes:
        no_step: Whether losses went backward many times without one step.
        idle: Parameters with gradients whose own optimizer never stepped while others did.
        cleared: Parameters whose gradient was gone when the optimizer stepped.
        undone: Parameters that each step changed, and that were as before afterwards.
        rate_zero: Parameters with a gradient and a learning rate of zero.
        all_rate_zero: Whether that is so for all parameters with a gradient.
        stuck: Parameters with a gradient, and a learning rate too small to change a bit of them.
        all_stuck: Whether that is so for all of them.
        trains_badly: Whether the program was seen to learn next to nothing.
        steps: Number of real steps.
        rescue: Training with another group's rate for those with none; None where not tried.
    """

    no_step: bool
    idle: tuple[str, ...]
    cleared: tuple[str, ...]
    undone: tuple[str, ...]
    rate_zero: tuple[str, ...]
    all_rate_zero: bool
    stuck: tuple[str, ...]
    all_stuck: bool
    trains_badly: bool
    steps: int
    rescue: Rescue | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameUnits:
    """Weight matrices that start with all units the same.

    Attributes:
        same: Those whose units were still the same after real steps.
        dead: Those that were zero and got nothing but zero gradients, as others did through them.
        started: Those of hidden layers that started so at all.
        steps: Number of real steps.
        spread: The largest deviation among units at the end, over the distance moved.
        rescue: Training with torch's own initialization of them; None where not tried.
    """

    same: tuple[str, ...]
    dead: tuple[str, ...]
    started: tuple[str, ...]
    steps: int
    spread: float
    rescue: Rescue | None


HALF = 0.5
"""Progress above which a part that gets no gradient does no harm."""
LITTLE = 0.1
"""The same for a part that may have been trained before."""
_LEFT = 0.6


def no_grad_flow(evidence: LostGradients | None) -> tuple[Finding, ...]:
    """Judge parameters of an optimizer that are used and get no gradient."""
    code = "no_grad_flow"
    if evidence is None:
        return wiring("skip", code, "Not checked: no optimizer takes a step.")
    if not evidence.names and not evidence.starved:
        return wiring("pass", code, "A gradient arrives at every parameter that a step uses.")
    if evidence.starved:
        return _no_loss_for(evidence)
    names, where = listed(evidence.names), evidence.names[0]
    got = f"{names} got no gradient in {evidence.steps} steps"
    cut = f" at {' and '.join(f'{name}()' for name in evidence.cuts)}" if evidence.cuts else ""
    slow = evidence.ordinary is not None and evidence.ordinary < HALF
    rescue = evidence.rescue
    if (
        evidence.felt
        and not evidence.deliberate
        and (not evidence.mixed or (evidence.fresh and slow))
    ):
        return wiring(
            "fail",
            code,
            f"{got}, though the loss depends on them: the graph ends{cut}.",
            hint="Compute this part with differentiable torch functions (softmax instead of "
            "argmax, no numpy, no .item(), no .detach()).",
            where=where,
            parameters=len(evidence.names),
        )
    if rescue is not None and _lets_learn(rescue, fresh=evidence.fresh):
        return wiring(
            "warn",
            code,
            f"{got}; {rescue.told('with the gradient let through')}{cut or ' no_grad()'}.",
            hint="Take away the no_grad or detach around this part, or load trained weights.",
            where=where,
            parameters=len(evidence.names),
            progress=rescue.ordinary,
            progress_with_gradient=rescue.changed,
        )
    return wiring("pass", code, f"{got}; nothing suggests that they should.")


def _frees(rescue: Rescue) -> bool:
    return rescue.helps and (rescue.ordinary < LITTLE or rescue.leaves_at_most(_LEFT))


def _no_loss_for(evidence: LostGradients) -> tuple[Finding, ...]:
    names = evidence.starved
    message = f"No loss leads to {listed(names)} in {evidence.steps} steps of their own optimizer."
    hint = "Leave out the detach() or no_grad() between these parameters and their own loss."
    return wiring("fail", "no_grad_flow", message, hint=hint, where=names[0], parameters=len(names))


def _lets_learn(rescue: Rescue, *, fresh: bool) -> bool:
    better = rescue.leaves_at_most(_LEFT)
    return rescue.helps and better and (rescue.ordinary < 0.1 or (fresh and rescue.ordinary < HALF))


def weights_not_updating(evidence: Updates) -> tuple[Finding, ...]:
    """Judge whether weights with a gradient move."""
    code = "weights_not_updating"
    steps = evidence.steps
    if evidence.no_step:
        return wiring(
            "fail",
            code,
            "Losses went backward on 200 batches and no optimizer took a step.",
            hint="Call optimizer.step() after manual_backward.",
        )
    faults = (
        (evidence.idle,
         f"their optimizer took no step while another one took {steps}",
         "Call step() of this optimizer too."),
        (evidence.cleared, f"it was gone at each of {steps} steps",
         "Call zero_grad before backward, not between backward and step; look at the hooks too."),
        (evidence.undone,
         f"they were as before after {steps} steps, each of which had changed them",
         "Look for what writes old weights back after each step."),
        (evidence.rate_zero if evidence.all_rate_zero else (),
         f"their learning rate was 0 in all of {steps} steps",
         "Give the optimizer a learning rate."),
    )  # fmt: skip
    for names, what, hint in faults:
        if names:
            text = f"{listed(names)}: a gradient comes, but {what}."
            return wiring("fail", code, text, hint=hint, where=names[0], parameters=len(names))
    rescue = evidence.rescue
    if evidence.rate_zero and rescue is not None and rescue.helps:
        return wiring(
            "warn",
            code,
            f"{listed(evidence.rate_zero)}: the learning rate is 0; "
            f"{rescue.told('with the rate of the others')}.",
            hint="Give their parameter group a learning rate.",
            where=evidence.rate_zero[0],
            progress=rescue.ordinary,
            progress_with_rate=rescue.changed,
        )
    if evidence.all_stuck and evidence.trains_badly:
        return wiring(
            "warn",
            code,
            f"No weight changed by one bit in {steps} steps, though all get gradients.",
            hint="Raise the learning rate; bf16 weights need larger steps than float32 ones.",
            where=evidence.stuck[0],
            parameters=len(evidence.stuck),
        )
    return wiring("pass", code, f"{steps} steps moved the weights that get gradients.")


def zero_init(evidence: SameUnits) -> tuple[Finding, ...]:
    """Judge matrices whose units all start the same."""
    code = "zero_init"
    hint = "Initialise them at random (kaiming_normal_, xavier_uniform_ or torch's default)."
    if evidence.same or evidence.dead:
        names = evidence.same or evidence.dead
        state = (
            f"still the same after {evidence.steps} steps"
            if evidence.same
            else f"still zero after {evidence.steps} steps, with gradients of exactly zero"
        )
        return wiring(
            "fail",
            code,
            f"All units of {listed(names)} start the same and are {state}: they can't become "
            "different.",
            hint=hint,
            where=names[0],
            parameters=len(names),
            spread=evidence.spread,
        )
    rescue = evidence.rescue
    if evidence.started and rescue is not None and _frees(rescue):
        return wiring(
            "warn",
            code,
            f"All units of {listed(evidence.started)} start the same; "
            f"{rescue.told('from random weights')}.",
            hint=hint,
            where=evidence.started[0],
            progress=rescue.ordinary,
            progress_from_random=rescue.changed,
        )
    return wiring("pass", code, "No layer's units stay the same.")
