"""Whether a network of several layers can do more than one linear layer."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.progress import progress
from lightning_tuning.functional.wiring.wiring_finding import wiring

_POOR = 0.5
_BETTER = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructureEvidence:
    """What activations do in a network.

    Attributes:
        discarded: An activation function whose result is thrown away while its input is used on;
            empty for none.
        discarded_calls: How often that happens in a step.
        error: How far the outputs are from being affine in the inputs, relative to their spread;
            None where this could not be measured.
        tolerance: Rounding allows so much.
        layers: How many layers with weights follow each other.
        widest: The widest hidden layer between them.
        needed: The width beyond which a hidden layer adds nothing.
        before: The loss of unseen examples before a short training.
        chance: The loss at chance; None where it is not known.
        linear: The loss of unseen examples after the training.
        rescued: The same after a training with ReLUs between the layers; None if not tried.
        why_not: Why the network could not be judged.
    """

    discarded: str = ""
    discarded_calls: int = 0
    error: float | None = None
    tolerance: float = 0.0
    layers: int = 0
    widest: int = 0
    needed: int = 0
    before: float = float("nan")
    chance: float | None = None
    linear: float = float("nan")
    rescued: float | None = None
    why_not: str = ""

    @property
    def affine(self) -> bool:
        """Whether the outputs are an affine function of the inputs."""
        return self.error is not None and self.error <= self.tolerance

    @property
    def idle_layers(self) -> bool:
        """Whether it is an affine function of more layers than it needs."""
        return self.affine and self.layers > 1 and self.widest > self.needed

    @property
    def hurts(self) -> bool:
        """Whether the linear network learns badly, and activations help much."""
        if self.rescued is None or not self.linear > 0:
            return False
        learnt = progress(self.before, self.linear, chance=self.chance)
        return learnt < _POOR and self.rescued < _BETTER * self.linear


def missing_nonlinearity(evidence: StructureEvidence) -> tuple[Finding, ...]:
    """Judge whether a network lacks its activation functions.

    A composition of affine layers is one affine layer: f(a) + f(b) = 2 f((a + b) / 2).
    """
    if evidence.discarded:
        return wiring(
            "fail",
            "missing_nonlinearity",
            f"The result of {evidence.discarded} is thrown away {evidence.discarded_calls} times a "
            "step, and its input is used on.",
            hint=f"Assign the result: x = {evidence.discarded}(x).",
            discarded_calls=evidence.discarded_calls,
        )
    if evidence.error is None:
        return wiring("skip", "missing_nonlinearity", f"Not checked: {evidence.why_not}.")
    if evidence.idle_layers and evidence.hurts:
        assert evidence.rescued is not None
        return wiring(
            "warn",
            "missing_nonlinearity",
            f"{evidence.layers} layers, {evidence.widest} wide, are together one linear layer; "
            f"with ReLUs between them the loss on unseen examples fell to {evidence.rescued:.3g} "
            f"instead of {evidence.linear:.3g}.",
            hint="Put an activation function between the layers.",
            layers=evidence.layers,
            widest=evidence.widest,
            error=evidence.error,
            linear=evidence.linear,
            rescued=evidence.rescued,
        )
    return wiring(
        "pass",
        "missing_nonlinearity",
        "The network is linear, and no wider or no worse for it."
        if evidence.affine
        else f"The network is not linear: it is {evidence.error:.2g} of its spread off a line.",
        error=evidence.error,
        layers=evidence.layers,
    )
