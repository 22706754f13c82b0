"""Which layer sees the data first, what goes into it, and its weights as filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from lightning_tuning._trainer.compiled import has_compiled_parts
from lightning_tuning._trainer.fast_paths import FastPaths
from lightning_tuning.functional.filters.filter_images import (
    Array,
    check_image_shape,
    filters_of_rows,
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_EXAMPLES = 8
_MOST_FILTERS = 256


class LayerSearch:
    """Finds the first layer with filters that is called in a training step.

    Convolutions, and fully connected layers over an image, come before transposed convolutions,
    which a generator begins with. Where hooks might enter a compiled graph, or would end the fast
    path of torch's attention layers, the module's order stands for that of the calls.

    Args:
        module: The module.
        name: Path of the layer, if it is known.
        image_shape: Of the input of a fully connected layer, if it is known.
        batch: The first batch.

    Attributes:
        inputs: Some examples of what went into the layer; None where that was not seen.
        watching: Whether it has not been closed.
    """

    def __init__(
        self,
        module: LightningModule,
        name: str | None,
        image_shape: Sequence[int] | None,
        batch: object,
    ) -> None:
        shapes = _image_shapes(batch) if image_shape is None else [tuple(image_shape)]
        self._shapes = {math.prod(shape): shape for shape in reversed(shapes)}
        self._candidates = {
            path: layer
            for path, layer in module.named_modules()
            if (path == name if name is not None else self._may_have_filters(layer))
        }
        self._called: dict[str, Tensor | None] = {}
        self._guesses = name is None and image_shape is None
        self._within: set[str] = set()
        self._handles: list[RemovableHandle] = []
        if not has_compiled_parts(module):
            hidden = FastPaths(module).parts
            for path, layer in self._candidates.items():
                if id(layer) not in hidden:
                    self._handles.append(layer.register_forward_pre_hook(self._noting(path)))
        self.inputs: Tensor | None = None
        self.watching = True

    def close(self) -> None:
        """Remove all hooks."""
        self.watching = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def found(self) -> tuple[str, nn.Module] | None:
        """Return path and layer; None where no layer has filters."""
        order = {**self._called, **dict.fromkeys(self._candidates)}
        usable = [path for path in order if self._has_filters(self._candidates[path])]
        if self._guesses:
            # what other layers put out may be as long as an image, and is none
            linear = {p for p in self._within if isinstance(self._candidates[p], nn.Linear)}
            usable = [path for path in usable if path not in linear]
        usable.sort(key=lambda path: isinstance(self._candidates[path], _TRANSPOSED))
        if not usable:
            return None
        self.inputs = self._called.get(usable[0])
        return usable[0], self._candidates[usable[0]]

    def image_shape(self, layer: nn.Module) -> tuple[int, ...]:
        """Return the shape of the image that a fully connected layer sees; empty for others."""
        return self._shapes.get(layer.in_features, ()) if isinstance(layer, nn.Linear) else ()

    def _noting(self, path: str) -> Any:
        def note(layer: nn.Module, args: tuple[Any, ...]) -> None:  # noqa: ARG001
            if path not in self._called and not torch.compiler.is_compiling():
                is_tensor = bool(args) and isinstance(args[0], Tensor)
                self._called[path] = args[0][:_EXAMPLES].detach().clone() if is_tensor else None
                if is_tensor and args[0].requires_grad:
                    self._within.add(path)

        return note

    def _may_have_filters(self, layer: nn.Module) -> bool:
        if isinstance(layer, nn.Linear):
            return is_lazy(_weight_of(layer)) or layer.in_features in self._shapes
        return isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)) and max(layer.kernel_size) > 1

    def _has_filters(self, layer: nn.Module) -> bool:
        weight = _weight_of(layer)
        if not isinstance(weight, Tensor) or is_lazy(weight) or not weight.numel():
            return False
        return weight.ndim in (3, 4, 5) or bool(self.image_shape(layer))


def check_layer(module: LightningModule, name: str, image_shape: Sequence[int] | None) -> None:
    """Refuse a name that no layer with weights has, and a shape that is not that of its input.

    Raises:
        ValueError: There is no such layer, it has no weights, or another number of inputs.
    """
    layers = dict(module.named_modules())
    kinds = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
    if name not in layers or _weight_of(layers[name]) is None:
        known = [path for path, layer in layers.items() if isinstance(layer, kinds)]
        raise ValueError(f"layer={name!r} is no layer with weights; there are {', '.join(known)}")
    layer = layers[name]
    if isinstance(layer, nn.Linear) and not is_lazy(_weight_of(layer)) and image_shape is not None:
        check_image_shape(image_shape, layer.in_features)


@torch.no_grad()
def read_weight(layer: nn.Module) -> Tensor:
    """Return a copy of a layer's weights, whole, on its device; all processes must call it.

    The first 256 filters are enough.
    """
    weight: Tensor = _weight_of(layer).detach()
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    weight = weight.real if weight.is_complex() else weight
    return weight[:_MOST_FILTERS].clone()


def as_filters(weight: Tensor, image_shape: Sequence[int]) -> Array:
    """Return weights as filters (filters, channels, positions...) on the host."""
    values: Array = weight.float().cpu().numpy()
    return filters_of_rows(values, image_shape) if values.ndim == 2 else values


def as_images(inputs: Tensor, image_shape: Sequence[int]) -> Array:
    """Return a layer's inputs as (examples, channels, positions...) without their mean."""
    values: Array = inputs.float().cpu().numpy()
    if image_shape:
        values = filters_of_rows(values.reshape(-1, math.prod(image_shape)), image_shape)
    centred: Array = values - values.mean()
    return centred


@torch.no_grad()
def _weight_of(layer: nn.Module) -> Any:
    """Return the weight; in training mode a spectral norm would take a step when it is read."""
    if not parametrize.is_parametrized(layer, "weight"):
        return getattr(layer, "weight", None)
    parametrization: Any = layer.parametrizations.weight  # type: ignore[union-attr]
    modes = [(child, child.training) for child in parametrization.modules()]
    try:
        for child, _ in modes:
            child.training = False
        return layer.weight
    finally:
        for child, training in modes:
            child.training = training


def _image_shapes(batch: object) -> list[tuple[int, ...]]:
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    return [tuple(t.shape[1:]) for t in tensors if t.ndim in (3, 4) and t.numel()]
