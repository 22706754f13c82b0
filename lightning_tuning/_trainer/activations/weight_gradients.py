"""Gradients with respect to weights, as an optimizer is about to take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_tuning._trainer.shards import local_part
from lightning_tuning._trainer.update_ratio.update_norms import norms
from lightning_tuning.functional.activations.activation_stats import sample


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WeightGradient:
    """A weight's gradient; the sample is empty where this process holds no part of it."""

    name: str
    norm: Tensor
    sample: Tensor


class WeightGradients:
    """Measures the gradients of some weights, on their device.

    Args:
        weights: Names and weights.

    Attributes:
        found: What was measured in this step, by name.
    """

    def __init__(self, weights: Sequence[tuple[str, nn.Parameter]]) -> None:
        self.found: dict[str, WeightGradient] = {}
        self._weights = weights
        self._sharded = {name for name, weight in weights if isinstance(weight, DTensor)}

    @torch.no_grad()
    def read(self, parameters: Sequence[nn.Parameter], scale: Tensor | None = None) -> None:
        """Measure those of weights that an optimizer holds, divided by ``scale``."""
        own = {id(parameter) for parameter in parameters}
        names, gradients = [], []
        for name, weight in self._weights:
            if id(weight) in own and weight.grad is not None and weight.grad.numel():
                names.append(name)
                gradients.append(_values(weight.grad))
        if not names:
            return
        if scale is not None:
            gradients = [gradient / scale for gradient in gradients]
        for name, gradient, norm in zip(names, gradients, norms(gradients), strict=True):
            self.found[name] = WeightGradient(name=name, norm=norm, sample=sample(gradient))

    def add_up_shards(self, reduce: Callable[..., Any]) -> None:
        """Make norms of sharded gradients those of the whole; all ranks must call it."""
        sharded = [name for name in self.found if name in self._sharded]
        if not sharded:
            return
        squares = torch.stack([self.found[name].norm.square() for name in sharded])
        for name, square in zip(sharded, reduce(squares, reduce_op="sum"), strict=True):
            self.found[name] = dataclasses.replace(self.found[name], norm=square.sqrt())


def _values(gradient: Tensor) -> Tensor:
    # rows of a sparse gradient as they came: adding up those of one index would wait for a GPU
    plain = gradient._values() if gradient.is_sparse else local_part(gradient)
    return plain.detach()
