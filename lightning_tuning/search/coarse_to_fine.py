"""A search from coarse to fine."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_tuning._trainer.ranks import Ranks
from lightning_tuning.functional import checks
from lightning_tuning.functional.metric_mode import mode_of
from lightning_tuning.functional.search.finalists import rank
from lightning_tuning.functional.search.narrow import Params, borders, narrowed
from lightning_tuning.functional.search.ranges import (
    FloatRange,
    Space,
    as_space,
    from_json,
    to_json,
)
from lightning_tuning.functional.search.search_result import SearchResult, StageResult, TrialRecord
from lightning_tuning.search.first_range import range_of_rates
from lightning_tuning.search.optuna_bridge import (
    distributions,
    need_optuna,
    sampler,
    storage_of,
    study_of,
)
from lightning_tuning.search.progress import progress_line, quiet_lightning
from lightning_tuning.search.records import importances, ranked, recorded
from lightning_tuning.search.search_findings import search_findings
from lightning_tuning.search.stage import DEFAULT_STAGES, Stage
from lightning_tuning.search.trial_run import (
    MakeData,
    MakeModel,
    Outcome,
    Program,
    run_trial,
    takers,
)
from lightning_tuning.search.workers import Workers, sign_of_life, tell

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import Trial

_SPACE, _ASKED = "space", "asked"


def coarse_to_fine(
    make_model: MakeModel,
    make_data: MakeData,
    space: Mapping[str, Any],
    stages: Sequence[Stage] = DEFAULT_STAGES,
    *,
    monitor: str = "val_loss",
    mode: Literal["min", "max"] | None = None,
    trainer: Mapping[str, Any] | None = None,
    callbacks: Callable[[], list[Callback]] | None = None,
    finalists: int = 3,
    repeats: int = 3,
    widenings: int = 1,
    range_test: str | None = None,
    storage: str | BaseStorage | None = None,
    name: str = "search",
    folder: str = "search",
    seed: int = 0,
    retries: int = 1,
    stale_after: float = 3600.0,
) -> SearchResult:
    """Search for hyperparameters in stages, each nearer to the best than the one before.

    CS231n's and the tuning playbook's way: a coarse stage of short trials over wide ranges, in
    powers of ten where those matter, drops what cannot learn; each next stage trains longer,
    around the best; the last candidates are trained with several seeds before one wins. Samplers,
    pruners and storages are Optuna's.

    Called again with the same ``name`` and storage, it goes on where it was; called by several
    processes at once, on one machine or on many that share the storage, they share the trials. A
    trial whose process was killed is tried again; one that raised is marked.

    Args:
        make_model: Makes a module; called with the hyperparameters that it takes by name.
        make_data: Makes its data, a LightningDataModule or a pair of a training and a validation
            loader; called with the hyperparameters that it takes by name.
        space: The ranges by name: ``(low, high)``, on a log scale for learning rates, weight decays
            and what spans a factor of 50; a list of choices; or ranges of this package.
        stages: How many trials, how long, with which sampler.
        monitor: The metric, as the module logs it in validation.
        mode: Whether it improves downwards (``"min"``) or upwards (``"max"``); None takes what its
            name tells.
        trainer: Arguments of each ``Trainer``.
        callbacks: Makes more callbacks for each trial.
        finalists: So many candidates of the last stage are trained again.
        repeats: With so many seeds each.
        widenings: How often the last stage is repeated on wider ranges, where its best value lies
            on the border of its range.
        range_test: The name of the learning rate, whose first range a range test then sets: from
            its lowest useful rate to its highest stable one, a factor of three wider on each side.
        storage: The address of a database, ``"journal:PATH"``, a storage of Optuna's, or None for
            a journal file in ``folder``.
        name: The name of the search in its storage.
        folder: Where checkpoints, logs and the report are written.
        seed: The start of all random numbers.
        retries: How often a trial whose process was killed is tried again.
        stale_after: Seconds without a sign of life after which a worker on another machine counts
            as killed.

    Returns:
        The winner, all trials, and what there is to say about ranges and seeds.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: An argument is out of its range, or a hyperparameter has no taker.
        RuntimeError: No trial of a stage came to an end that can be compared.
    """
    need_optuna()
    mode = mode_of(monitor, mode)
    checks.at_least("finalists", finalists, 1)
    checks.at_least("repeats", repeats, 1)
    checks.at_least("widenings", widenings, 0)
    checks.at_least("retries", retries, 0)
    if not stages:
        raise ValueError("stages=() searches nothing; give at least one Stage")
    first = as_space(space)
    program = Program(
        make_model=make_model,
        make_data=make_data,
        arguments=takers(make_model, make_data, list(first)),
        monitor=monitor,
        mode=mode,
        trainer=dict(trainer or {}),
        callbacks=callbacks,
    )
    if range_test is not None and not isinstance(first.get(range_test), FloatRange):
        raise ValueError(f"range_test={range_test!r} must be the name of a range of numbers")
    place = pathlib.Path(folder)
    search = _Search(
        program=program,
        ranks=Ranks(),
        storage=storage,
        name=name,
        folder=place,
        seed=seed,
        retries=retries,
        stale_after=stale_after,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental.*")
        _quiet_optuna()
        results = search.stages(first, stages, widenings=widenings, range_test=range_test)
        result = search.final(results, stages[-1], finalists=finalists, repeats=repeats)
    if search.ranks.decides:
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.json").write_text(result.to_json())
        (place / f"{name}.yaml").write_text(result.to_yaml())
        result.plot().savefig(place / f"{name}.png", dpi=110)
    rank_zero_info(result.summary())
    return result


def _quiet_optuna() -> None:
    import optuna

    if optuna.logging.get_verbosity() == logging.INFO:
        # it warns of each choice that Sobol's sequence leaves to chance
        optuna.logging.set_verbosity(logging.ERROR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What all ranks of a trial have to know."""

    params: Params
    number: int
    seed: int
    part: str


@dataclasses.dataclass(kw_only=True)
class _Search:
    """One search, as this process sees it."""

    program: Program
    ranks: Ranks
    storage: str | BaseStorage | None
    name: str
    folder: pathlib.Path
    seed: int
    retries: int
    stale_after: float

    def __post_init__(self) -> None:
        # ranks other than zero are told what to do, and know no study
        self._store = storage_of(self.storage, self.folder) if self.ranks.decides else None

    def stages(
        self, space: Space, stages: Sequence[Stage], *, widenings: int, range_test: str | None
    ) -> list[StageResult]:
        """Run all stages, and the last one again where its best lies on a border."""
        results: list[StageResult] = []
        best: list[TrialRecord] = []
        line = list(stages)
        while line:
            stage, number = line.pop(0), len(results) + 1
            study = self._study(f"stage-{number}", stage, space if number == 1 else None)
            space = self._space(study, space, range_test if number == 1 else None, best)
            trials = self._run(study, f"stage-{number}", stage, space)
            best = ranked(trials, self.program.mode)
            if not best:
                raise RuntimeError(_nothing(number, trials))
            results.append(
                StageResult(space=space, trials=trials, importances=self._importances(study))
            )
            tried = [trial.params for trial in best]
            found = borders(space, tried[0], tried)
            if not line and found and widenings > 0:
                widenings -= 1
                line.append(stage)
            space = narrowed(space, tried, keep=stage.keep)
        return results

    def final(
        self, results: list[StageResult], stage: Stage, *, finalists: int, repeats: int
    ) -> SearchResult:
        """Train the best of the last stage with several seeds, and name a winner."""
        candidates: list[Params] = []
        for trial in ranked(results[-1].trials, self.program.mode):
            if trial.params not in candidates:
                candidates.append(trial.params)
        candidates = candidates[:finalists]
        again = dataclasses.replace(
            stage, trials=len(candidates) * repeats, sampler="random", prune=False
        )
        part = f"final-{finalists}x{repeats}"
        study = self._study(part, again, None)
        fixed = [params for params in candidates for _ in range(repeats)]
        trials = self._run(study, part, again, {}, fixed=fixed)
        groups = [
            [t for t in trials if dict(t.params) == dict(params) and t.value is not None]
            for params in candidates
        ]
        alive = [i for i, group in enumerate(groups) if group]
        if not alive:
            raise RuntimeError(_nothing("final", trials))
        ranking = rank([[t.value or 0.0 for t in groups[i]] for i in alive], self.program.mode)
        winner = alive[ranking.order[0]]
        stages = (*results, StageResult(space=results[-1].space, trials=trials, importances={}))
        findings = search_findings(
            stages,
            ranking=ranking,
            scores=[t.value or 0.0 for t in groups[winner]],
            repeats=repeats,
            mode=self.program.mode,
            monitor=self.program.monitor,
        )
        return SearchResult(
            monitor=self.program.monitor,
            mode=self.program.mode,
            best_params=candidates[winner],
            best_value=ranking.means[ranking.order[0]],
            stages=stages,
            checkpoints=tuple(t.checkpoint for t in groups[winner] if t.checkpoint),
            findings=findings,
            arguments=self.program.arguments,
        )

    def _study(self, part: str, stage: Stage, space: Space | None) -> Study | None:
        """Return the study of a stage.

        Raises:
            ValueError: There is one of another search.
        """
        if self._store is None:
            return None
        mode = self.program.mode
        study = study_of(self._store, f"{self.name}/{part}", mode=mode, prune=stage.prune)
        asked: dict[str, Any] = {
            "monitor": self.program.monitor,
            "mode": mode,
            "stage": dataclasses.asdict(stage),
        }
        asked |= {"seed": self.seed, "space": None if space is None else to_json(space)}
        # as it comes back from a storage
        asked = json.loads(json.dumps(asked))
        known = study.user_attrs.get(_ASKED, asked)
        other = [key for key in asked if known.get(key) != asked[key]]
        if other:
            raise ValueError(
                f"name={self.name!r}: the storage has a search of that name with another"
                f" {' and '.join(other)} (in {part}); take another name, or another folder"
            )
        study.set_user_attr(_ASKED, asked)
        return study

    def _space(
        self,
        study: Study | None,
        space: Space,
        range_test: str | None,
        before: Sequence[TrialRecord],
    ) -> Space:
        """Return the ranges of a stage: those that a worker has noted, else these.

        The best trial of the stage before is the first of this one, so that it is not lost.
        """
        known = None if study is None else study.user_attrs.get(_SPACE)
        known = self.ranks.agreed(known)
        if known is not None:
            return from_json(known)
        if range_test is not None:
            space = range_of_rates(self.program, space, range_test, seed=self.seed)
        if study is not None:
            study.set_user_attr(_SPACE, to_json(space))
            if before:
                study.enqueue_trial(dict(before[0].params), skip_if_exists=True)
        return from_json(self.ranks.agreed(to_json(space)))

    def _sampler(self, study: Study, stage: Stage, space: Space) -> BaseSampler:
        """Return a sampler that goes on where all workers together are."""
        # a grid and Sobol's sequence keep their place in the study
        shared = stage.sampler in ("sobol", "grid")
        count = 0 if shared else len(study.get_trials(deepcopy=False))
        return sampler(stage.sampler, space, stage.trials, self._seed(study.study_name, count))

    def _seed(self, *names: str | int) -> int:
        """Return a number of its own for each place that draws something."""
        return zlib.crc32(repr((self.seed, *names)).encode()) % 2**31

    def _importances(self, study: Study | None) -> Mapping[str, float]:
        found: Mapping[str, float] = self.ranks.agreed(
            None if study is None else importances(study)
        )
        return found

    def _run(
        self,
        study: Study | None,
        part: str,
        stage: Stage,
        space: Space,
        *,
        fixed: Sequence[Params] = (),
    ) -> tuple[TrialRecord, ...]:
        """Run trials until the stage has all of its own."""
        workers = None
        if study is not None:
            settings = {"retries": self.retries, "stale_after": self.stale_after}
            workers = Workers(study, stage.trials, **settings)  # type: ignore[arg-type]
        while True:
            trial = None
            if workers is not None and study is not None:
                study.sampler = self._sampler(study, stage, space)
                trial = workers.next(distributions(space))
            job: _Job | None = None
            if workers is not None and trial is not None:
                slot = workers.slot(trial)
                params = fixed[slot] if fixed else trial.params
                seed = self._seed(part, "weights", slot)
                job = _Job(params=params, number=trial.number, seed=seed, part=part)
            job = self.ranks.agreed(job)
            if job is None:
                break
            with quiet_lightning():
                self._try(workers, trial, job, stage)
            if study is not None:
                rank_zero_info(progress_line(study, job.part, job.number, stage.trials))
        trials = () if study is None else recorded(study)
        return tuple(self.ranks.agreed(trials))

    def _try(self, workers: Workers | None, trial: Trial | None, job: _Job, stage: Stage) -> None:
        """Run one trial on all ranks, and note how it ended."""

        def report(value: float, epoch: int) -> bool:
            assert trial is not None
            trial.report(value, epoch)
            sign_of_life(trial)
            return trial.should_prune()

        if trial is not None:
            trial.set_user_attr("params", dict(job.params))
            trial.set_user_attr("seed", job.seed)
        try:
            outcome = run_trial(
                self.program,
                job.params,
                epochs=stage.epochs,
                seed=job.seed,
                folder=self.folder / self.name / job.part,
                name=f"trial-{job.number:04d}",
                report=report,
            )
        except Exception as error:  # a person's program may fail at some point of the space
            if workers is not None and trial is not None:
                workers.end(trial, kind="crashed", error=f"{type(error).__name__}: {error}")
            return
        if trial is not None:
            _note(workers, trial, outcome)


def _note(workers: Workers | None, trial: Trial, outcome: Outcome) -> None:
    from optuna.trial import TrialState

    assert workers is not None
    trial.set_user_attr("curve", list(outcome.curve))
    trial.set_user_attr("checkpoint", outcome.checkpoint)
    trial.set_user_attr("seconds", outcome.seconds)
    if outcome.ended == "diverged" or outcome.value is None:
        workers.end(trial, kind="diverged")
    elif outcome.ended == "pruned":
        tell(trial, state=TrialState.PRUNED)
    else:
        tell(trial, outcome.value)


def _nothing(number: int | str, trials: Sequence[TrialRecord]) -> str:
    states = [trial.state for trial in trials]
    errors = [trial.error for trial in trials if trial.error]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"stage {number}: no trial can be compared with others ({told})" + (
        f"; the first that raised said {errors[0]}" if errors else ""
    )
