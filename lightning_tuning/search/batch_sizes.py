"""Batch sizes judged by time."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_tuning._trainer.time_to_target import TimeToTarget
from lightning_tuning.callbacks.lr_range_test import lr_range_test
from lightning_tuning.functional import checks
from lightning_tuning.functional.metric_mode import MetricMode, mode_of
from lightning_tuning.search.trial_run import MakeData, MakeModel, data_arguments

_DOUBLINGS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizeTime:
    """A fit with one batch size.

    Attributes:
        batch_size: Examples in a batch.
        learning_rate: The rate that a range test found for it; None where none was made.
        seconds: Time of training until the target was reached, without validation; None where it
            was not.
        steps: Optimizer steps until then, or in all.
        reached: The best value of the metric.
    """

    batch_size: int
    learning_rate: float | None
    seconds: float | None
    steps: int
    reached: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSizeResult:
    """What :func:`batch_sizes` found.

    Attributes:
        largest: The largest size that fits into memory, of those that were tried.
        first_guess: The power of two nearest to the square root of the number of examples.
        times: A fit with each size.
    """

    largest: int
    first_guess: int
    times: tuple[BatchSizeTime, ...]

    @property
    def best(self) -> BatchSizeTime | None:
        """The fit that reached the target first; None where none did.

        Example:
            >>> fast = BatchSizeTime(
            ...     batch_size=32, learning_rate=0.1, seconds=2.0, steps=90, reached=0.1
            ... )
            >>> BatchSizeResult(largest=64, first_guess=32, times=(fast,)).best.batch_size
            32
        """
        reached = [one for one in self.times if one.seconds is not None]
        return min(reached, key=lambda one: one.seconds or 0.0, default=None)

    def to_json(self) -> str:
        """Return everything as a JSON object."""
        return json.dumps(dataclasses.asdict(self))


def batch_sizes(
    make_model: MakeModel,
    make_data: MakeData,
    *,
    target: float,
    monitor: str = "val_loss",
    mode: MetricMode | None = None,
    sizes: Sequence[int] | None = None,
    lr: str | None = None,
    max_epochs: int = 100,
    trainer: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> BatchSizeResult:
    """Find the largest batch size that fits, and how long each takes to a target.

    Each size wants a learning rate of its own, and a larger batch makes fewer and better steps:
    only the time to the same result compares them (Smith 2018). Sizes are tried from the square
    root of the number of examples (the tip's first guess) down by 4 and 2 and up by 2, 4, ..., as
    far as they fit.

    Args:
        make_model: Makes the module; called with ``lr`` by its name, if one is given.
        make_data: Makes its data; called with ``batch_size``.
        target: The value of the metric that is to be reached.
        monitor: The metric, as the module logs it in validation.
        mode: Whether it improves downwards (``"min"``) or upwards (``"max"``); None takes what its
            name tells.
        sizes: The sizes to try; None for those above.
        lr: The name of the learning rate, to be found by a range test for each size; None leaves
            the module's own.
        max_epochs: A fit that has not reached the target by then has failed.
        trainer: Arguments of each ``Trainer``.
        seed: Of weights and data order.

    Raises:
        ValueError: An argument is out of its range.
        RuntimeError: Not even the smallest size fits.
    """
    mode = mode_of(monitor, mode)
    checks.at_least("max_epochs", max_epochs, 1)
    if sizes is not None and (not sizes or min(sizes) < 1):
        raise ValueError(f"sizes={sizes!r} must be one or more whole numbers, none below 1")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    settings = {**quiet, **(trainer or {}), "enable_checkpointing": False}
    examples = _examples(make_data)
    guess = max(1, 2 ** round(math.log2(math.sqrt(examples))))
    wanted = _doubled(guess, examples) if sizes is None else sorted(sizes)

    def rate_of(size: int) -> float | None:
        if lr is None:
            return None
        pl.seed_everything(seed, workers=True, verbose=False)
        probing = Trainer(**{**settings, "max_epochs": max_epochs})
        made = make_model()
        return lr_range_test(probing, made, **data_arguments(make_data(batch_size=size))).suggestion

    def model_of(rate: float | None) -> LightningModule:
        return make_model() if rate is None or lr is None else make_model(**{lr: rate})

    def fits(size: int) -> bool:
        return _fits(make_model(), make_data(batch_size=size), settings)

    fitting = list(itertools.takewhile(fits, wanted))
    if not fitting:
        raise RuntimeError(f"a batch of {wanted[0]} does not fit into memory; give smaller sizes")
    times = []
    for size in fitting:
        rate = rate_of(size)
        pl.seed_everything(seed, workers=True, verbose=False)
        clock = TimeToTarget(monitor, mode, target)
        fit = Trainer(**{**settings, "max_epochs": max_epochs}, callbacks=[clock])
        fit.fit(model_of(rate), **data_arguments(make_data(batch_size=size)))
        times.append(
            BatchSizeTime(
                batch_size=size,
                learning_rate=rate,
                seconds=clock.seconds,
                steps=fit.global_step,
                reached=clock.best,
            )
        )
    return BatchSizeResult(largest=fitting[-1], first_guess=guess, times=tuple(times))


def _examples(make_data: MakeData) -> int:
    data = make_data(batch_size=1)
    if isinstance(data, LightningDataModule):
        data.prepare_data()
        data.setup("fit")
        loader: Any = data.train_dataloader()
    else:
        loader = data[0]
    return len(loader.dataset)


def _doubled(guess: int, examples: int) -> list[int]:
    ladder = [max(guess // 4, 1) * 2**power for power in range(_DOUBLINGS)]
    return [size for size in ladder if size <= examples]


def _fits(model: LightningModule, data: Any, settings: Mapping[str, Any]) -> bool:
    """Take two steps; the second has the optimizer's state in memory."""
    trying = Trainer(**{**settings, "max_epochs": -1, "max_steps": 2, "limit_val_batches": 0})
    try:
        trying.fit(model, **data_arguments(data))
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:
        # other devices, and the allocator of the CPU, have no class of their own for it
        if "out of memory" not in str(error) and "alloc" not in str(error):
            raise
        return False
    finally:
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True
