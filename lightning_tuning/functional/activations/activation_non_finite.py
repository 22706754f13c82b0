"""Where numbers stopped being finite: the rule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from lightning_tuning.findings import Finding, Verdict
from lightning_tuning.functional.activations.activation_step import ActivationStep, LayerStep

CHECK = "activation_monitor"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonFiniteEvidence:
    """A step whose loss is not finite, and what came before it.

    Attributes:
        step: The measured step.
        earlier: Measured steps before it.
        since: The first step from which on no loss is finite.
        broken: Names of weights that are not finite after the step.
    """

    step: ActivationStep
    earlier: Sequence[ActivationStep]
    since: int
    broken: tuple[str, ...]


def non_finite(evidence: NonFiniteEvidence) -> Finding | None:
    """Name the first layer with a value that is not finite; None as long as no weight is lost.

    A loss that is not finite may be skipped by the program or by its loss scaler. A weight that
    is not finite never recovers.
    """
    if not evidence.broken:
        return None
    step = evidence.step
    backward = next((s for s in evidence.earlier if _broken_gradient(s) is not None), None)
    forward = next((layer for layer in step.layers if not layer.is_finite), None)
    since = evidence.since
    if backward is not None and backward.step <= since:
        layer = _broken_gradient(backward)
        assert layer is not None
        said = (
            f"at step {backward.step}, in the backward pass: the gradient with respect to the "
            f"output of {layer.name} is the first"
        )
        where = layer.name
    elif forward is None:
        where = ""
        said = f"at step {since}, in the loss itself: the outputs of all layers are finite"
    else:
        where = forward.name
        last = _before(evidence.earlier, where)
        largest = "" if last is None else _largest(last)
        said = (
            f"since step {since}; at step {step.step} the output of {where} is the first in the "
            f"forward pass{largest}"
        )
    return speak(
        "fail",
        "non_finite",
        f"Numbers stopped being finite {said}. {len(evidence.broken)} weights are lost, first "
        f"{evidence.broken[0]}.",
        hint="Lower the learning rate or clip gradients; look for log, sqrt or a division near "
        "zero in this layer, and in the loss.",
        where=where,
        step=step.step,
        evidence={
            "since": since,
            "weights_lost": len(evidence.broken),
            "backward": backward is not None,
        },
    )


def non_finite_at_end(
    said: Finding | None, steps: Sequence[int], losses: Sequence[float]
) -> tuple[Finding, ...]:
    """Say how it ended: what was said at once, or a pass."""
    if said is not None:
        return (said,)
    bad = [step for step, loss in zip(steps, losses, strict=True) if not math.isfinite(loss)]
    if not bad:
        return (speak("pass", "non_finite", "All values were finite where they were measured."),)
    if math.isfinite(losses[-1]):
        text = f"{len(bad)} of {len(losses)} losses were not finite; the weights still are."
        return (speak("pass", "non_finite", text, step=bad[0]),)
    return (
        speak(
            "fail",
            "non_finite",
            f"The loss is not finite since step {first_of_tail(steps, losses)}, after the last "
            "measured step, so that the layer is not known.",
            hint="Fit again with ActivationMonitor(every_n_steps=1) to see the layer.",
            step=bad[0],
        ),
    )


def speak(
    verdict: Verdict,
    code: str,
    message: str,
    *,
    hint: str = "",
    where: str = "",
    step: int = 0,
    evidence: Mapping[str, float] | None = None,
) -> Finding:
    """Return a finding of this monitor."""
    return Finding(
        check=CHECK,
        code=code,
        verdict=verdict,
        message=message,
        hint=hint,
        where=where,
        step=step,
        evidence={} if evidence is None else dict(evidence),
    )


def first_of_tail(steps: Sequence[int], losses: Sequence[float]) -> int:
    """Return from which step on no loss is finite.

    Example:
        >>> first_of_tail([0, 1, 2, 3], [1.0, math.nan, 2.0, math.inf])
        3
    """
    first = steps[-1] if steps else 0
    for step, loss in zip(reversed(steps), reversed(losses), strict=True):
        if math.isfinite(loss):
            break
        first = step
    return first


def _broken_gradient(step: ActivationStep) -> LayerStep | None:
    """Return the layer at which the backward pass broke: the last with a broken gradient."""
    if not math.isfinite(step.loss) or step.scale != 1.0:
        return None
    broken = [
        layer
        for layer in step.layers
        if layer.gradients is not None and not math.isfinite(layer.gradient_norm)
    ]
    return broken[-1] if broken else None


def _before(earlier: Sequence[ActivationStep], name: str) -> LayerStep | None:
    found = [layer for step in earlier for layer in step.layers if layer.name == name]
    found = [layer for layer in found if layer.is_finite]
    return found[-1] if found else None


def _largest(layer: LayerStep) -> str:
    return f" (its values reached {max(abs(layer.low), abs(layer.high)):.3g} when last measured)"
