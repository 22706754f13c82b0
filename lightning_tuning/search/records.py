"""Trials of a study as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_tuning.functional.metric_mode import MetricMode, sign_of
from lightning_tuning.functional.search.search_result import TrialRecord, TrialState
from lightning_tuning.search.workers import KIND, SURPLUS

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

_FEW = 8
"""Importances of fewer trials mean nothing."""
_ALIKE = 3
_MISTAKES = (
    "AttributeError",
    "FileNotFoundError",
    "ImportError",
    "KeyError",
    "MisconfigurationException",
    "ModuleNotFoundError",
    "NameError",
    "TypeError",
)


def recorded(study: Study) -> tuple[TrialRecord, ...]:
    """Return all trials that were run, in the order of their numbers."""
    from optuna.trial import TrialState as State

    trials = study.get_trials(deepcopy=False)
    run = [t for t in trials if t.state not in (State.WAITING, State.RUNNING)]
    return tuple(_record(t) for t in run if t.user_attrs.get(KIND) != SURPLUS)


def ranked(trials: Sequence[TrialRecord], mode: MetricMode) -> list[TrialRecord]:
    """Return the trials that came to their end, best first."""
    sign = sign_of(mode)
    whole = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    return sorted(whole, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def all_crashed_alike(trials: Sequence[TrialRecord]) -> bool:
    """Whether there are three trials at least, and all have raised the same mistake of a program.

    An error of another kind, such as one about memory, may depend on the hyperparameters.
    """
    errors = {trial.error for trial in trials}
    crashed = all(trial.state == "crashed" for trial in trials)
    if len(trials) < _ALIKE or not crashed or len(errors) > 1:
        return False
    return errors.pop().split(":")[0] in _MISTAKES


def importances(study: Study) -> Mapping[str, float]:
    """Return the share of each hyperparameter in how much the metric varies, by PED-ANOVA."""
    import optuna
    from optuna.trial import TrialState as State

    whole = study.get_trials(deepcopy=False, states=(State.COMPLETE,))
    if len(whole) < _FEW or len({trial.value for trial in whole}) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _record(trial: FrozenTrial) -> TrialRecord:
    from optuna.trial import TrialState as State

    told = trial.user_attrs
    states: dict[State, TrialState] = {State.COMPLETE: "complete", State.PRUNED: "pruned"}
    state = states.get(trial.state, told.get(KIND, "lost"))
    value = trial.value
    if value is None and trial.state == State.PRUNED and trial.intermediate_values:
        value = list(trial.intermediate_values.values())[-1]
    return TrialRecord(
        number=trial.number,
        params=told.get("params", trial.params),
        value=value,
        state=state,
        curve=tuple(told.get("curve", ())),
        seed=told.get("seed", 0),
        checkpoint=told.get("checkpoint", ""),
        error=told.get("error", ""),
        seconds=told.get("seconds", 0.0),
    )
