"""How a fit goes, as all monitors ask before they call a statistic a fault."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch.optim import LBFGS

from lightning_tuning._trainer.fit_losses import fit_losses
from lightning_tuning.functional.fit_course import FitCourse, fit_course


def course_of(trainer: Trainer) -> FitCourse:
    """Return the course of the training loss so far; all ranks must call it."""
    _, losses = fit_losses(trainer).read(trainer)
    return fit_course(losses, reason=why_the_loss_tells_nothing(trainer))


def why_the_loss_tells_nothing(trainer: Trainer) -> str:
    """Return why the loss of a step says little about the fit; nothing where it does.

    L-BFGS evaluates its closure many times in a step and Lightning returns the last loss, so that
    the first one known is that of trained weights.
    """
    if len(trainer.optimizers) > 1:
        return "several optimizers may have opposed aims"
    if any(isinstance(optimizer, LBFGS) for optimizer in trainer.optimizers):
        return "L-BFGS has trained already when the loss of its first step is known"
    return ""
