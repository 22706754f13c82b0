"""What a search has found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning_tuning.findings import Finding
from lightning_tuning.functional.findings_table import as_text
from lightning_tuning.functional.metric_mode import MetricMode
from lightning_tuning.functional.search.ranges import Space, to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TrialState = Literal["complete", "pruned", "diverged", "crashed", "lost"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: Its number in its stage.
        params: Its hyperparameters.
        value: Its best metric; None where there is none.
        state: ``"complete"``; ``"pruned"``, which was worse than others; ``"diverged"``, whose
            metric was no finite number; ``"crashed"``, which raised; ``"lost"``, whose process
            ended.
        curve: The metric after each validation.
        seed: The seed of its weights and data order.
        checkpoint: Its best weights; empty where there are none.
        error: What it raised.
        seconds: How long it ran.
    """

    number: int
    params: Mapping[str, Any]
    value: float | None
    state: TrialState
    curve: tuple[float, ...] = ()
    seed: int = 0
    checkpoint: str = ""
    error: str = ""
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResult:
    """One stage.

    Attributes:
        space: The ranges that it searched.
        trials: All its trials.
        importances: The share of each hyperparameter in how much the metric varies (PED-ANOVA);
            empty where there are too few trials.
    """

    space: Space
    trials: tuple[TrialRecord, ...]
    importances: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What :func:`~lightning_tuning.search.coarse_to_fine` found.

    Attributes:
        monitor: The metric.
        mode: Which values are better.
        best_params: The hyperparameters of the winner.
        best_value: Its metric, the mean over seeds.
        stages: Each stage, the repetitions of the last candidates among them as the last one.
        checkpoints: The best weights of the winner, for each seed.
        findings: What there is to say.
        arguments: Which hyperparameters go to the model, and which to the data.
    """

    monitor: str
    mode: MetricMode
    best_params: Mapping[str, Any]
    best_value: float
    stages: tuple[StageResult, ...]
    checkpoints: tuple[str, ...]
    findings: tuple[Finding, ...]
    arguments: Mapping[str, Sequence[str]]

    @property
    def diverged(self) -> float:
        """The share of all trials that diverged."""
        trials = [trial for stage in self.stages for trial in stage.trials]
        return sum(trial.state == "diverged" for trial in trials) / max(len(trials), 1)

    def summary(self) -> str:
        """Return the winner and the findings as text."""
        told = ", ".join(f"{name}={_short(value)}" for name, value in self.best_params.items())
        return f"best {self.monitor} {self.best_value:.4g} with {told}\n{as_text(self.findings)}"

    def to_yaml(self) -> str:
        """Return the winner as a configuration for LightningCLI, to be merged with the rest."""
        lines = []
        for part in ("model", "data"):
            names = [name for name in self.arguments.get(part, ()) if name in self.best_params]
            if names:
                lines += [f"{part}:", "  init_args:"]
                lines += [f"    {name}: {json.dumps(self.best_params[name])}" for name in names]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Return everything as a JSON object."""
        stages = [{**dataclasses.asdict(s), "space": to_json(s.space)} for s in self.stages]
        findings = [finding.to_dict() for finding in self.findings]
        content = {**dataclasses.asdict(self), "stages": stages, "findings": findings}
        return json.dumps(content, indent=1)

    def plot(self) -> Figure:
        """Draw slices of all stages with the borders of their ranges, and the curves of trials."""
        from lightning_tuning.plot_search import plot_search

        return plot_search(self)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
