"""Measures the loss before the first step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import Step
from lightning_tuning.functional.initial_loss import (
    InitialLossResult,
    loss_terms,
    total_term,
)

_STRENGTHS = (0.0, 1.0, 10.0)


def measure_initial_loss(
    probe: Probe,
    *,
    expected: float | None,
    num_batches: int,
    rtol: float,
    regularization: str | None,
) -> InitialLossResult:
    """Run the program's step on a few batches without dropout, and compare with chance.

    Raises:
        CannotProbeError: The program has no loss, or its step raises.
        MisconfigurationException: The module has no attribute ``regularization``.
    """
    if regularization is not None:
        _holder(probe.module, regularization)
    data_only = 0.0 if regularization is not None else None
    steps = [
        probe.step(batch, mode="silent", watch=_strength(probe.module, regularization, data_only))
        for batch in probe.batches(num_batches)
    ]
    losses = probe.on_host([step.loss for step in steps if step.loss is not None])
    if not losses:
        raise CannotProbeError("training_step gave no loss")
    whole = total_term(losses, expected)
    terms = loss_terms([step.calls for step in steps]) if expected is None else ()
    if not terms or not whole.mean < float("inf"):
        terms = (whole,)
    result = InitialLossResult(
        terms=terms,
        rtol=rtol,
        progress=_progress(probe, terms, rtol),
    )
    if regularization is None:
        return result
    strengths, regularized = _with_strengths(probe, regularization)
    return InitialLossResult(
        terms=terms,
        rtol=rtol,
        progress=result.progress,
        strengths=strengths,
        regularized=regularized,
    )


def _progress(probe: Probe, terms: tuple[Any, ...], rtol: float) -> float | None:
    """Train a little where a term lies above chance; None where nothing needs it or can tell."""
    above = any(term.place(rtol) == "above" for term in terms)
    if not probe.trainer.strategy.broadcast(above):
        return None
    ordinary = ordinary_run(probe)
    return ordinary.progress if ordinary.judgeable else None


def _with_strengths(probe: Probe, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    own = float(_holder(probe.module, name)[1])
    strengths = tuple(factor * (own or 1.0) for factor in _STRENGTHS)
    [batch] = probe.batches(1)[:1]
    steps: list[Step] = [
        probe.step(batch, mode="silent", seed=1, watch=_strength(probe.module, name, strength))
        for strength in strengths
    ]
    return strengths, probe.on_host([step.loss for step in steps if step.loss is not None])


def _strength(
    module: LightningModule, name: str | None, value: float | None
) -> list[contextlib.AbstractContextManager[None]]:
    return [] if name is None or value is None else [_with_strength(module, name, value)]


@contextlib.contextmanager
def _with_strength(module: LightningModule, name: str, value: float) -> Iterator[None]:
    holder, own = _holder(module, name)
    attribute = name.rsplit(".", maxsplit=1)[-1]
    setattr(holder, attribute, value)
    try:
        yield
    finally:
        setattr(holder, attribute, own)


def _holder(module: LightningModule, name: str) -> tuple[Any, float]:
    """Return what holds an attribute with a dotted name, and its value.

    Raises:
        MisconfigurationException: There is none, or it is not a number.
    """
    *path, attribute = name.split(".")
    holder: Any = module
    try:
        for part in path:
            holder = getattr(holder, part)
        return holder, float(getattr(holder, attribute))
    except (AttributeError, TypeError, ValueError) as error:
        raise MisconfigurationException(
            f"regularization={name!r} must name a number that {type(module).__name__} holds, such "
            "as 'weight_penalty' or 'hparams.weight_penalty'."
        ) from error
