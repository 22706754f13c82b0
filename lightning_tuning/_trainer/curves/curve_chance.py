"""The loss at chance, from the loss functions that the first batches of a fit call."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_tuning._trainer.compiled import has_compiled_parts
from lightning_tuning._trainer.curves.called_losses import CalledLosses
from lightning_tuning.functional.chance_loss import chance_level, class_dim
from lightning_tuning.functional.loss_calls import LossCall

_BATCHES = 6
_MOST_BATCHES = 40
_EXAMPLES = 800
"""So many targets are wanted, of as many batches as it takes, within bounds."""
_LARGE = 2**24
"""An output with more entries is not replayed: that would take its memory a second time."""
_ROUNDING = 16
_AVERAGING = ("EMA", "WeightAveraging")
_CLASSES = ("cross_entropy", "nll_loss")


class FirstCalls:
    """Notes the loss calls of the first training batches, and of one validation batch.

    Nothing but shapes, targets and options is kept, until the chance has been read from them.

    Args:
        module: The module; one with compiled parts is let be, since what a graph calls is not
            seen, and watching would slow torch down while it compiles.
    """

    def __init__(self, module: LightningModule) -> None:
        compiled = has_compiled_parts(module)
        self._watching = not compiled
        self._examples = 0
        self._seen = 0
        self._validated = compiled
        self._active: CalledLosses | None = None
        self._steps: list[tuple[list[LossCall], Tensor, int]] = []
        self._of_training: tuple[tuple[object, ...], ...] = ()
        self._of_validation: tuple[tuple[object, ...], ...] = ()
        self.names: frozenset[str] = frozenset()

    def begin_batch(self) -> None:
        """Watch a training batch, if it is one of the first."""
        if self._watching:
            self._begin()

    def end_batch(self, outputs: Any, accumulated: int) -> None:
        """Take what it called.

        Args:
            outputs: What ``training_step`` gave.
            accumulated: Batches in its optimizer step, by whose number Lightning divides a loss.
        """
        if self._active is None:
            return
        calls = [call for call in self._end() if call.trained]
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self._of_training = _kinds(calls)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            light = [_light(call) for call in calls]
            self._steps.append((light, loss.detach().clone().reshape(()), accumulated))
            self._seen += 1
            self._examples += max((call.target.numel() for call in calls), default=0)
            self.names |= {call.name for call in calls}
        enough = self._seen >= _BATCHES and self._examples >= _EXAMPLES
        self._watching = bool(calls) and not enough and self._seen < _MOST_BATCHES

    def begin_validation_batch(self) -> None:
        """Watch the first validation batch."""
        if not self._validated:
            self._validated = True
            self._begin()

    def end_validation_batch(self) -> None:
        """Take what it called."""
        if self._active is not None:
            self._of_validation = _kinds(self._end())

    def forget(self) -> None:
        """Let go of the targets."""
        self._steps = []

    def close(self) -> None:
        """Stop watching, whatever happened."""
        if self._active is not None:
            self._end()

    @property
    def alike(self) -> bool:
        """Whether validation called the same loss functions as training."""
        return bool(self._of_training) and self._of_training == self._of_validation

    @property
    def done(self) -> bool:
        """Whether all that is to be seen of training has been seen."""
        return not self._watching

    def chance(self) -> tuple[float, float] | None:
        """Return the least and greatest loss at chance; None for a loss that is not known.

        A loss is known if it is a single function of torch, scaled by any number, or a plain sum
        of several.
        """
        steps = self._steps
        names = {tuple(call.name for call in calls) for calls, _, _ in steps}
        if len(names) != 1 or names == {()}:
            return None
        with torch.no_grad():
            places = list(zip(*(calls for calls, _, _ in steps), strict=True))
            parts = [sum(float(c.value) for c in calls) for calls, _, _ in steps]
            levels = [_level(calls) for calls in places]
        losses = [float(loss) * accumulated for _, loss, accumulated in steps]
        # a program may scale a single loss, and the scale must be the same in all batches; what
        # is more than rounding is another term, which may grow, as a divergence that warms up
        ratios = [a / b if b else math.nan for a, b in zip(losses, parts, strict=True)]
        rounding = max(_ROUNDING * torch.finfo(loss.dtype).eps for _, loss, _ in steps)
        steady = max(ratios) - min(ratios) <= rounding * abs(ratios[0])
        whole = steady and (len(places) == 1 or abs(ratios[0] - 1) <= rounding)
        if not whole or ratios[0] <= 0 or None in levels:
            return None
        low = sum(level[0] for level in levels if level is not None)
        high = sum(level[1] for level in levels if level is not None)
        return ratios[0] * low, ratios[0] * high

    def _begin(self) -> None:
        self.close()  # a batch that was begun need not have come to its end
        active = CalledLosses()
        self._active = active if active.begin() else None

    def _end(self) -> list[LossCall]:
        assert self._active is not None
        active, self._active = self._active, None
        return active.end()


def _light(call: LossCall) -> LossCall:
    """Return a call without its graph, and with a target that nobody changes."""
    known = torch.zeros((), requires_grad=True)
    large = call.input.numel() > _LARGE
    return dataclasses.replace(
        call,
        target=call.target.new_empty(0) if large else call.target.clone(),
        result=known,
        value=call.value.mean(),
    )


def _level(calls: Sequence[LossCall]) -> tuple[float, float] | None:
    """Return what constant outputs would lose, the best and the worse, for one place."""
    first = calls[0]
    if max(call.input.numel() for call in calls) > _LARGE:
        known = first.name in _CLASSES and first.reduction == "mean"
        uniform = math.log(first.input.size(class_dim(first)))
        return (uniform, uniform) if known else None
    level = chance_level(calls)
    if level is None:
        return None
    if first.name in _CLASSES and not first.target.is_floating_point():
        # frequencies of few examples look more regular than those of all (Miller and Madow)
        classes = first.input.size(class_dim(first))
        examples = sum(call.target.numel() for call in calls)
        share = level.low / math.log(max(classes, 2))
        return min(level.uniform, level.low + share * classes / 2 / examples), level.high
    return level.low, level.high


def _kinds(calls: Sequence[LossCall]) -> tuple[tuple[object, ...], ...]:
    return tuple(
        sorted((c.name, c.reduction, c.options.get("weight") is None, _size(c)) for c in calls)
    )


def _size(call: LossCall) -> int:
    """Return the size that the level of a loss depends on: its classes, or the terms of a sum.

    The classes of a contrastive loss are the examples of its batch.
    """
    if call.reduction == "sum":
        return call.input.numel()
    if call.name not in _CLASSES or call.input.dim() == 0:
        return 0
    return call.input.size(class_dim(call))


def dropout_of(module: nn.Module) -> bool:
    """Whether a layer of the module drops anything in training."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            return True
        if isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout > 0:
            return True
    return False


def regularization(trainer: Trainer, *, dropout: bool) -> str:
    """Return what raises the training loss against that of validation; empty for nothing known."""
    kinds = [type(callback).__name__ for callback in vars(trainer)["callbacks"]]
    averaged = any(part in kind for kind in kinds for part in _AVERAGING)
    if averaged and dropout:
        return "dropout and the average of the weights"
    return "dropout" if dropout else "the average of the weights" if averaged else ""
