"""Follows the single numbers of a layer's output on their way into a loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.observed import observe
from lightning_tuning._trainer.probe import Mode, Probe, StepError
from lightning_tuning.functional.batch_links import Comparison
from lightning_tuning.functional.layouts import exchanges_sizes, mixes_positions

_TRIED_LAYERS = 3
_EXACT_INTEGERS = 2**24


def mixed_classes(probe: Probe, batch: ProbeBatch, mode: Mode) -> str:
    """Return the layer whose positions and channels are mixed up in the loss; empty for none."""
    called = _CalledLayers(probe.module)
    seen = observe(probe, batch, mode=mode, watch=[called])
    if not any(c.output.dim() > 1 for c in seen.comparisons):
        return ""
    smallest = min(c.output.numel() for c in seen.comparisons if c.output.dim() > 1)
    layers = [
        name
        for name, count in called.sizes.items()
        if smallest <= count < _EXACT_INTEGERS and called.times[name] == 1
    ]
    for name in layers[::-1][:_TRIED_LAYERS]:
        layer = probe.module.get_submodule(name)
        numbered = _Numbered(layer)
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
        source.long(), shape, channel_dim=_channel_dim(layer, shape), class_dim=found.class_dim
    )


def _channel_dim(layer: nn.Module, shape: torch.Size) -> int:
    if isinstance(layer, _ConvNd):
        return len(shape) - len(layer.kernel_size) - 1
    return len(shape) - 1


class Reshapes(TorchFunctionMode):
    """Notes whether a reshape moves the dimension of the examples as a transpose would.

    Args:
        size: The number of examples.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self.found = False

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
                self.found |= before.index(self._size) != after.index(self._size)
        return result


class _CalledLayers(contextlib.AbstractContextManager[None]):
    """Notes the linear and convolutional layers in the order of their calls."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.sizes: dict[str, int] = {}
        self.times: dict[str, int] = {}

    def __enter__(self) -> None:
        self._handles = [
            layer.register_forward_hook(self._note(name))
            for name, layer in self._module.named_modules()
            if isinstance(layer, nn.Linear | _ConvNd)
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, name: str) -> Any:
        def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            self.sizes.pop(name, None)
            self.sizes[name] = output.numel()
            self.times[name] = self.times.get(name, 0) + 1

        return hook


class _Numbered(contextlib.AbstractContextManager[None]):
    """Lets a layer give the numbers of its outputs instead of the outputs."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self.shape: torch.Size | None = None

    def __enter__(self) -> None:
        self._handle = self._layer.register_forward_hook(self._number)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _number(self, _layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        self.shape = output.shape
        count = torch.arange(output.numel(), dtype=torch.float32, device=output.device)
        return count.view(output.shape).requires_grad_(output.requires_grad)
