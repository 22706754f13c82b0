"""Pictures of a search."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_tuning.functional.search.ranges import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lightning_tuning.functional.search.search_result import (
        SearchResult,
        StageResult,
        TrialRecord,
    )

_COLUMNS = 3


def plot_search(result: SearchResult) -> Figure:
    """Draw a slice of each hyperparameter with the borders of its ranges, and all curves.

    The points of the two numbers that matter most are shown against each other too.

    Args:
        result: What ``lightning_tuning.search.coarse_to_fine`` returned.

    Returns:
        A figure that belongs to no window; ``figure.savefig("search.png")`` writes it.
    """
    from matplotlib.figure import Figure

    stages = result.stages[:-1]
    names = list(stages[0].space)
    panels = len(names) + 1 + (len(names) > 1)
    rows = math.ceil(panels / _COLUMNS)
    figure = Figure(figsize=(4.2 * min(panels, _COLUMNS), 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, min(panels, _COLUMNS), squeeze=False).flat)
    for spare in axes[panels:]:
        spare.set_axis_off()
    for name, panel in zip(names, axes, strict=False):
        _draw_slice(panel, result, name)
    if len(names) > 1:
        _draw_pair(axes[len(names)], result, *_two_that_matter(stages, names))
    _draw_curves(axes[panels - 1], result)
    axes[0].legend(fontsize="x-small")
    return figure


def _draw_slice(axes: Axes, result: SearchResult, name: str) -> None:
    for number, stage in enumerate(result.stages[:-1]):
        color = f"C{number}"
        scored = [(t.params[name], t.value) for t in stage.trials if t.value is not None]
        values = [value for value, _ in scored]
        if isinstance(stage.space[name], Choice):
            values = [str(value) for value in values]
        scores = [score for _, score in scored]
        axes.plot(values, scores, ".", color=color, label=f"stage {number + 1}")
        range_ = stage.space[name]
        if not isinstance(range_, Choice):
            for end in (range_.low, range_.high):
                axes.axvline(end, color=color, linewidth=0.8, linestyle=":")
            if range_.log:
                axes.set_xscale("log")
    if not isinstance(result.stages[0].space[name], Choice):
        axes.axvline(result.best_params[name], color="0.3", linewidth=1)
    axes.set(xlabel=name, ylabel=result.monitor)
    _limit(axes, [t.value for stage in result.stages for t in stage.trials])


def _draw_pair(axes: Axes, result: SearchResult, one: str, other: str) -> None:
    whole = [t for s in result.stages[:-1] for t in s.trials if t.value is not None]
    points = axes.scatter(
        [t.params[one] for t in whole],
        [t.params[other] for t in whole],
        c=[_rank(t.value, [w.value for w in whole]) for t in whole],
        cmap="viridis_r" if result.mode == "min" else "viridis",
        s=18,
    )
    _draw_contours(axes, result, one, other, whole)
    axes.figure.colorbar(points, ax=axes, label=f"rank of {result.monitor}")
    for set_scale, name in ((axes.set_xscale, one), (axes.set_yscale, other)):
        range_ = result.stages[0].space[name]
        if not isinstance(range_, Choice) and range_.log:
            set_scale("log")
    axes.set(xlabel=one, ylabel=other)


def _draw_contours(
    axes: Axes, result: SearchResult, one: str, other: str, whole: Sequence[TrialRecord]
) -> None:
    """Draw lines of equal rank, over the scales of the two, and the ranges of each stage."""
    from matplotlib.patches import Rectangle

    for number, stage in enumerate(result.stages[:-1]):
        across, up = stage.space[one], stage.space[other]
        if isinstance(across, Choice) or isinstance(up, Choice):
            return
        low = (float(across.low), float(up.low))
        size = (float(across.high) - low[0], float(up.high) - low[1])
        axes.add_patch(Rectangle(low, *size, fill=False, edgecolor=f"C{number}", linestyle=":"))
    values = [trial.value for trial in whole]
    places = {(float(t.params[one]), float(t.params[other])): _rank(t.value, values) for t in whole}
    points = list(places)
    with contextlib.suppress(ValueError, RuntimeError):  # points on one line have no triangles
        from matplotlib.tri import Triangulation

        flat = [
            [math.log10(v) if getattr(result.stages[0].space[name], "log", False) else v for v in c]
            for name, c in zip((one, other), zip(*points, strict=True), strict=True)
        ]
        triangles = Triangulation(*flat).triangles
        x, y = zip(*points, strict=True)
        net = Triangulation(x, y, triangles)
        axes.tricontour(net, [places[p] for p in points], levels=5, colors="0.6", linewidths=0.6)


def _draw_curves(axes: Axes, result: SearchResult) -> None:
    for number, stage in enumerate(result.stages[:-1]):
        for trial in stage.trials:
            axes.plot(trial.curve, ".-", color=f"C{number}", linewidth=0.7, markersize=2, alpha=0.6)
    axes.set(xlabel="validation", ylabel=result.monitor, title=f"{result.diverged:.0%} diverged")
    axes.title.set_fontsize("small")
    _limit(axes, [value for s in result.stages for t in s.trials for value in t.curve])


def _two_that_matter(stages: tuple[StageResult, ...], names: list[str]) -> tuple[str, str]:
    numeric = [name for name in names if not isinstance(stages[0].space[name], Choice)]
    chosen = numeric if len(numeric) > 1 else names
    weight = stages[0].importances
    first, second, *_ = sorted(chosen, key=lambda name: -weight.get(name, 0.0))
    return first, second


def _rank(value: float | None, values: list[float | None]) -> float:
    return sum(v is not None and value is not None and v < value for v in values) / len(values)


def _limit(axes: Axes, values: list[float | None]) -> None:
    """Keep a few bad trials from pressing the rest flat."""
    finite = sorted(v for v in values if v is not None and math.isfinite(v))
    if len(finite) > 4:
        low, high = finite[0], finite[int(0.9 * (len(finite) - 1))]
        if high > low:
            axes.set_ylim(low - 0.08 * (high - low), high + 0.15 * (high - low))
