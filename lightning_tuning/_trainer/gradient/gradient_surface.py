"""The losses of a training step as functions of one parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.gradient.gradient_loss import Change, Gradients, RepeatedLoss
from lightning_tuning.functional.gradient.gradient_winners import Winners


class ParameterSurface:
    """The losses as functions of one parameter."""

    def __init__(
        self, loss: RepeatedLoss, parameter: nn.Parameter, gradients: Gradients, values: Tensor
    ) -> None:
        self._loss = loss
        self._parameter = parameter
        nothing = torch.full_like(parameter, float("nan"))
        self.gradients = torch.stack(
            [of_loss.get(id(parameter), nothing).flatten() for of_loss in gradients]
        )
        self.resolution = torch.finfo(torch.float64).eps
        self._count = len(values)

    def values(self, entries: Tensor, changes: Tensor) -> Tensor:
        """Return the losses with changes added to some flat entries."""
        values = self._loss.values(Change(self._parameter, entries, changes))
        # with another flow of control there may be other losses
        return values if len(values) == self._count else torch.full((self._count,), float("nan"))

    def winners(self, entries: Tensor, changes: Tensor) -> Sequence[Tensor]:
        """Return the winners within the training step."""
        seen = Winners()
        with seen:
            self._loss.values(Change(self._parameter, entries, changes))
        return seen.winners
