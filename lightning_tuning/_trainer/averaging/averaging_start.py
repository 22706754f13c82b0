"""What an average of weights has to know of a trainer before its first step."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.data import extract_batch_size

from lightning_tuning._trainer.averaging.averages import Averages
from lightning_tuning._trainer.choices import note_choices
from lightning_tuning._trainer.schedule_length import steps_left
from lightning_tuning._trainer.schedule_start import callbacks_of
from lightning_tuning._trainer.shards import UNTRIED_STRATEGIES
from lightning_tuning.findings import Finding
from lightning_tuning.functional.ema import (
    HalfLife,
    decay_half_life,
    half_life_decay,
    parse_half_life,
)
from lightning_tuning.functional.ema_findings import half_life_finding

_OTHER_AVERAGES = ("WeightAveraging", "StochasticWeightAveraging")


def refuse_what_cannot_be_averaged(trainer: Trainer) -> None:
    """Raise where averages could not be put into the module, or where others put in theirs.

    Raises:
        MisconfigurationException: The strategy keeps weights in a way that is not known here, or
            another callback of the trainer averages the weights too.
    """
    strategy = type(trainer.strategy).__name__
    if strategy in UNTRIED_STRATEGIES:
        raise MisconfigurationException(
            f"EMAWeights can't exchange weights under {strategy}; use 'ddp', or FSDP2 by"
            " `ModelParallelStrategy`"
        )
    for callback in callbacks_of(trainer):
        kinds = {kind.__name__ for kind in type(callback).__mro__}
        if kinds.intersection(_OTHER_AVERAGES):
            raise MisconfigurationException(
                f"{type(callback).__name__} and EMAWeights would both exchange the weights;"
                " remove one of them"
            )


def place_among(trainer: Trainer, callback: Callback) -> int:
    """Return the position of a callback among those of its class."""
    same = [c for c in callbacks_of(trainer) if type(c) is type(callback)]
    return [c is callback for c in same].index(True)


def note_length(trainer: Trainer, averages: Averages, half_life: float | str | None) -> None:
    """Note the length of the fit before its first batch: in steps, or in batches.

    Under manual optimization one step in a batch is assumed.
    """
    averages.per_batch = half_life is not None and parse_half_life(half_life).unit != "steps"
    by_batch = averages.per_batch or not trainer.lightning_module.automatic_optimization
    done = averages.batch if by_batch else averages.steps
    with contextlib.suppress(MisconfigurationException):
        averages.length = done + steps_left(trainer, name="EMAWeights", by_batch=by_batch)


def settle_decay(
    trainer: Trainer,
    averages: Averages,
    batch: Any,
    *,
    decay: float,
    half_life: float | str | None,
) -> Finding:
    """Set the decay of the averages; all processes must call it.

    Args:
        trainer: A trainer inside ``fit``.
        averages: Its averages.
        batch: A training batch.
        decay: The decay of a step.
        half_life: What counts instead, if it is given.

    Returns:
        What there is to say.

    Raises:
        MisconfigurationException: The epoch has no known end, or the batch no known size.
    """
    if half_life is None:
        moves = decay_half_life(decay)
    else:
        moves = _in_moves(trainer, batch, parse_half_life(half_life))
        decay = half_life_decay(moves)
    averages.set_decay(decay)
    note_choices(trainer, ema_decay=decay)
    return half_life_finding(
        moves,
        averages.length,
        unit="batches" if averages.per_batch else "optimizer steps",
        decay=decay,
        warmup=averages.settings.warmup,
    )


def _in_moves(trainer: Trainer, batch: Any, half_life: HalfLife) -> float:
    """Return a half-life in optimizer steps, or in training batches if it is in other units.

    Args:
        trainer: A trainer inside ``fit``.
        batch: A training batch.
        half_life: The half-life.

    Raises:
        MisconfigurationException: The epoch has no known end, or the batch no known size.
    """
    if half_life.unit == "steps":
        return half_life.value
    if half_life.unit == "epochs":
        batches = trainer.num_training_batches
        if batches == math.inf:
            raise MisconfigurationException(
                f"EMAWeights(half_life='{half_life.value:g} epochs') needs a training loader with"
                " a length; give half_life in optimizer steps, or set `limit_train_batches`"
            )
        return half_life.value * batches
    replicas = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    size = _batch_size(trainer, batch) * replicas.get("num_replicas", 1)
    # ranks may have batches of different sizes, but must move their averages alike
    return half_life.value / int(trainer.strategy.broadcast(size))


def _batch_size(trainer: Trainer, batch: Any) -> int:
    size = getattr(trainer.train_dataloader, "batch_size", None)
    if isinstance(size, int):
        return size
    try:
        return extract_batch_size(batch)
    except MisconfigurationException as error:
        raise MisconfigurationException(
            "EMAWeights can't tell how many samples a batch has; give half_life in optimizer steps"
        ) from error
