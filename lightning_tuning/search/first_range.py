"""The first range of a learning rate, from a range test."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning.pytorch as pl

from lightning_tuning.callbacks.lr_range_test import lr_range_test
from lightning_tuning.functional.search.ranges import Choice, FloatRange, Space
from lightning_tuning.search.trial_run import Program

_WIDER = 3.0


def range_of_rates(program: Program, space: Space, name: str, *, seed: int) -> Space:
    """Return the ranges with that of the learning rate set by a range test.

    The other hyperparameters are in the middle of theirs. Where the test finds no rate, the range
    stays.

    Args:
        program: What is trained.
        space: The ranges.
        name: The learning rate's name.
        seed: Of weights and data order.
    """
    middle: dict[str, Any] = {}
    for key, range_ in space.items():
        if isinstance(range_, Choice):
            middle[key] = range_.values[0]
        else:
            whole = FloatRange(float(range_.low), float(range_.high), log=range_.log)
            middle[key] = type(range_.low)(whole.at(0.5))
    pl.seed_everything(seed, workers=True, verbose=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        **{**quiet, **program.trainer, "max_epochs": 10, "enable_checkpointing": False}
    )
    data = program.data(middle)
    found = lr_range_test(trainer, program.model(middle), **data)
    if found.lr_range is None:
        return space
    low, high = found.lr_range
    old = space[name]
    assert isinstance(old, FloatRange)
    return {**space, name: dataclasses.replace(old, low=low / _WIDER, high=high * _WIDER, log=True)}
