"""Dead, saturated, vanishing, exploding: what the layers of a fit that goes badly tell.

A statistic of a layer is no fault by itself: healthy networks have silent units and sharp
attention. A rule speaks only where the training loss says that the fit goes badly.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lightning_tuning.findings import Finding
from lightning_tuning.functional.activations.activation_depth import (
    LAYERS,
    TREND,
    exploding_gradients,
    rank_correlation,
    vanishing_gradients,
)
from lightning_tuning.functional.activations.activation_evidence import ActivationEvidence, Symptom
from lightning_tuning.functional.activations.activation_non_finite import speak
from lightning_tuning.functional.activations.activation_result import LayerHistory
from lightning_tuning.functional.activations.activation_stats import ACTIVATIONS
from lightning_tuning.functional.fit_course import FitCourse

DEAD = 0.75
SATURATED = 0.5
FULLY = 0.8
LOUD = 10.0
FAINT = 1e-3
HOCKEY = 5.0
UNFINISHED = 0.8


def judge(evidence: ActivationEvidence) -> tuple[Finding, ...]:
    """Return a finding for each rule; a warning for the one nearest to the root at most."""
    symptoms = (
        saturated_activations(evidence),
        dead_relu(evidence),
        bad_init_scale(evidence),
        vanishing_gradients(evidence),
        exploding_gradients(evidence),
    )
    course = evidence.course
    loud = next((s for s in symptoms if s.is_there and (s.exact or not course.reason)), None)
    return tuple(_finding(symptom, evidence, guilty=symptom is loud) for symptom in symptoms)


def dead_relu(evidence: ActivationEvidence) -> Symptom:
    """Look for layers most of whose units are silent for every example."""
    code = "dead_relu"
    layers = [
        (layer, tail(layer.dead))
        for layer in evidence.result.layers
        if (known := ACTIVATIONS.get(layer.kind)) is not None and known.silences
    ]
    judged = [(layer, share) for layer, share in layers if not math.isnan(share)]
    if not judged:
        why = "too few steps were measured" if layers else "no ReLU, GELU or SiLU was seen"
        return Symptom(code=code, missing=why)
    layer, share = max(judged, key=lambda pair: pair[1])
    blocked = share == 1.0 and _nothing_passes(evidence.result.layers, layer)
    course = evidence.course
    harmful = course.trains_badly or (course.is_flat and share >= 0.9)
    return Symptom(
        code=code,
        said=f"{share:.0%} of the units after {layer.name} were silent for all examples of the "
        f"last measured steps",
        hint="Lower the learning rate, start the biases before it at zero and the weights by "
        "nn.init.kaiming_normal_; or use LeakyReLU.",
        where=layer.name,
        numbers={"dead": share, "layers": sum(share >= DEAD for _, share in judged)},
        is_there=(share >= DEAD and harmful) or blocked,
        exact=blocked,
    )


def saturated_activations(evidence: ActivationEvidence) -> Symptom:
    """Look for hidden layers most of whose values lie where the slope is next to zero."""
    code = "saturated_activations"
    layers = list(evidence.result.layers)
    last = max((i for i, layer in enumerate(layers) if layer.kind == "weight"), default=-1)
    hidden = [
        (layer, middle(layer.saturated))
        for index, layer in enumerate(layers)
        if layer.kind in (*_SQUASHING, "weight") and index < last
    ]
    judged = [(layer, share) for layer, share in hidden if not math.isnan(share)]
    if not judged:
        why = "no tanh, sigmoid or attention was seen between layers"
        return Symptom(code=code, missing=why)
    layer, share = max(judged, key=lambda pair: pair[1])
    course = evidence.course
    from_start = bool(layer.saturated) and layer.saturated[0] >= FULLY
    stays = from_start and share >= FULLY
    # weights that training has made large are no such start: a pretrained tanh may be saturated
    driven = _std_before(layers, layer) > LOUD
    slow = stays and course.progress < (UNFINISHED if driven else 0.5)
    return Symptom(
        code=code,
        said=f"{share:.0%} of the queries of {layer.name} look at one key alone"
        if layer.kind == "weight"
        else f"{share:.0%} of the values of {layer.name} lie where its slope is next to zero",
        hint="Start the weights before it smaller (nn.init.xavier_normal_), standardise what goes "
        "in, or put a normalisation before it.",
        where=layer.name,
        numbers={"saturated": share, "at_start": layer.saturated[0]},
        is_there=(share >= SATURATED and course.trains_badly) or slow,
    )


def bad_init_scale(evidence: ActivationEvidence) -> Symptom:
    """Look at the scale of the outputs of layers in the first step, beside that of the data."""
    code = "bad_init_scale"
    layers = [
        (layer.name, layer.std[0])
        for layer in evidence.result.layers
        if layer.kind == "weight" and layer.steps[0] == _first_step(evidence) and layer.std[0] > 0
    ]
    given = next(
        (
            layer.input_rms
            for layer in evidence.result.layers
            if layer.kind == "weight" and layer.input_rms > 0
        ),
        1.0,
    )
    if not layers:
        return Symptom(code=code, missing="no layer with weights was seen in the first step")
    unit = max(given, 1.0)
    name, largest = max(layers, key=lambda pair: pair[1])
    small_name, smallest = layers[-1]
    course = evidence.course
    hockey = course.first_drop > HOCKEY or course.trains_badly
    loud = largest / unit > LOUD and hockey
    faint = (
        len(layers) >= LAYERS
        and smallest / min(given, 1.0) < FAINT
        and -rank_correlation([std for _, std in layers]) > TREND
        and course.trains_badly
    )
    where, std = (small_name, smallest) if faint and not loud else (name, largest)
    return Symptom(
        code=code,
        said=f"At the first step the data had a root mean square of {given:.3g} and the outputs of "
        f"{where} a standard deviation of {std:.3g}",
        hint="Start the weights with a deviation of sqrt(2 / inputs), as nn.init.kaiming_normal_ "
        "does.",
        where=where,
        numbers={"std": std, "input_rms": given, "first_loss_over_early": course.first_drop},
        is_there=loud or faint,
    )


_SQUASHING = frozenset(name for name, known in ACTIVATIONS.items() if known.saturates) - {"relu6"}


def tail(values: Sequence[float]) -> float:
    """Return the least of the last three numbers; NaN if there are no three.

    Example:
        >>> tail([0.1, 0.9, 0.8, 1.0])
        0.8
    """
    known = [value for value in values if not math.isnan(value)][-3:]
    return min(known) if len(known) == 3 else math.nan


def middle(values: Sequence[float]) -> float:
    """Return the median of the second half; NaN if there are no three numbers.

    Example:
        >>> middle([0.0, 0.0, 0.5, 0.7])
        0.6
    """
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known[len(known) // 2 :]) if len(known) > 2 else math.nan


def _std_before(layers: Sequence[LayerHistory], layer: LayerHistory) -> float:
    """Return the deviation, in its first step, of the last layer with weights before another."""
    before = [other for other in layers[: layers.index(layer)] if other.kind == "weight"]
    return before[-1].std[0] if before else math.nan


def _nothing_passes(layers: Sequence[LayerHistory], silent: LayerHistory) -> bool:
    """Whether the gradient of all that stands before a silent layer is zero, not only small.

    A branch beside the layer, as in a residual network, lets one pass.
    """
    before = [layer.gradient_norm[-3:] for layer in layers[: layers.index(silent)]]
    known = [norms for norms in before if not any(map(math.isnan, norms))]
    return bool(known) and all(len(norms) == 3 and not any(norms) for norms in known)


def _first_step(evidence: ActivationEvidence) -> int:
    return min(layer.steps[0] for layer in evidence.result.layers)


def _finding(symptom: Symptom, evidence: ActivationEvidence, *, guilty: bool) -> Finding:
    course = evidence.course
    if symptom.missing:
        text = f"Not judged: {symptom.missing}."
        return speak("skip", symptom.code, text, step=evidence.step)
    if guilty:
        return speak(
            "warn",
            symptom.code,
            f"{symptom.said}, and {_told(course)}.",
            hint=symptom.hint,
            where=symptom.where,
            step=evidence.step,
            evidence={**symptom.numbers, "loss_first": course.start, "loss_last": course.end},
        )
    why = f"; whether that is bad is not judged: {course.reason}" if course.reason else ""
    return speak(
        "skip" if course.reason else "pass",
        symptom.code,
        f"{symptom.said}{why}.",
        where=symptom.where,
        step=evidence.step,
        evidence=symptom.numbers,
    )


def _told(course: FitCourse) -> str:
    if course.reason:
        return "nothing gets through"
    if course.diverged:
        return "the loss is not finite"
    return f"the training loss went from {course.start:.3g} to {course.end:.3g}"
