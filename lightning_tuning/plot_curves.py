"""The curves of a fit as a picture, with the findings marked on them."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from lightning_tuning.findings import Finding
from lightning_tuning.functional.curves.loss_curves import Curves, LossCurveResult
from lightning_tuning.plot_axes import fixed_labels, plain_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"fail": "C3", "warn": "C1"}
_MOST_METRICS = 6
_WIDTH, _HEIGHT = 11.0, 7.5
_LETTERS = 150
"""So many fit into a line of the width."""
_LINE = 0.17
"""Inches that a line takes."""


def plot_curves(result: LossCurveResult) -> Figure:
    """Draw the losses in linear and in log scale, and below them metrics and learning rate.

    Findings that warn or fail are told at the top, and marked where they have a step.

    Args:
        result: What ``LossCurveDiagnosis.result`` holds.

    Returns:
        A figure that belongs to no window; ``figure.savefig("curves.png")`` writes it.

    Example:
        >>> from lightning_tuning.functional.curves.loss_curves import Curve
        >>> train = Curve(name="train_loss", steps=(0, 1, 2), values=(2.0, 1.0, 0.5))
        >>> len(plot_curves(LossCurveResult(curves=Curves(train=train))).axes)
        4
    """
    from matplotlib.figure import Figure

    curves = result.curves
    loud = [f for f in result.findings if f.verdict in _COLORS]
    told = "\n".join(_told(f) for f in loud) or "The curves show no fault"
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    # room is kept by hand, since a layout that measures all texts takes a third of the time
    room = {"left": 0.08, "right": 0.99, "bottom": 0.07, "hspace": 0.06, "wspace": 0.22}
    top = 1 - (0.25 + _LINE * (told.count("\n") + 1)) / _HEIGHT
    (linear, log), (metrics, rates) = figure.subplots(
        2, 2, sharex=True, gridspec_kw={**room, "top": top}
    )
    for axes in (linear, log):
        _draw_losses(axes, curves)
        _mark(axes, curves, loud)
    _limit_height(linear, curves)
    positive = all(v > 0 for c in (curves.train, curves.val) if c is not None for v in c.values)
    if positive and curves.train.values:
        log.set_yscale("log")
        plain_numbers(log.yaxis)
    else:
        log.set_yscale("symlog", linthresh=0.1)
    linear.set(ylabel="loss")
    log.set(ylabel="loss, log scale")
    linear.legend(fontsize="small", loc="best")
    _draw_metrics(metrics, curves)
    rates.plot(curves.epochs(curves.train.steps)[: len(curves.rates)], curves.rates, color="C4")
    rates.set(ylabel="learning rate")
    if min(curves.rates, default=0.0) >= 0:
        rates.set_ylim(bottom=0.0)
    for axes in (linear, metrics, rates):
        axes.locator_params(nbins=6)  # ticks are half of the time that a figure takes
    for axes in (linear, log, metrics, rates):
        fixed_labels(axes, left=0.15, below=0.09)
    for axes in (metrics, rates):
        axes.set(xlabel="epoch" if curves.epoch_ends else "step")
    figure.suptitle(told, y=1 - 0.1 / _HEIGHT, fontsize="small", va="top")
    return figure


def _told(finding: Finding) -> str:
    return textwrap.fill(f"{finding.code}: {finding.message}", _LETTERS)


def _draw_losses(axes: Axes, curves: Curves) -> None:
    x = curves.epochs(curves.train.steps)
    values = curves.train.values
    axes.plot(x, values, color="0.75", linewidth=0.8)
    axes.plot(x, _smoothed(values), color="C0", label=f"{curves.train.name}, smoothed")
    if curves.val is not None:
        axes.plot(curves.epochs(curves.val.steps), curves.val.values, "C1.-", label=curves.val.name)
    if curves.chance is not None:
        axes.axhline(curves.chance, color="0.3", linestyle=":", linewidth=1, label="chance")


def _draw_metrics(axes: Axes, curves: Curves) -> None:
    for metric in curves.metrics[:_MOST_METRICS]:
        axes.plot(curves.epochs(metric.steps), metric.values, ".-", label=metric.name)
    if curves.metrics:
        axes.set(ylabel="validation metrics")
        axes.legend(fontsize="small", loc="best")
    else:
        axes.set_yticks([])
        told = "no validation metrics but the loss"
        axes.text(0.5, 0.5, told, color="0.4", ha="center", transform=axes.transAxes)


def _mark(axes: Axes, curves: Curves, loud: list[Finding]) -> None:
    last = curves.train.steps[-1] if curves.train.steps else 0
    for row, finding in enumerate(loud):
        place = curves.epochs([min(finding.step, last)])[0]
        color = _COLORS[finding.verdict]
        axes.axvline(place, color=color, linestyle="--", linewidth=1)
        axes.text(
            place,
            0.97 - 0.06 * row,
            f"{finding.code} ",
            transform=axes.get_xaxis_transform(),
            horizontalalignment="right",
            verticalalignment="top",
            fontsize="x-small",
            color=color,
        )


def _smoothed(values: tuple[float, ...]) -> list[float]:
    """Return means over a twentieth of the fit around each point."""
    half = len(values) // 40
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    spans = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[first]) / (stop - first) for first, stop in spans]


def _limit_height(axes: Axes, curves: Curves) -> None:
    """Keep a few high losses from pressing the rest of the curve flat."""
    known = sorted(v for c in (curves.train, curves.val) if c is not None for v in c.values)
    if len(known) < 20:
        return
    low, high = known[0], known[math.ceil(0.98 * len(known)) - 1]
    if high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.3 * (high - low))
