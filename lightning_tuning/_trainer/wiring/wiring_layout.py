"""Follows the single numbers of a layer's output on their way into a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_mode import Mode
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.wiring.numbered_layers import (
    EXACT_INTEGERS,
    CalledLayers,
    Numbered,
    channel_dim,
)
from lightning_tuning._trainer.wiring.observed import observe
from lightning_tuning.functional.batch_links import Comparison
from lightning_tuning.functional.layouts import exchange, exchanges_sizes, mixes_positions

_TRIED_LAYERS = 3


def mixed_classes(probe: Probe, batch: ProbeBatch, mode: Mode) -> str:
    """Return the layer whose positions and channels are mixed up in the loss; empty for none."""
    called = CalledLayers(probe.module)
    seen = observe(probe, batch, mode=mode, watch=[called])
    if not any(c.output.dim() > 1 for c in seen.comparisons):
        return ""
    smallest = min(c.output.numel() for c in seen.comparisons if c.output.dim() > 1)
    layers = [
        name
        for name, count in called.sizes.items()
        if smallest <= count < EXACT_INTEGERS and called.times[name] == 1
    ]
    for name in layers[::-1][:_TRIED_LAYERS]:
        layer = probe.module.get_submodule(name)
        numbered = Numbered(layer)
        try:
            followed = observe(probe, batch, mode=mode, watch=[numbered])
        except StepError:
            continue
        for each in followed.comparisons:
            if _is_mixed(each, layer, numbered.shape):
                return name
    return ""


def _is_mixed(found: Comparison, layer: nn.Module, shape: torch.Size | None) -> bool:
    if found.output.dim() < 2 or shape is None:
        return False
    values = found.output.float()
    source = values.round()
    if not bool(((values == source) & (source >= 0) & (source < shape.numel())).all()):
        return False
    if bool((source.flatten().sort().values.diff() == 0).any()):
        return False
    if found.class_dim is None:
        in_order = bool((source.flatten().diff() == 1).all())
        return in_order and exchanges_sizes(shape, source.shape)
    return mixes_positions(
        source.long(), shape, channel_dim=channel_dim(layer, shape), class_dim=found.class_dim
    )


def by_transpose(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Do a call; where it is a reshape that exchanges sizes, exchange the dimensions instead."""
    result = function(*args, **kwargs)
    if getattr(function, "__name__", "") not in ("view", "reshape"):
        return result
    order = exchange(args[0].shape, result.shape)
    if order is None:
        return result
    sizes = [size for size in args[0].shape if size != 1]
    return args[0].reshape(sizes).permute(order).reshape(result.shape)


class Reshapes(TorchFunctionMode):
    """Notes whether a reshape moves the dimension of the examples as a transpose would.

    ``exchanged`` tells whether one does so with other dimensions.

    Args:
        size: The number of examples.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self.found = False
        self.exchanged = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function."""
        result = func(*args, **kwargs or {})
        if getattr(func, "__name__", "") in ("view", "reshape") and isinstance(args[0], Tensor):
            before, after = tuple(args[0].shape), tuple(result.shape)
            if exchanges_sizes(before, after) and self._size in before:
                moves = before.index(self._size) != after.index(self._size)
                self.found |= moves
                self.exchanged |= not moves and exchange(before, after) is not None
        return result
