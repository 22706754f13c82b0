"""From a result to a picture; matplotlib is imported when a picture is drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_tuning.functional.ensembles.ensemble_result import EnsembleResult
from lightning_tuning.functional.lr_range_test import LRRangeResult, LRSweep
from lightning_tuning.functional.overfit_batch import OverfitBatchResult
from lightning_tuning.functional.schedules.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_schedule(schedule: Schedule) -> Figure:
    """Draw the learning rate and momentum of each parameter group over the steps.

    Args:
        schedule: The schedule, such as ``OneCycle.result`` or ``one_cycle_schedule(...)``.

    Returns:
        A figure that belongs to no window; ``figure.savefig("cycle.png")`` writes it.

    Example:
        >>> from lightning_tuning.functional.schedules.one_cycle import one_cycle_schedule
        >>> len(plot_schedule(one_cycle_schedule(100, max_lr=0.1)).axes)
        2
    """
    from matplotlib.figure import Figure

    curve = schedule.curve()
    panels = 1 + any(schedule.cycle_momentum)
    figure = Figure(figsize=(4.5 * panels, 3.2), layout="constrained")
    lr_axes, *others = figure.subplots(1, panels, sharex=True, squeeze=False)[0]
    for index, (lr, momentum) in enumerate(zip(curve["lr"], curve["momentum"], strict=True)):
        lr_axes.plot(curve["step"], lr, label=f"group {index}")
        for axes in others if momentum else []:
            axes.plot(curve["step"], momentum, label=f"group {index}")
    lr_axes.set(xlabel="step", ylabel="learning rate")
    for axes in others:
        axes.set(xlabel="step", ylabel="momentum (beta1)")
    if len(schedule.max_lr) > 1:
        lr_axes.legend()
    return figure


def plot_lr_range_test(result: LRRangeResult) -> Figure:
    """Draw the loss over the learning rate, all sweeps, the suggestion and the stable range.

    Args:
        result: What ``lr_range_test`` returned, or ``LRRangeTest.result``.

    Returns:
        A figure that belongs to no window; ``figure.savefig("range.png")`` writes it.

    Example:
        >>> from lightning_tuning.functional.lr_analysis import analyse
        >>> from lightning_tuning.functional.lr_range_test import LRSweep
        >>> sweep = LRSweep(rates=(0.1, 0.2, 0.4), losses=(1.0, 0.9, 0.8))
        >>> len(plot_lr_range_test(analyse([sweep])).axes)
        1
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    _draw_sweeps(axes, result)
    axes.plot(result.rates, result.smoothed, color="C0", linewidth=2.5, label="smoothed", zorder=3)
    if result.lr_range is not None:
        axes.axvspan(*result.lr_range, color="C2", alpha=0.12, label="useful and stable")
    _draw_suggestions(axes, result)
    _draw_trials(axes, result)
    if len(result.rates) > 1:
        axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel=result.metric, title=_title(result))
    _limit_height(axes, result)
    axes.legend(fontsize="small", loc="best")
    return figure


def _draw_sweeps(axes: Axes, result: LRRangeResult) -> None:
    for index, sweep in enumerate(result.sweeps):
        label = _setting_label(sweep) if len(result.sweeps) > 1 else "measured"
        color = f"C{(index + 4) % 10}" if len(result.sweeps) > 1 else "0.65"
        axes.plot(sweep.rates, sweep.losses, color=color, linewidth=1, label=label)


def _setting_label(sweep: LRSweep) -> str:
    parts = [
        f"{name} {value:g}"
        for name, value in (("weight decay", sweep.weight_decay), ("momentum", sweep.momentum))
        if value is not None
    ]
    return ", ".join([*parts, f"order {sweep.order}"])


def _draw_suggestions(axes: Axes, result: LRRangeResult) -> None:
    named = False
    for index, (name, rate) in enumerate(sorted(result.suggestions.items())):
        if name != result.suggested_by:
            label = None if named else "other rules"
            axes.axvline(rate, color="0.5", linestyle=":", linewidth=1, label=label)
            named = True
            height = 0.02 + 0.06 * (index % 4)
            axes.text(rate, height, name, transform=axes.get_xaxis_transform(), fontsize="x-small")
    if result.suggestion is not None:
        label = f"{result.suggested_by}: {result.suggestion:.2e}"
        axes.axvline(result.suggestion, color="C3", linewidth=2, label=label)
        interval = result.uncertainty[result.suggested_by]
        axes.axvspan(*interval, color="C3", alpha=0.12, label="cannot be told apart")


def _draw_trials(axes: Axes, result: LRRangeResult) -> None:
    stable = [trial for trial in result.trials if math.isfinite(trial.score)]
    if stable:
        axes.plot(
            [trial.rate for trial in stable],
            [trial.score if result.metric_mode == "min" else -trial.score for trial in stable],
            "o",
            color="C1",
            label="mean loss of a short run",
            zorder=4,
        )


def _limit_height(axes: Axes, result: LRRangeResult) -> None:
    """Keep a diverging end from pressing the rest of the curve flat."""
    if len(result.smoothed) < 3:
        return
    low, high = min(result.smoothed), max(result.smoothed[: max(len(result.smoothed) // 3, 2)])
    if high > low:
        axes.set_ylim(low - 0.15 * (high - low), high + 0.5 * (high - low))


def _title(result: LRRangeResult) -> str:
    if result.suggestion is None:
        return "Learning-rate range test: no suggestion"
    best = [
        f"{name} {value:g}"
        for name, value in (("weight decay", result.weight_decay), ("momentum", result.momentum))
        if value is not None
    ]
    return ", ".join([f"Learning-rate range test: {result.suggestion:.2e}", *best])


def plot_ensemble(result: EnsembleResult) -> Figure:
    """Draw a metric over the size of an ensemble, and that of each member alone.

    Args:
        result: What ``CheckpointEnsemble.result`` holds.

    Returns:
        A figure that belongs to no window; ``figure.savefig("ensemble.png")`` writes it.

    Example:
        >>> from lightning_tuning.functional.ensembles.ensemble_result import EnsembleMember
        >>> member = EnsembleMember(path="a.ckpt", step=1, epoch=0)
        >>> result = EnsembleResult(
        ...     metric="val_loss", mode="min", members=(member,) * 2, alone=(0.5, 0.6),
        ...     together=(0.5, 0.4),
        ... )
        >>> len(plot_ensemble(result).axes)
        1
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sizes = range(1, len(result.members) + 1)
    axes.plot(sizes, result.together, "o-", label="the best so many, averaged")
    axes.plot(sizes, result.alone, "x", color="0.5", label="each member alone")
    for size, member, value in zip(sizes, result.members, result.alone, strict=True):
        axes.annotate(
            f"step {member.step}",
            (size, value),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize="x-small",
        )
    axes.set(xlabel="members", ylabel=result.metric, xticks=list(sizes))
    axes.legend(fontsize="small")
    return figure


def plot_overfit_batch(result: OverfitBatchResult) -> Figure:
    """Draw the loss on the tiny batch over the steps, of each run, with chance and floor.

    Args:
        result: What ``OverfitBatchCheck.result`` holds.

    Returns:
        A figure that belongs to no window; ``figure.savefig("overfit.png")`` writes it.

    Example:
        >>> from lightning_tuning.functional.overfit_batch import OverfitRun
        >>> run = OverfitRun(rate=0.1, factor=1.0, losses=(2.0, 0.5))
        >>> result = OverfitBatchResult(samples=20, chance=2.0, floor=0.0, target=0.1, runs=(run,))
        >>> len(plot_overfit_batch(result).axes)
        1
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for run in result.runs:
        width = 2.0 if run is result.best else 1.0
        axes.plot(run.losses, linewidth=width, label=f"learning rate {run.rate:.2g}")
    if result.zeroed is not None:
        axes.plot(result.zeroed.losses, color="0.5", linestyle="--", label="zeros for inputs")
    for level, name in ((result.chance, "chance"), (result.floor, "floor")):
        if level is not None:
            axes.axhline(level, color="0.3", linestyle=":", linewidth=1)
            # at the right, where the curve has left it
            place = axes.get_yaxis_transform()
            axes.text(0.99, level, name, fontsize="x-small", transform=place, ha="right")
    top = max((x for x in (result.start, result.chance) if x is not None and x > 0), default=1.0)
    axes.set_yscale("symlog", linthresh=max(1e-3 * top, 1e-12))
    losses = [loss for run in result.runs for loss in run.losses if math.isfinite(loss)]
    if min(losses, default=0.0) >= 0:
        axes.set_ylim(bottom=0.0)
    done = "learnt by heart" if result.overfitted else f"{result.share:.0%} of the way done"
    axes.set(xlabel="step", ylabel="training loss", title=f"A tiny batch, over and over: {done}")
    axes.legend(fontsize="small", loc="best")
    return figure
