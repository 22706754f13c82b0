"""Layers that give the numbers of their outputs, to follow each one through a step."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

EXACT_INTEGERS = 2**24
"""So many numbers are told apart in single precision."""


def channel_dim(layer: nn.Module, shape: torch.Size) -> int:
    """Return the dimension of a linear or convolutional layer's output that its channels have."""
    if isinstance(layer, _ConvNd):
        return len(shape) - len(layer.kernel_size) - 1
    return len(shape) - 1


class CalledLayers(contextlib.AbstractContextManager[None]):
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


class Numbered(contextlib.AbstractContextManager[None]):
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
