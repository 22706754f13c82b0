"""Update ratios as a map of all tensors over time; matplotlib is imported when it is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_tuning.functional.update_ratio.update_ratio import UpdateRatioResult, matrix
from lightning_tuning.plot_axes import fixed_labels, plain_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TARGET = -3.0
_REACH = 3.0
_MOST_LABELS = 40
_LONGEST = 44
_WIDTH = 10.0
_LETTER = 0.062
"""Inches that a letter of a name takes on average."""


def plot_update_ratios(result: UpdateRatioResult) -> Figure:
    """Draw the update ratio of each tensor over time, and the norms of the gradients below it.

    Colours diverge around 0.001; grey is where nothing was measured, black where a step left the
    tensor as it was. Tensors stand in the module's order.

    Args:
        result: What ``UpdateRatioMonitor.result`` holds.

    Returns:
        A figure that belongs to no window; ``figure.savefig("ratios.png")`` writes it.

    Example:
        >>> result = UpdateRatioResult(
        ...     steps=(0, 1),
        ...     names=("net.weight",),
        ...     kinds=("weight",),
        ...     log10_ratios=((-3.0,), (-2.0,)),
        ...     weight_norms=((1.0,), (1.0,)),
        ...     update_norms=((0.001,), (0.01,)),
        ...     gradient_norms=((0.5,), (0.5,)),
        ...     before_clipping=((0.5,), (2.0,)),
        ...     after_clipping=((0.5,), (1.0,)),
        ...     learning_rates=((0.1,), (0.1,)),
        ... )
        >>> [axes.get_ylabel() for axes in plot_update_ratios(result).axes]
        ['', 'gradient norm', 'log10 of update / weight']
    """
    from matplotlib.figure import Figure

    ratios = matrix(result.log10_ratios)
    shown = np.flatnonzero(~np.isnan(ratios).all(axis=0)) if ratios.size else np.arange(0)
    labels = min(len(shown), _MOST_LABELS)
    height = 2.6 + max(1.2, 0.17 * labels)
    figure = Figure(figsize=(_WIDTH, height))
    names = [f"{_shortened(result.names[i])}{_mark(result.kinds[i])}" for i in shown]
    # room is kept by hand, since a layout that measures all texts takes twice as long to draw
    left = 0.75 + _LETTER * max(map(len, names), default=0)
    map_axes, norm_axes = figure.subplots(
        2,
        1,
        sharex=True,
        height_ratios=(max(1.2, 0.17 * labels), 1.2),
        gridspec_kw={
            "left": left / _WIDTH,
            "right": 1 - 1.1 / _WIDTH,
            "top": 1 - 0.35 / height,
            "bottom": 0.5 / height,
            "hspace": 0.4 / height,
        },
    )
    _draw_map(figure, map_axes, result, shown, names)
    _draw_gradients(norm_axes, result)
    return figure


def _draw_map(
    figure: Figure,
    axes: Axes,
    result: UpdateRatioResult,
    shown: np.ndarray[tuple[int], np.dtype[np.int64]],
    names: Sequence[str],
) -> None:
    from matplotlib import colormaps

    colours = colormaps["RdBu_r"].with_extremes(bad="0.85", under="black")
    ratios = matrix(result.log10_ratios)[:, shown] if len(shown) else np.full((1, 1), np.nan)
    # the ends of the scale hold whatever is beyond; only what did not move at all is black
    values = np.where(ratios > -math.inf, np.maximum(ratios, _TARGET - _REACH), -99.0)
    values = np.where(np.isnan(ratios), np.nan, values)
    image = axes.imshow(
        values.T,
        cmap=colours,
        vmin=_TARGET - _REACH,
        vmax=_TARGET + _REACH,
        aspect="auto",
        interpolation="nearest",
        extent=(*_limits(result.steps), max(len(shown), 1) - 0.5, -0.5),
    )
    # of very many only some have room for their name
    every = max(1, math.ceil(len(names) / _MOST_LABELS))
    axes.set_yticks(range(0, len(names), every), names[::every], fontsize="x-small")
    fixed_labels(axes)
    axes.set_title("Update ratio of each tensor: red moves much, blue little, white a thousandth")
    box = axes.get_position()
    beside = figure.add_axes((box.x1 + 0.02, box.y0, 0.02, box.height))
    bar = figure.colorbar(image, cax=beside, label="log10 of update / weight", extend="both")
    bar.ax.axhline(_TARGET - 1, color="0.3", linewidth=0.8)
    bar.ax.axhline(_TARGET + 1, color="0.3", linewidth=0.8)


def _draw_gradients(axes: Axes, result: UpdateRatioResult) -> None:
    steps = np.asarray(result.steps)
    drawn = (("before clipping", result.before_clipping), ("after clipping", result.after_clipping))
    some = False
    for style, (name, rows) in zip(("-", "--"), drawn, strict=True):
        for number, norms in enumerate(matrix(rows).T):
            measured = np.isfinite(norms) & (norms > 0)
            if measured.any():
                some = True
                label = f"{name}, optimizer {number}" if len(matrix(rows).T) > 1 else name
                axes.plot(steps[measured], norms[measured], style, color=f"C{number}", label=label)
    fixed_labels(axes, left=0.08, below=0.2)
    if some:
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
        axes.legend(fontsize="x-small", loc="best")
    axes.set(xlabel="step", ylabel="gradient norm", xlim=_limits(result.steps))


def _limits(steps: tuple[int, ...]) -> tuple[float, float]:
    """Return the first and the last edge of the columns."""
    if len(steps) < 2:
        return (steps[0] - 0.5, steps[0] + 0.5) if steps else (0.0, 1.0)
    half = (steps[-1] - steps[0]) / (len(steps) - 1) / 2
    return steps[0] - half, steps[-1] + half


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else "..." + name[3 - _LONGEST :]


def _mark(kind: str) -> str:
    return "" if kind in ("weight", "bias") else f" ({kind.replace('_', ' ')})"
