"""Gradients that vanish or explode with depth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lightning_tuning.functional.activations.activation_evidence import ActivationEvidence, Symptom

STEEP = 1e3
TREND = 0.8
LAYERS = 4


def vanishing_gradients(evidence: ActivationEvidence) -> Symptom:
    """Look whether gradients die away on their way to the first layer."""
    code = "vanishing_gradients"
    slope = _by_depth(evidence)
    if isinstance(slope, str):
        return Symptom(code=code, missing=slope)
    first, last, ratio, trend = slope
    course = evidence.course
    badly = course.trains_badly or (course.is_flat and course.progress < 0.3)
    return Symptom(
        code=code,
        said=f"The gradient's norm at {first} is {ratio:.1g} times that at {last}",
        hint="Use ReLU or GELU instead of sigmoid, residual connections, or normalisation between "
        "layers.",
        where=first,
        numbers={"ratio": ratio, "trend": trend},
        is_there=ratio < 1 / STEEP and trend > TREND and badly,
    )


def exploding_gradients(evidence: ActivationEvidence) -> Symptom:
    """Look whether gradients grow on their way to the first layer."""
    code = "exploding_gradients"
    slope = _by_depth(evidence)
    if isinstance(slope, str):
        return Symptom(code=code, missing=slope)
    first, last, ratio, trend = slope
    course = evidence.course
    return Symptom(
        code=code,
        said=f"The gradient's norm at {first} is {ratio:.1g} times that at {last}",
        hint="Start the weights smaller, clip gradients, or put normalisation between layers.",
        where=first,
        numbers={"ratio": ratio, "trend": trend},
        is_there=ratio > STEEP and -trend > TREND and course.trains_badly,
    )


def rank_correlation(values: Sequence[float]) -> float:
    """Return Spearman's correlation of numbers with their places.

    Example:
        >>> rank_correlation([1.0, 10.0, 100.0]), rank_correlation([3.0, 2.0, 1.0])
        (1.0, -1.0)
    """
    count = len(values)
    ranks = {place: rank for rank, place in enumerate(sorted(range(count), key=values.__getitem__))}
    squares = sum((place - rank) ** 2 for place, rank in ranks.items())
    return 1 - 6 * squares / (count * (count**2 - 1))


def _by_depth(evidence: ActivationEvidence) -> tuple[str, str, float, float] | str:
    """Return first and last layer, the ratio of their gradients, and the trend in between."""
    if not evidence.gradients:
        return "gradients=False"
    sizes = []
    for layer in evidence.result.layers:
        known = [g for g in layer.gradient_norm if math.isfinite(g)]
        if layer.kind == "weight" and known:
            sizes.append((layer.name, statistics.median(known)))
    sizes = [(name, size) for name, size in sizes if size > 0]
    if len(sizes) < LAYERS:
        if evidence.compiled:
            return "inside a compiled module gradients of activations are not to be had"
        return f"fewer than {LAYERS} layers with weights get a gradient"
    ratio = sizes[0][1] / sizes[-1][1]
    return sizes[0][0], sizes[-1][0], ratio, rank_correlation([size for _, size in sizes])
