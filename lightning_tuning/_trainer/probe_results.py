"""What single steps and short runs of a probe give."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning.functional.loss_calls import LossCall


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What one training step did.

    Attributes:
        loss: What it returned, or sent backward; detached. None where there is none.
        calls: The loss functions it called, in their order.
    """

    loss: Tensor | None
    calls: tuple[LossCall, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a short training did.

    Attributes:
        losses: The training loss of each optimizer step.
        before: The mean loss over a few fixed training batches, without dropout, at the start.
        after: The same at the end.
        error: What the program said where it broke down.
    """

    losses: tuple[float, ...]
    before: float
    after: float
    error: str = ""


class StepError(CannotProbeError):
    """The program's own step raised; ``calls`` are the losses it had called until then."""

    def __init__(self, error: Exception, calls: Sequence[LossCall]) -> None:
        super().__init__(f"training_step raised {type(error).__name__}: {error}")
        self.error = error
        self.calls = tuple(calls)
