"""Data, starts and activations with which a network does not train."""

from __future__ import annotations

import dataclasses
import math

from lightning_tuning.findings import Finding
from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.signal_sizes import EXPLODES, Signal
from lightning_tuning.functional.wiring.wiring_finding import wiring

FAR_OFF = 30.0
"""Tied embeddings from torch's own start may begin ten times as high as chance, and train."""
_MUCH = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailedReadings:
    """Values that repeat far from the rest of the data, and a training without them.

    Attributes:
        where: The place of the tensor in the batch.
        value: One of them.
        count: So many entries were seen to have one.
        share: Of all entries seen.
        distance: From their columns' medians, in robust deviations.
        trained: As it is, judged by batches without these values.
        filled: The loss on those batches after as long a training with the medians instead.
    """

    where: str
    value: float
    count: int
    share: float
    distance: float
    trained: Trained
    filled: float

    @property
    def harmful(self) -> bool:
        """Whether the program trains badly, and much better without them.

        Both trainings start alike and are judged alike, so that less tells than of other cures.
        """
        known = (self.trained.before, self.trained.after, self.trained.chance)
        finite = (loss for loss in known if loss is not None and math.isfinite(loss))
        lowest = min(finite, default=math.inf)
        return self.trained.may_be_cured and self.filled < lowest - _MUCH * abs(lowest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignalEvidence:
    """Sizes before the first step, how the program trains, and what helps.

    Attributes:
        signal: The sizes.
        trained: As it is.
        standardised: The loss after as long a training on data of mean 0 and deviation 1.
        rescaled: The same from weights at which each layer's output varies by one.
        early: The mean loss over all steps of the training as it is, where its start is far off.
        early_rescaled: The same from those weights.
        failed: Values in the data that stand for failed readings; None where there are none.
        slower: Whether that was at a tenth of the learning rate, which alone does not help.
        faster: Whether data were standardised at ten times the rate, which alone does not help.
    """

    signal: Signal
    trained: Trained
    standardised: float | None = None
    rescaled: float | None = None
    slower: bool = False
    faster: bool = False
    early: float | None = None
    early_rescaled: float | None = None
    failed: FailedReadings | None = None

    @property
    def starts_far_off(self) -> bool:
        """Whether the first loss is so far above chance that another start is worth trying."""
        chance = self.trained.chance
        return (
            chance is not None
            and self.trained.before > FAR_OFF * chance
            and self.signal.symptom() == "bad_init_scale"
            and not self.signal.odd_inputs
        )

    @property
    def loses_its_start(self) -> bool:
        """Whether a short training is worse on average than chance, rescaled far better."""
        chance, early, rescaled = self.trained.chance, self.early, self.early_rescaled
        if not self.starts_far_off or chance is None or early is None or rescaled is None:
            return False
        return early > chance and rescaled < 0.5 * chance

    def cause(self) -> str:
        """Return the one code that is to blame; empty where none is."""
        if self.failed is not None and self.failed.harmful:
            return "unnormalized_input"
        if self.loses_its_start:
            return "bad_init_scale"
        if self.signal.odd_inputs and self.trained.cured_by(self.standardised):
            return "unnormalized_input"
        if self.trained.cured_by(self.rescaled):
            return self.signal.symptom()
        return ""


def unnormalized_input(evidence: SignalEvidence) -> tuple[Finding, ...]:
    """Judge the scale of the data where they enter the network."""
    code = "unnormalized_input"
    scales = evidence.signal.inputs
    if evidence.failed is not None and evidence.failed.harmful:
        return _failed(evidence.failed)
    if not scales:
        return wiring("skip", code, "No floating-point data enter a layer with weights.")
    odd = evidence.signal.odd_inputs
    worst = max(odd or scales, key=lambda scale: scale.size)
    numbers = {"size": worst.size, "offset": worst.offset, "unequal": worst.unequal}
    said = (
        f"The data enter {worst.name} with a root mean square of {worst.size:.3g}, means of "
        f"{worst.offset:.2g} deviations, and deviations up to {worst.unequal:.3g} times the median"
    )
    if evidence.cause() != code:
        return wiring("pass", code, f"{said}.", hint="", where=worst.name, **numbers)
    how = "with each feature standardised"
    how += " and ten times the learning rate" if evidence.faster else ""
    return wiring(
        "warn",
        code,
        f"{said}; {_helps(evidence, evidence.standardised, how)}.",
        hint="Give each feature mean 0 and deviation 1, by statistics of the training data.",
        where=worst.name,
        **numbers,
        **_losses(evidence, evidence.standardised),
    )


def _failed(failed: FailedReadings) -> tuple[Finding, ...]:
    return wiring(
        "warn",
        "unnormalized_input",
        f"{failed.count} values of {failed.where} ({failed.share:.2g} of all) are "
        f"{failed.value:.6g} or such, {failed.distance:.3g} robust deviations from the median, "
        "with nothing between them and the rest; a short training ends at a loss of "
        f"{failed.trained.after:.3g}, with the medians in their place at {failed.filled:.3g}.",
        hint="If this number stands for a missing value, fill it or leave the example out.",
        where=failed.where,
        value=failed.value,
        count=failed.count,
        share=failed.share,
        distance=failed.distance,
        loss_after=failed.trained.after,
        loss_rescued=failed.filled,
    )


def dead_relu(evidence: SignalEvidence) -> tuple[Finding, ...]:
    """Judge units that are zero for every example."""
    found = evidence.signal.rectified
    if not found:
        return wiring("skip", "dead_relu", "The network calls no ReLU.")
    worst = max(found, key=lambda r: r.dead)
    said = (
        f"{worst.dead:.0%} of the {worst.units} ReLUs after {worst.after or 'an unnamed layer'} "
        "are zero for every example of a few batches"
    )
    return _verdict(
        evidence,
        "dead_relu",
        said,
        "Start the biases before these ReLUs at zero and the weights by nn.init.kaiming_normal_.",
        worst.after,
        dead=worst.dead,
    )


def saturated_activations(evidence: SignalEvidence) -> tuple[Finding, ...]:
    """Judge tanhs and sigmoids between layers."""
    found = evidence.signal.squashed
    if not found:
        return wiring("skip", "saturated_activations", "No tanh or sigmoid stands between layers.")
    worst = max(found, key=lambda s: s.flat)
    said = f"{worst.flat:.0%} of the activations after {worst.after} have a slope below 0.0014"
    return _verdict(
        evidence,
        "saturated_activations",
        said,
        "Start these weights smaller, by nn.init.xavier_normal_, and standardise the inputs.",
        worst.after,
        flat=worst.flat,
    )


def bad_init_scale(evidence: SignalEvidence) -> tuple[Finding, ...]:
    """Judge the size of layers' outputs before the first step."""
    signal = evidence.signal
    if not signal.layers:
        return wiring("skip", "bad_init_scale", "No layer with weights was seen.")
    if evidence.loses_its_start:
        return _far_off(evidence)
    if signal.logits is not None and signal.logits > EXPLODES and not signal.loud:
        said = f"What enters the loss has a deviation of {signal.logits:.3g} at the start"
        hint = (
            "Start the last layer smaller, or divide its output, so that the logits are about one."
        )
        return _verdict(evidence, "bad_init_scale", said, hint, "", deviation=signal.logits)
    odd = (*signal.loud, *signal.faint) or signal.fading or signal.layers
    first = odd[0]
    said = (
        f"At the start the outputs of {first.name} have a deviation of {first.spread:.3g} about "
        f"each unit's mean, those of {signal.layers[-1].name} one of {signal.layers[-1].spread:.3g}"
    )
    return _verdict(
        evidence,
        "bad_init_scale",
        said,
        "Start the weights with a deviation of sqrt(2 / inputs), as nn.init.kaiming_normal_ does.",
        first.name,
        deviation=first.spread,
    )


def _far_off(evidence: SignalEvidence) -> tuple[Finding, ...]:
    signal, trained = evidence.signal, evidence.trained
    loud = max(signal.layers, key=lambda layer: layer.spread)
    return wiring(
        "warn",
        "bad_init_scale",
        f"The first loss is {trained.before:.3g}, where a predictor that knows nothing has "
        f"{trained.chance:.3g}: the outputs of {loud.name} have a deviation of {loud.spread:.3g}. "
        f"Over a short training the loss is {evidence.early:.3g} on average, "
        f"{evidence.early_rescaled:.3g} with each layer's output brought to deviation 1.",
        hint="Start these weights smaller, so that what enters the loss has a deviation of about "
        "one.",
        where=loud.name,
        deviation=loud.spread,
        loss_before=trained.before,
        loss_early=evidence.early,
        loss_early_rescaled=evidence.early_rescaled,
    )


def vanishing_gradients(evidence: SignalEvidence) -> tuple[Finding, ...]:
    """Judge whether the gradient reaches the first layer, or the first time step."""
    signal = evidence.signal
    if signal.forgetful:
        worst = min(signal.forgetful, key=lambda r: r.memory)
        said = (
            f"{worst.name} has a largest singular value of {worst.norm:.2g}, so that over "
            f"{worst.steps} time steps at most {worst.memory:.1g} of a gradient is left"
        )
        hint = "Start the recurrent matrix by nn.init.orthogonal_, or use nn.LSTM or nn.GRU."
        return _verdict(evidence, "vanishing_gradients", said, hint, worst.name, ratio=worst.memory)
    return _by_depth(
        evidence,
        "vanishing_gradients",
        "Use ReLU instead of sigmoid, residual connections, or normalisation between the layers.",
    )


def exploding_gradients(evidence: SignalEvidence) -> tuple[Finding, ...]:
    """Judge whether the gradient grows on its way to the first layer."""
    return _by_depth(
        evidence,
        "exploding_gradients",
        "Start the weights smaller, or put normalisation between the layers.",
    )


def _by_depth(evidence: SignalEvidence, code: str, hint: str) -> tuple[Finding, ...]:
    ratio = evidence.signal.slope
    if ratio is None:
        return wiring(
            "skip", code, "Fewer than three layers get a gradient, or the first gets none."
        )
    first = evidence.signal.layers[0].name
    said = f"The gradient of {first} is {ratio:.2g} times that of the last layer"
    return _verdict(evidence, code, said, hint, first, ratio=ratio)


def _verdict(
    evidence: SignalEvidence, code: str, said: str, hint: str, where: str, **numbers: float
) -> tuple[Finding, ...]:
    if evidence.cause() != code:
        return wiring("pass", code, f"{said}.", hint="", where=where, **numbers)
    how = "with each layer's output brought to deviation 1"
    how += " and a tenth of the learning rate" if evidence.slower else ""
    helps = _helps(evidence, evidence.rescaled, how)
    losses = _losses(evidence, evidence.rescaled)
    return wiring("warn", code, f"{said}; {helps}.", hint=hint, where=where, **numbers, **losses)


def _helps(evidence: SignalEvidence, rescued: float | None, how: str) -> str:
    return (
        f"a short training ends at a loss of {evidence.trained.after:.3g}, {how} at {rescued:.3g}"
    )


def _losses(evidence: SignalEvidence, rescued: float | None) -> dict[str, float | None]:
    return {"loss_after": evidence.trained.after, "loss_rescued": rescued}
