"""How gradients are cleared and added up between steps, as rules about real steps."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring
from lightning_tuning.functional.wiring.wiring_parameters import Rescue

_OFTEN = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clearings:
    """Whether gradients are cleared between steps.

    Attributes:
        optimizers: Class names, one for each optimizer.
        old: For each, the share of steps that found the gradient of the step before under the new
            one; None where too few steps tell.
        steps: How many steps each took.
    """

    optimizers: tuple[str, ...]
    old: tuple[float | None, ...]
    steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulation:
    """How a program that steps by hand adds up batches.

    Attributes:
        manual: Whether the module steps its optimizers itself.
        batches: How many batches go into a step.
        slope: How the loss that goes backward rises with the loss function's value; None where
            there is no single known one.
        rescue: Training with gradients divided by ``batches``; None where not tried.
    """

    manual: bool
    batches: int
    slope: float | None
    rescue: Rescue | None


def missing_zero_grad(evidence: Clearings) -> tuple[Finding, ...]:
    """Judge whether a step's gradients are gone before the next ones come."""
    code = "missing_zero_grad"
    known = [i for i, share in enumerate(evidence.old) if share is not None]
    if not known:
        return wiring("skip", code, "Not checked: too few steps had gradients.")
    worst = max(known, key=lambda i: evidence.old[i] or 0.0)
    share = evidence.old[worst] or 0.0
    if share < _OFTEN:
        return wiring("pass", code, "Gradients are cleared between steps.", share=share)
    which = evidence.optimizers[worst] + (f" {worst}" if len(evidence.optimizers) > 1 else "")
    return wiring(
        "fail",
        code,
        f"At {share:.0%} of {evidence.steps[worst]} steps the gradients still held those of the "
        f"step before: nothing clears them for {which}.",
        hint="Call optimizer.zero_grad() before manual_backward, or don't override "
        "optimizer_zero_grad.",
        where=f"optimizer {worst}",
        share=share,
        steps=evidence.steps[worst],
    )


def accumulation_unscaled(evidence: Accumulation) -> tuple[Finding, ...]:
    """Judge the size of a step that several batches add up to."""
    code = "accumulation_unscaled"
    if not evidence.manual:
        return wiring("pass", code, "Lightning accumulates, and divides the loss itself.")
    if evidence.batches < 2:
        return wiring("pass", code, "Each step takes the gradient of one batch.")
    rescue = evidence.rescue
    divided = evidence.slope is not None and evidence.slope <= 1.5 / evidence.batches
    if divided or rescue is None or not rescue.helps:
        text = f"{evidence.batches} batches add up to a step, which trains."
        return wiring("pass", code, text, batches=evidence.batches)
    return wiring(
        "warn",
        code,
        f"The losses of {evidence.batches} batches add up to each step undivided; "
        f"{rescue.told(f'divided by {evidence.batches}')}.",
        hint=f"Divide the loss by {evidence.batches} before manual_backward.",
        batches=evidence.batches,
        progress=rescue.ordinary,
        progress_divided=rescue.changed,
    )
