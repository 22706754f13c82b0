"""A short training with one setting changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_tuning._trainer.ordinary_run import within_time
from lightning_tuning._trainer.overfit_batch.settings_candidates import Change
from lightning_tuning._trainer.overfit_batch.settings_changes import DuringSteps
from lightning_tuning._trainer.probe import Probe, Watch
from lightning_tuning._trainer.probe_results import Run


def train_with(
    probe: Probe,
    change: Change | None,
    steps: int,
    *,
    order: int,
    until: Callable[[int, Tensor], bool] | None = None,
    watch: Sequence[Watch] = (),
) -> Run:
    """Train from the fit's start.

    Args:
        probe: An entered probe.
        change: What is other than it is; None for the program as it is.
        steps: Optimizer steps.
        order: The number of the data order; 0 for the fit's own.
        until: What ends it early; None for a run that takes too long.
        watch: Contexts to be active meanwhile.
    """

    def prepare() -> None:
        if order:
            probe.box.rewind(order=order)
        if change is not None:
            change.prepare()

    values = [] if change is None or change.values is None else [change.values]
    return probe.run(
        steps,
        prepare=prepare,
        schedules=change is None or change.schedules,
        watch=[DuringSteps(*values), *(() if change is None else change.watch), *watch],
        until=until or within_time(probe),
    )
