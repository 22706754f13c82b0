"""How many losses go backward in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.probe import Probe


class _Backwards(TorchFunctionMode):
    """Counts calls of ``backward``."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call, and note what it is."""
        self.count += getattr(func, "__name__", "") == "backward"
        return func(*args, **kwargs or {})


def losses_of_a_batch(trainer: Trainer, module: LightningModule) -> int:
    """Return how often a training step goes backward, such as twice for most GANs.

    Everything is put back; all ranks must call it.

    Raises:
        CannotProbeError: The program can't be tried and put back.
    """
    backwards = _Backwards()
    with Probe(trainer, module) as probe:
        probe.step(probe.batches(1)[0], backward=True, watch=[backwards])
    return backwards.count
