"""The stages of a search, one after the other, shared out to workers and ranks."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_tuning._trainer.ranks import Ranks
from lightning_tuning.functional.search.finalists import rank
from lightning_tuning.functional.search.narrow import Params, borders, narrowed
from lightning_tuning.functional.search.ranges import (
    Space,
    from_json,
    to_json,
)
from lightning_tuning.functional.search.search_result import SearchResult, StageResult, TrialRecord
from lightning_tuning.search.first_range import range_of_rates
from lightning_tuning.search.optuna_bridge import (
    distributions,
    sampler,
    storage_of,
    study_of,
)
from lightning_tuning.search.progress import progress_line, quiet_lightning
from lightning_tuning.search.records import all_crashed_alike, importances, ranked, recorded
from lightning_tuning.search.search_findings import search_findings
from lightning_tuning.search.stage import Stage
from lightning_tuning.search.trial_run import (
    Outcome,
    Program,
    run_trial,
)
from lightning_tuning.search.workers import Workers, sign_of_life, tell, unless_taken_for_lost

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import Trial

_SPACE, _ASKED = "space", "asked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What all ranks of a trial have to know."""

    params: Params
    number: int
    seed: int
    part: str


@dataclasses.dataclass(kw_only=True)
class SearchRun:
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
                raise RuntimeError(_nothing(f"stage-{number}", trials))
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
            try:
                with quiet_lightning(), unless_taken_for_lost():
                    self._try(workers, trial, job, stage)
            except BaseException:
                # a notebook lives on after Ctrl-C, and would wait for itself
                if workers is not None and trial is not None:
                    workers.release(trial)
                raise
            if study is not None:
                rank_zero_info(progress_line(study, job.part, job.number, stage.trials))
            self._stop_if_hopeless(study, part)
        trials = () if study is None else recorded(study)
        return tuple(self.ranks.agreed(trials))

    def _stop_if_hopeless(self, study: Study | None, part: str) -> None:
        """End a search of which every trial will raise the same."""
        trials = () if study is None else recorded(study)
        why = _nothing(part, trials) if all_crashed_alike(trials) else ""
        if why := self.ranks.agreed(why):
            raise RuntimeError(why)

    def _try(self, workers: Workers | None, trial: Trial | None, job: _Job, stage: Stage) -> None:
        """Run one trial on all ranks, and note how it ended."""

        def alive() -> None:
            assert trial is not None
            with unless_taken_for_lost():
                sign_of_life(trial)

        def report(value: float, epoch: int) -> bool:
            assert trial is not None
            with unless_taken_for_lost():
                trial.report(value, epoch)
                sign_of_life(trial)
                if not trial.should_prune():
                    return False
            # nobody waits for the rest of a trial that was taken for lost
            return True

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
                alive=alive,
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


def _nothing(part: str, trials: Sequence[TrialRecord]) -> str:
    states = [trial.state for trial in trials]
    errors = [trial.error for trial in trials if trial.error]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{part}: no trial can be compared with others ({told})" + (
        f"; the first that raised said {errors[0]}" if errors else ""
    )
