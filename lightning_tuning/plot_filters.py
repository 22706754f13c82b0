"""The filters of a layer over a fit; matplotlib is imported when the picture is drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_tuning.functional.filters.filter_images import grid
from lightning_tuning.functional.filters.filter_result import FilterResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4


def plot_filters(result: FilterResult) -> Figure:
    """Draw filters at some of the readings on one scale, and their smoothness over the fit.

    Args:
        result: What ``FilterMonitor.result`` holds.

    Returns:
        A figure that belongs to no window; ``figure.savefig("filters.png")`` writes it.

    Example:
        >>> import numpy as np
        >>> result = FilterResult(layer="conv", shape=(4, 1, 7, 7)).with_reading(
        ...     0, np.ones((4, 1, 7, 7))
        ... )
        >>> len(plot_filters(result).axes)
        2
    """
    from matplotlib.figure import Figure

    count = len(result.filters)
    columns = max(1, min(_COLUMNS, count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(3 * columns, 5), 3.2 * rows + 2), layout="constrained")
    places = figure.add_gridspec(rows + 1, columns, height_ratios=[*[3.0] * rows, 2.0])
    for index, (step, filters) in enumerate(zip(result.filter_steps, result.filters, strict=True)):
        axes = figure.add_subplot(places[index // columns, index % columns])
        axes.imshow(grid(filters, result.scale), interpolation="nearest")
        axes.set_title(f"step {step}", fontsize="small")
        axes.set_axis_off()
    axes = figure.add_subplot(places[rows, :])
    axes.plot(result.steps, result.smoothness, marker=".")
    axes.axhline(0, color="0.5", linestyle=":", linewidth=1)
    axes.set(xlabel="step", ylabel="smoothness", title="0: white noise, 1: constant", ylim=(-1, 1))
    figure.suptitle(f"{result.layer}: white is {result.scale:.3g}, black {-result.scale:.3g}")
    return figure
