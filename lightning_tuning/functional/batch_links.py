"""Which outputs an example's input reaches, and where its target sits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_tuning.functional.loss_calls import LossCall

_INDEX_LOSSES = frozenset({"cross_entropy", "nll_loss", "multi_margin_loss"})
_ROUNDINGS = 16


def differs(one: Tensor, other: Tensor) -> Tensor:
    """Return where two tensors differ by more than rounding; NaN equals NaN.

    Example:
        >>> differs(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
        tensor([False,  True])
    """
    same = (one == other) | (one.isnan() & other.isnan())
    if not one.is_floating_point():
        return ~same
    finite = one.abs().nan_to_num(0.0, 0.0, 0.0).flatten()
    middle = finite.median() if finite.numel() else finite.sum()
    tolerance = _ROUNDINGS * torch.finfo(one.dtype).eps * (one.abs() + other.abs() + middle)
    return ~same & ~((one - other).abs() <= tolerance)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """An output and what it is compared with.

    Attributes:
        output: What the model gave.
        target: What it is compared with.
        class_dim: The dimension of the output that the target does not have; None for none.
        shared_dim: A dimension of both along which one comparison is made, as for probabilities.
    """

    output: Tensor
    target: Tensor
    class_dim: int | None = None
    shared_dim: int | None = None

    def pairs_up(self, size: int) -> bool:
        """Whether the examples of a batch of this size are compared with each other."""
        shapes: list[tuple[int, ...]] = [self.output.shape, self.target.shape]
        if self.class_dim is None:
            shapes.append(np.broadcast_shapes(*shapes))
        return any(sum(n in (size, 2 * size) for n in shape) > 1 for shape in shapes)

    def reached(self, changed: Comparison) -> tuple[Tensor, Tensor] | None:
        """Return which comparisons have another output, and which another target, than before.

        Two masks of the same shape; None where the comparisons do not correspond.
        """
        if changed.output.shape != self.output.shape or changed.target.shape != self.target.shape:
            return None
        output = differs(self.output, changed.output)
        target = differs(self.target, changed.target)
        if self.class_dim is not None:
            output = output.any(self.class_dim)
        elif self.shared_dim is not None:
            output, target = output.any(self.shared_dim), target.any(self.shared_dim)
        shape = np.broadcast_shapes(output.shape, target.shape)
        return output.expand(shape), target.expand(shape)


def comparison(call: LossCall) -> Comparison | None:
    """Return what a call of a loss function compared; None where its shapes do not fit."""
    by_class = call.name in _INDEX_LOSSES
    dim = 1 if call.input.dim() > 1 else 0
    indexed = by_class and call.target.dim() == call.input.dim() - 1
    shared = (by_class and not indexed) or call.name == "multilabel_margin_loss"
    if not indexed and not _fit(call.input.shape, call.target.shape):
        return None
    return Comparison(
        output=call.input,
        target=call.target,
        class_dim=dim if indexed else None,
        shared_dim=dim if shared and call.input.shape == call.target.shape else None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reach:
    """What the replacement of one example changed in each comparison; see Comparison.reached."""

    outputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]


def links(reaches: Sequence[Reach]) -> tuple[Tensor, Tensor]:
    """Return which examples reach outputs that are compared with other examples' targets.

    Args:
        reaches: What the replacement of each example changed.

    Returns:
        A matrix for each comparison, shape (comparisons, examples, examples): whether the row's
        example reaches an output where the column's target sits and its own does not; and shape
        (comparisons, examples), whether it reaches most outputs where its own target sits.
    """
    shapes = [target.shape for target in reaches[0].targets]
    foreign = torch.zeros(len(shapes), len(reaches), len(reaches), dtype=torch.bool)
    own = torch.zeros(len(shapes), len(reaches), dtype=torch.bool)
    for c, shape in enumerate(shapes):
        alike = [i for i, other in enumerate(shapes) if other == shape]
        for j, reach in enumerate(reaches):
            # one output may be compared with several targets, as in mixup
            mine = torch.stack([reach.targets[i] for i in alike]).any(0)
            own[c, j] = ((reach.outputs[c] & mine).sum() * 2 >= mine.sum().clamp(min=1)).cpu()
            if mine.any():
                elsewhere = reach.outputs[c] & ~mine
                # targets that both change are made of the whole batch, as in a listwise loss
                foreign[c, j] = torch.stack(
                    [
                        (elsewhere & other.targets[c]).any() & ~(mine & other.targets[c]).any()
                        for other in reaches
                    ]
                ).cpu()
    return foreign, own


def _fit(one: torch.Size, other: torch.Size) -> bool:
    try:
        np.broadcast_shapes(one, other)
    except ValueError:
        return False
    return True
