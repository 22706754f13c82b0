"""How many losses go backward in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.step_trace import Intercept


def losses_of_a_batch(trainer: Trainer, module: LightningModule) -> int:
    """Return how often a training step goes backward, such as twice for most GANs.

    Everything is put back; all ranks must call it.

    Raises:
        CannotProbeError: The program can't be tried and put back.
    """
    count = 0

    def counting(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        nonlocal count
        count += func is Tensor.backward
        return func(*args, **kwargs)

    with Probe(trainer, module) as probe:
        probe.step(probe.batches(1)[0], backward=True, watch=[Intercept(counting)])
    return count
