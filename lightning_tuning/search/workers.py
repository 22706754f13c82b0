"""Trials shared out to workers: none twice, none lost, whoever is killed."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial, TrialState

WORKER, ALIVE, KIND, RETRY = "worker", "alive", "kind", "retry_of"
LOST, SURPLUS = "lost", "surplus"
_POLL = 0.5
_DRAWING = 120.0
"""Seconds in which a worker that has asked for a trial says that it is the one who has it."""


class Workers:
    """This worker among others on one study.

    Args:
        study: The study.
        trials: So many trials are wanted.
        retries: How often a trial whose process was killed is tried again.
        stale_after: Seconds without a sign of life after which a worker on another machine counts
            as killed.
    """

    def __init__(self, study: Study, trials: int, *, retries: int, stale_after: float) -> None:
        self._study = study
        self._wanted = trials
        self._retries = retries
        self._stale_after = stale_after

    def next(self, distributions: dict[str, BaseDistribution]) -> Trial | None:
        """Return a trial to run; None when all are done. Waits while others run the last ones."""
        while True:
            self._revive()
            done, running, waiting = self._counts()
            if done >= self._wanted:
                return None
            if done + running >= self._wanted and not waiting:
                time.sleep(_POLL)
                continue
            with unless_taken_for_lost():
                trial = self._study.ask(distributions)
                me = [socket.gethostname(), os.getpid(), _started(os.getpid())]
                trial.set_user_attr(WORKER, me)
                sign_of_life(trial)
                if not self._is_surplus(trial.number) and not self._repeats(trial):
                    return trial
                # another worker asked at the same moment
                self.end(trial, kind=SURPLUS)

    def slot(self, trial: Trial) -> int:
        """Return which of the wanted ones a trial is; a retry has the place of the lost one."""
        number: int = trial.user_attrs.get(RETRY, trial.number)
        first = [t for t in self._all() if _kind(t) != SURPLUS and RETRY not in t.user_attrs]
        return sum(other.number < number for other in first) % self._wanted

    def end(self, trial: Trial, *, kind: str, **attributes: Any) -> None:
        """Mark a trial as failed, with the reason."""
        from optuna.trial import TrialState

        for name, value in {KIND: kind, **attributes}.items():
            trial.set_user_attr(name, value)
        tell(trial, state=TrialState.FAIL)

    def release(self, trial: Trial) -> None:
        """Leave a trial that was interrupted as if this process had been killed."""
        with contextlib.suppress(RuntimeError):  # it has ended already
            trial.set_user_attr(WORKER, [socket.gethostname(), os.getpid(), "interrupted"])
            trial.set_user_attr(ALIVE, 0.0)

    def _counts(self) -> tuple[int, int, int]:
        from optuna.trial import TrialState

        trials = [trial for trial in self._all() if _kind(trial) not in (LOST, SURPLUS)]
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        # one that was lost too often counts as done: it is marked, and not tried for ever
        given_up = sum(self._is_given_up(trial) for trial in self._all())
        return len(trials) - running - waiting + given_up, running, waiting

    def _is_surplus(self, number: int) -> bool:
        from optuna.trial import TrialState

        before = [
            trial
            for trial in self._all()
            if trial.number < number and _kind(trial) not in (LOST, SURPLUS)
            if trial.state != TrialState.WAITING
        ]
        given_up = sum(self._is_given_up(trial) for trial in self._all())
        return len(before) + given_up >= self._wanted

    def _repeats(self, trial: Trial) -> bool:
        """Whether two workers have drawn the same point of ranges that are continuous."""
        from optuna.distributions import FloatDistribution

        kinds = trial.distributions.values()
        drawn = any(isinstance(kind, FloatDistribution) and kind.low < kind.high for kind in kinds)
        if not drawn or RETRY in trial.user_attrs:
            return False
        while self._is_drawn_before(trial.number):
            time.sleep(_POLL / 10)
        return any(
            other.number < trial.number and other.params == trial.params and _kind(other) != SURPLUS
            for other in self._all()
        )

    def _is_drawn_before(self, number: int) -> bool:
        """Whether an earlier trial has no worker's name yet, so that its point may not be known."""
        from optuna.trial import TrialState

        return any(
            trial.number < number
            and trial.state == TrialState.RUNNING
            and WORKER not in trial.user_attrs
            and self._lives(trial)
            for trial in self._all()
        )

    def _revive(self) -> None:
        """Mark trials of killed workers as lost, and put them in line again."""
        import optuna
        from optuna.trial import TrialState

        for trial in self._all():
            if trial.state != TrialState.RUNNING or self._lives(trial):
                continue
            tries = 1 + _tries(trial)
            storage, key = self._study._storage, trial._trial_id
            try:
                storage.set_trial_user_attr(key, KIND, LOST)
                storage.set_trial_state_values(key, state=TrialState.FAIL)
            except optuna.exceptions.UpdateFinishedTrialError:  # another worker was faster
                continue
            if tries <= self._retries:
                first = trial.user_attrs.get(RETRY, trial.number)
                attributes = {RETRY: first, "tries": tries}
                self._study.enqueue_trial(trial.params, user_attrs=attributes)

    def _lives(self, trial: FrozenTrial) -> bool:
        known = trial.user_attrs.get(WORKER)
        if known is None:
            # it has only just been asked for, or its worker was killed at that moment
            begun = trial.datetime_start
            return begun is None or time.time() - begun.timestamp() < _DRAWING
        host, process, started = known
        if host == socket.gethostname():
            return bool(_started(process) == started)
        return bool(time.time() - trial.user_attrs.get(ALIVE, 0.0) < self._stale_after)

    def _is_given_up(self, trial: FrozenTrial) -> bool:
        return _kind(trial) == LOST and 1 + _tries(trial) > self._retries

    def _all(self) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


def tell(trial: Trial, value: float | None = None, *, state: TrialState | None = None) -> None:
    """Tell a study how a trial ended."""
    try:
        trial.study.tell(trial, value, state=state, skip_if_finished=True)
    except RuntimeError as error:
        # a grid that is done wants to end a loop of Optuna's, of which there is none; the trial
        # has its state by then
        if "Study.stop" not in str(error):
            raise


@contextlib.contextmanager
def unless_taken_for_lost() -> Iterator[None]:
    """Leave a trial to others, where they have not heard of this worker for too long."""
    import optuna

    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError:
        rank_zero_warn(
            "search: other workers took a trial of this one for lost, after a long silence, and try"
            " it again; what this one made of it is dropped. Give coarse_to_fine a longer"
            " stale_after"
        )


def sign_of_life(trial: Trial) -> None:
    """Note that the worker of a trial still runs."""
    trial.set_user_attr(ALIVE, time.time())


def _kind(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(KIND, ""))


def _tries(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("tries", 0))


def _started(process: int) -> str:
    """Return when a process of this machine began, in the machine's own count; empty if it is gone.

    A number alone may belong to another process by now.
    """
    try:
        with open(f"/proc/{process}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            # a killed one that nobody has waited for is there as a zombie
            return "" if fields[0] == "Z" else fields[19]
    except OSError:
        return _signalled(process)


def _signalled(process: int) -> str:
    """Return a mark where a process can be reached, on machines without ``/proc``."""
    if os.path.exists("/proc/self/stat"):
        return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "running"
