"""All layers over a fit in one figure; matplotlib is imported when it is drawn.

The idea of histograms over time, one small picture a layer, is that of fastai's "colourful
dimension".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_tuning.functional.activations.activation_histograms import edges
from lightning_tuning.functional.activations.activation_result import ActivationResult, LayerHistory
from lightning_tuning.plot_axes import fixed_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 120
_ROWS = 64
_WITH_TICKS = 16
Array = np.ndarray[Any, np.dtype[Any]]


def plot_activations(result: ActivationResult) -> Figure:
    """Draw the histograms of every layer's outputs over the steps.

    Each picture has the steps on its horizontal axis and the value, on a scale that is logarithmic
    away from zero, on its vertical one; the brighter, the more values. A red line is the share of
    dead units, an orange one of saturated values, from 0 at the lower edge to 1 at the upper. A
    red column holds a value that is not finite.

    Args:
        result: ``ActivationMonitor.result``.

    Returns:
        A figure that belongs to no window; ``figure.savefig("layers.png")`` writes it.

    Example:
        >>> from lightning_tuning.functional.activations.activation_result import ActivationRecord
        >>> len(plot_activations(ActivationRecord(every_n_steps=10).result()).axes)
        0
    """
    from matplotlib.figure import Figure

    layers = [layer for layer in result.layers if any(layer.counts)]
    count = len(layers)
    across = max(1, min(math.ceil(math.sqrt(count)), 10))
    down = max(1, math.ceil(count / across))
    detailed = count <= _WITH_TICKS
    width, height = (3.4, 2.3) if detailed else (1.7, 1.25)
    figure = Figure(figsize=(max(across * width, 4.0), down * height + 0.7))
    for place, layer in enumerate(layers):
        axes = figure.add_subplot(down, across, place + 1)
        _draw(axes, layer, detailed=detailed)
    top = 1 - 0.55 / (down * height + 0.7)
    figure.suptitle(
        "Outputs of each layer: how many values (colour) of which size (height), over the steps.\n"
        "Lines: dead units (red) and saturated values (orange), from 0 to 1.",
        fontsize=8,
        y=1 - 0.08 / (down * height + 0.7),
    )
    gap = 0.35 if detailed else 0.28
    figure.subplots_adjust(
        left=0.02 + 0.045 * detailed,
        right=0.99,
        top=top - (0.3 / (down * height + 0.7)),
        bottom=0.03 + 0.04 * detailed,
        wspace=gap if detailed else 0.06,
        hspace=gap + 0.1 * detailed,
    )
    return figure


def heat(layer: LayerHistory) -> tuple[Array, Array, float, float]:
    """Return what is drawn of a layer.

    Returns:
        The share of values in 64 rows of equal height, for at most 120 steps; these steps; the
        value that is the unit of the vertical scale ``sign(x) * log1p(|x| / unit)``; and the
        scale's end. Columns of values that are not finite are NaN.
    """
    chosen = np.unique(np.linspace(0, len(layer.steps) - 1, _COLUMNS).round().astype(int))
    sizes = np.array([layer.rms[index] for index in chosen])
    usable = np.isfinite(sizes) & (sizes > 0)
    unit = float(np.median(sizes[usable])) if usable.any() else 1.0
    shares = np.full((_ROWS, len(chosen)), np.nan)
    cumulated: list[tuple[Array, Array] | None] = []
    for index, size, is_good in zip(chosen, sizes, usable, strict=True):
        counts = np.array(layer.counts[index], dtype=float)
        if not counts.sum():
            cumulated.append(None)
            continue
        bounds = np.array(edges(len(counts))) * (size if is_good else 1.0) / unit
        places = np.copysign(np.log1p(np.abs(bounds)), bounds)
        cumulated.append((places, np.concatenate([[0.0], counts.cumsum()]) / counts.sum()))
    end = _end([c for c in cumulated if c is not None])
    target = np.linspace(-end, end, _ROWS + 1)
    for column, known in enumerate(cumulated):
        if known is not None:
            shares[:, column] = np.diff(np.interp(target, *known))
    return shares, np.array(layer.steps)[chosen], unit, end


def _end(cumulated: list[tuple[Array, Array]]) -> float:
    """Return how far the scale must reach so that nearly nothing is cut off."""
    ends = [
        max(abs(float(np.interp(share, total, places))) for share in (0.002, 0.998))
        for places, total in cumulated
    ]
    return min(max([1.0, *ends]), 12.0)


def _draw(axes: Axes, layer: LayerHistory, *, detailed: bool) -> None:
    from matplotlib import colormaps

    shares, steps, unit, end = heat(layer)
    colours = colormaps["magma"].with_extremes(bad="red")
    first, last = float(steps[0]), float(max(steps[-1], steps[0] + 1))
    axes.imshow(
        np.log1p(1000 * shares),
        aspect="auto",
        origin="lower",
        cmap=colours,
        vmin=0.0,
        vmax=math.log1p(500),
        extent=(first, last, -end, end),
        interpolation="nearest",
    )
    title = layer.name if len(layer.name) <= 24 else f"…{layer.name[-23:]}"
    for values, colour, word in ((layer.dead, "red", "dead"), (layer.saturated, "orange", "sat.")):
        known = [(s, v) for s, v in zip(layer.steps, values, strict=True) if math.isfinite(v)]
        if known:
            at, value = zip(*known, strict=True)
            heights = [end * (2 * v - 1) for v in value]
            axes.plot(at, heights, color=colour, linewidth=1.2, clip_on=False)
            title += f"  {word} {value[-1]:.0%}"
    fixed_labels(axes)
    axes.set_title(title, fontsize=8 if detailed else 6, pad=2)
    axes.set_xlim(first, last)
    axes.set_ylim(-end, end)
    if not detailed:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    sizes = [size for size in (1.0, 10.0, 100.0, 1000.0) if math.log1p(size) < end]
    places = [-math.log1p(s) for s in sizes] + [0.0] + [math.log1p(s) for s in sizes]
    labels = [f"{-s * unit:.2g}" for s in sizes] + ["0"] + [f"{s * unit:.2g}" for s in sizes]
    axes.set_yticks(places, labels)
    axes.locator_params("x", nbins=3)  # ticks are most of the time that a figure takes
    axes.tick_params(labelsize=6)
