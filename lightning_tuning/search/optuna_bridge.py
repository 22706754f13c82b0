"""Optuna's samplers, distributions and storages for ours."""

from __future__ import annotations

import math
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_tuning.functional.metric_mode import MetricMode
from lightning_tuning.functional.search.ranges import Choice, FloatRange, IntRange, Range, Space
from lightning_tuning.search.stage import SamplerName

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study

JOURNAL = "journal:"
_TRIES = 4


def need_optuna() -> None:
    """Say how to install Optuna, where it is not.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'lightning_tuning.search needs Optuna: pip install "lightning-tuning[search]"'
        ) from error


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return Optuna's form of ranges."""
    return {name: _distribution(range_) for name, range_ in space.items()}


def _distribution(range_: Range) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(range_, FloatRange):
        return FloatDistribution(range_.low, range_.high, log=range_.log)
    if isinstance(range_, IntRange):
        return IntDistribution(range_.low, range_.high, log=range_.log)
    return CategoricalDistribution(range_.values)


def sampler(name: SamplerName, space: Space, trials: int, seed: int) -> BaseSampler:
    """Return a sampler of Optuna's.

    Args:
        name: Which.
        space: The ranges.
        trials: So many points, for a grid.
        seed: The start of its random numbers.
    """
    import optuna

    with warnings.catch_warnings():
        # they are marked as experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if name == "sobol":
            return optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        if name == "grid":
            return optuna.samplers.GridSampler(grid(space, trials), seed=seed)
        # several workers must not all try what the model likes best just now
        return optuna.samplers.TPESampler(
            # its default of 10 would make a short stage a random one
            n_startup_trials=min(10, max(3, trials // 4)),
            seed=seed,
            multivariate=True,
            constant_liar=True,
        )


def grid(space: Space, trials: int) -> Mapping[str, list[Any]]:
    """Return the values of a grid of about so many points, evenly spread in each range.

    Example:
        >>> grid({"lr": FloatRange(0.01, 1.0, log=True), "width": Choice((8, 16))}, 6)["width"]
        [8, 16]
    """
    numeric = [name for name, range_ in space.items() if not isinstance(range_, Choice)]
    combinations = math.prod(len(r.values) for r in space.values() if isinstance(r, Choice))
    each = max(1, round((trials / combinations) ** (1 / max(len(numeric), 1))))
    return {name: _points(range_, each) for name, range_ in space.items()}


def _points(range_: Range, count: int) -> list[Any]:
    if isinstance(range_, Choice):
        return list(range_.values)
    scale = FloatRange(float(range_.low), float(range_.high), log=range_.log)
    places = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
    values = [scale.at(place) for place in places]
    if isinstance(range_, IntRange):
        return sorted({round(value) for value in values})
    # rounding must not take the ends out of the range
    return [min(max(value, range_.low), range_.high) for value in values]


def storage_of(storage: str | BaseStorage | None, folder: pathlib.Path) -> BaseStorage:
    """Return a storage of Optuna's.

    Args:
        storage: One of Optuna's; the address of a database; ``"journal:PATH"``; or None for a
            journal file in ``folder``.
        folder: The folder of the search.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if storage is None:
        storage = f"{JOURNAL}{folder / 'search.log'}"
    if not isinstance(storage, str):
        return storage
    if storage.startswith(JOURNAL):
        path = pathlib.Path(storage.removeprefix(JOURNAL))
        path.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    return _database(storage)


def _database(address: str) -> BaseStorage:
    """Return a database; workers that meet an empty one make its tables at the same moment."""
    import optuna
    from sqlalchemy.exc import DBAPIError

    for attempt in range(_TRIES):
        try:
            return optuna.storages.RDBStorage(address)
        except DBAPIError:  # noqa: PERF203
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.5 * (attempt + 1))
    raise AssertionError


def study_of(
    storage: BaseStorage,
    name: str,
    *,
    mode: MetricMode,
    prune: bool,
) -> Study:
    """Return a study, a new one if there is none of that name."""
    import optuna

    pruner = (
        optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        if prune
        else optuna.pruners.NopPruner()
    )
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="minimize" if mode == "min" else "maximize",
        pruner=pruner,
        load_if_exists=True,
    )
