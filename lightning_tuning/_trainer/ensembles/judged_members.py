"""Members of an ensemble on the fit's validation data, alone and together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_tuning._trainer.averaging.batch_norm import count_as_in_the_last_epoch
from lightning_tuning._trainer.eagerly import eagerly
from lightning_tuning._trainer.ensembles.averaged_forward import (
    AveragedForward,
    callable_parts,
    stacked_weights,
)
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.sandbox import Sandbox
from lightning_tuning.functional.checkpoint_weights import saved_weights
from lightning_tuning.functional.ensembles.combine import CombineByName
from lightning_tuning.functional.ensembles.ensemble_result import EnsembleMember, EnsembleResult
from lightning_tuning.functional.metric_mode import MetricMode, sign_of

_ALL = 2**31


def judge_members(
    trainer: Trainer,
    module: LightningModule,
    members: Sequence[EnsembleMember],
    *,
    metric: str,
    mode: MetricMode,
    combine: CombineByName,
    class_dim: int,
    output_of: str | None,
) -> EnsembleResult:
    """Run the module's own validation with each member, and with more and more of them.

    Nothing of it stays.

    Args:
        trainer: A trainer inside ``fit``, in ``on_train_end``.
        module: Its module.
        members: Two or more.
        metric: What the module logs in validation.
        mode: Which values are better.
        combine: See :class:`~lightning_tuning.EnsembleModule`, as for the last two.
        class_dim: The same.
        output_of: The same.

    Raises:
        CannotProbeError: There are no validation data, no such metric, no output that could be
            averaged, or the program can't be put back.
    """
    try:
        parts = callable_parts(module, output_of)
    except ValueError as error:
        raise CannotProbeError(str(error)) from error
    stacked = stacked_weights([saved_weights(member.path) for member in members])
    stacked = {name: stack.to(trainer.strategy.root_device) for name, stack in stacked.items()}
    sign = sign_of(mode)
    with eagerly(), Sandbox(trainer, module) as box:
        count_as_in_the_last_epoch(trainer)

        def value(indices: Sequence[int], *, compare: bool = False) -> tuple[float, Tensor | None]:
            chosen = {name: stack[list(indices)] for name, stack in stacked.items()}
            averaged = AveragedForward(
                module,
                chosen,
                combine=combine,
                class_dim=class_dim,
                parts=parts,
                compare=compare,
            )
            with averaged, torch.no_grad():
                found = _validated(box)
            if not averaged.calls:
                raise CannotProbeError(
                    "validation_step calls neither the module itself nor its only child with"
                    " weights; name the part that it calls by output_of"
                )
            if metric not in found:
                raise CannotProbeError(f"validation logs no {metric!r}")
            return float(found[metric]), averaged.disagreement

        alone = [value([index])[0] for index in range(len(members))]
        order = sorted(range(len(members)), key=lambda index: sign * alone[index])
        together = [alone[order[0]]]
        differ: Tensor | None = None
        for size in range(2, len(members) + 1):
            found, differ = value(order[:size], compare=size == len(members))
            together.append(found)
    mean = None if differ is None else float(trainer.strategy.reduce(differ, reduce_op="mean"))
    return EnsembleResult(
        metric=metric,
        mode=mode,
        members=tuple(members[index] for index in order),
        alone=tuple(alone[index] for index in order),
        together=tuple(together),
        disagreement=mean,
    )


def _validated(box: Sandbox) -> dict[str, Tensor]:
    try:
        return box.evaluate(num_batches=_ALL)
    except CannotProbeError:
        raise
    except Exception as error:  # somebody's code, after a fit that is not to be lost
        raise CannotProbeError(f"validation raised {type(error).__name__}: {error}") from error
