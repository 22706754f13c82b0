"""Whether what is learnt holds for validation data as it does for training data held out."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import torch

from lightning_tuning.functional.chance_loss import chance_level
from lightning_tuning.functional.loss_calls import LossCall

_ORDERS = 32
_SURE = 6.0
_LEARNT = 0.3
_LOST = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knowledge:
    """How much outputs say of their own targets.

    Attributes:
        loss: Of outputs with their targets.
        exchanged: The same with the targets of other examples.
        error: The standard deviation of that over random orders.
        chance: The loss of the best constant.
        examples: So many.
    """

    loss: float
    exchanged: float
    error: float
    chance: float
    examples: int

    @property
    def gain(self) -> float:
        """What an example's own target is nearer to its output than others', in chance losses."""
        return (self.exchanged - self.loss) / self.chance

    @property
    def noise(self) -> float:
        """The standard error of the gain."""
        return self.error / self.chance


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What a short training knows of training data that it has not seen, and of validation data.

    Attributes:
        train: Of training examples held out, evaluated as validation is.
        val: Of validation examples.
    """

    train: Knowledge
    val: Knowledge

    @property
    def apart(self) -> bool:
        """Whether much was learnt that holds for training data alone, and little for validation.

        Then validation also has a higher loss than a constant. Validation data whose targets hardly
        vary say nothing.
        """
        train, val = self.train, self.val
        learnt = train.gain > max(_LEARNT, _SURE * train.noise)
        learnt = learnt and train.loss < (1 - _LEARNT) * train.chance
        lost = val.gain + 3 * val.noise < _LOST * train.gain and val.loss > val.chance
        return learnt and lost and val.chance > 0.5 * train.chance


def knowledge(calls: Sequence[LossCall]) -> Knowledge | None:
    """Return what outputs say of their targets, by giving each the target of another example.

    Outputs that know nothing of their inputs lose nothing by it, whatever their offset and scale.

    Args:
        calls: Of one loss function, over several batches.

    Returns:
        None for losses without a known chance level, and examples that are not alike in shape.

    Example:
        >>> from torch.nn import functional
        >>> from lightning_tuning.functional.loss_calls import bound_call
        >>> y = torch.linspace(-1, 1, 100)
        >>> call = bound_call(functional.mse_loss, [y, y], {}, torch.tensor(0.0))
        >>> round(knowledge([call]).gain, 1)
        2.0
    """
    pooled = _pooled(calls)
    level = None if pooled is None else chance_level([pooled])
    if pooled is None or level is None or not level.prior > 0:
        return None
    random = torch.Generator().manual_seed(0)
    count = len(pooled.target)
    orders = [torch.randperm(count, generator=random) for _ in range(_ORDERS)]
    losses = [
        pooled.replay(pooled.input, target=pooled.target[order.to(pooled.target.device)])
        for order in orders
    ]
    others = torch.stack(losses).double()
    value = float(pooled.replay(pooled.input))
    if not math.isfinite(value) or not bool(others.isfinite().all()):
        return None
    return Knowledge(
        loss=value,
        exchanged=float(others.mean()),
        error=float(others.std()),
        chance=level.prior,
        examples=count,
    )


def _pooled(calls: Sequence[LossCall]) -> LossCall | None:
    """Return all calls as one over all examples."""
    # a program may call its loss twice, once to log it
    calls = list({(c.input.data_ptr(), c.target.data_ptr()): c for c in calls}.values())
    # shapes that differ, or weights of single examples, which don't go with another batch
    with contextlib.suppress(RuntimeError, ValueError):
        outputs = torch.cat([call.input.detach() for call in calls])
        targets = torch.cat([call.target.detach() for call in calls])
        options = {key: v for key, v in calls[0].options.items() if key != "reduction"}
        first = dataclasses.replace(calls[0], input=outputs, target=targets, options=options)
        if len(outputs) == len(targets) > 1 and first.replay(outputs).numel() == 1:
            return first
    return None
