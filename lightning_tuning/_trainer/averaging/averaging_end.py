"""What becomes of the averages of a fit when its training is over."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tuning._trainer.averaging import batch_norm
from lightning_tuning._trainer.averaging.averaged_weights import AveragedWeights
from lightning_tuning._trainer.averaging.two_sets import Which, named_sets
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning.findings import Finding
from lightning_tuning.functional.ema_findings import (
    not_recalibrated_finding,
    not_started_finding,
    recalibrated_finding,
)


def end_training(
    trainer: Trainer, weights: AveragedWeights, *, after_fit: Which, recalibrate: bool
) -> list[Finding]:
    """Leave one set of weights in the module, and let go of the optimizers.

    Args:
        trainer: A trainer in ``on_train_end``.
        weights: The weights of its fit.
        after_fit: The set to leave.
        recalibrate: Whether to recompute BatchNorm's statistics for the averaged weights.

    Returns:
        What there is to say.
    """
    averages = weights.averages
    assert averages is not None
    told = []
    if not averages.started:
        told.append(not_started_finding(averages.steps, averages.settings.update_after_step))
    elif recalibrate and weights.judges:
        try:
            told.append(_recalibrated(trainer, weights))
        except BaseException:
            weights.put("raw")
            raise
    weights.put(after_fit)
    weights.finish()
    return told


def _recalibrated(trainer: Trainer, weights: AveragedWeights) -> Finding:
    """Recompute BatchNorm's statistics for the averaged weights; the raw ones keep theirs."""
    module = weights.sets.module
    if not batch_norm.has_batch_norm(module):
        return not_recalibrated_finding("there is no BatchNorm layer")
    weights.put("ema")
    weights.finish()
    raw = {name: own.detach().cpu().clone() for name, own in _statistics(module).items()}
    try:
        batches = batch_norm.recalibrate(trainer, module)
    except CannotProbeError as error:
        return not_recalibrated_finding(str(error))
    # where buffers are averaged, the raw ones are kept already
    others = {**raw, **weights.sets.values("raw")}
    weights.sets = named_sets(module, own="ema", others=others)
    return recalibrated_finding(batches)


def _statistics(module: LightningModule) -> dict[str, Tensor]:
    return {
        f"{path}.{name}" if path else name: buffer
        for path, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        for name, buffer in layer.named_buffers(recurse=False)
    }
