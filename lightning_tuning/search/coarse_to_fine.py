"""A search from coarse to fine."""

from __future__ import annotations

import logging
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_tuning._trainer.ranks import Ranks
from lightning_tuning.functional import checks
from lightning_tuning.functional.metric_mode import MetricMode, mode_of
from lightning_tuning.functional.search.ranges import (
    FloatRange,
    as_space,
)
from lightning_tuning.functional.search.search_result import SearchResult
from lightning_tuning.search.optuna_bridge import (
    need_optuna,
)
from lightning_tuning.search.search_run import SearchRun
from lightning_tuning.search.stage import DEFAULT_STAGES, Stage
from lightning_tuning.search.trial_run import (
    MakeData,
    MakeModel,
    Program,
    takers,
)

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def coarse_to_fine(
    make_model: MakeModel,
    make_data: MakeData,
    space: Mapping[str, Any],
    stages: Sequence[Stage] = DEFAULT_STAGES,
    *,
    monitor: str = "val_loss",
    mode: MetricMode | None = None,
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
    search = SearchRun(
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
