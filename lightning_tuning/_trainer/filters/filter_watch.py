"""The filters of a first layer over a fit: found in the first batch, read at the ends of epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_tuning._trainer.drawing_pace import DrawingPace
from lightning_tuning._trainer.filters.filter_layers import (
    LayerSearch,
    as_filters,
    as_images,
    check_layer,
    read_weight,
)
from lightning_tuning._trainer.fit_gate import why_the_loss_tells_nothing
from lightning_tuning._trainer.fit_losses import fit_losses
from lightning_tuning._trainer.monitor_log import log_image, log_scalars
from lightning_tuning.functional.filters.filter_findings import FilterEvidence
from lightning_tuning.functional.filters.filter_images import Array, smoothness
from lightning_tuning.functional.filters.filter_result import FilterResult

_NO_LAYER = (
    "no convolution, and no fully connected layer over an image whose shape is known, was found"
)


class FilterWatch:
    """Reads the filters of one layer.

    Args:
        trainer: A trainer in ``on_train_start``.
        module: Its module.
        layer: Path of the layer; None for the first that is called.
        image_shape: Of the input of a fully connected layer.
        suffix: What keeps its tags apart from those of other monitors of its class.

    Raises:
        ValueError: There is no such layer.

    Attributes:
        result: None until something was read.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        layer: str | None,
        image_shape: Sequence[int] | None,
        suffix: str,
    ) -> None:
        if layer is not None:
            check_layer(module, layer, image_shape)
        self._trainer = trainer
        self._module = module
        self._name = layer
        self._given_shape = image_shape
        self._suffix = suffix
        self._pace = DrawingPace()
        self._search: LayerSearch | None = None
        self._layer: nn.Module | None = None
        self._image_shape: tuple[int, ...] = ()
        self._waiting: tuple[int, Tensor, Tensor | None] | None = None
        self._first: Array | None = None
        self._input_shape: tuple[int, ...] = ()
        self._input_smoothness = math.nan
        self._losses: Sequence[float] = ()
        self._drawn = False
        self.result: FilterResult | None = None

    def before_batch(self, batch: object) -> None:
        """Look at the calls of the first batch."""
        if self._layer is None and self._search is None:
            self._search = LayerSearch(self._module, self._name, self._given_shape, batch)

    def after_forward(self) -> None:
        """Take the layer that was called first and a copy of its weights before the first step."""
        search = self._search
        if search is None or self._layer is not None or not search.watching:
            return
        search.close()
        found = search.found()
        if found is None:
            return
        self._name, self._layer = found
        self._image_shape = search.image_shape(self._layer)
        self._waiting = (self._steps, read_weight(self._layer), search.inputs)

    @property
    def looked(self) -> bool:
        """Whether the layer was looked for, so that batches have nothing more to show."""
        return self._search is not None and not self._search.watching

    @property
    def _steps(self) -> int:
        return int(self._trainer.fit_loop.epoch_loop._batches_that_stepped)

    def read(self, *, last: bool = False) -> None:
        """Read the weights, and write what they show; all processes must call it.

        Args:
            last: Whether the fit ends, so that the picture is drawn in any case.
        """
        if self._layer is None:
            return
        if self._waiting is not None:
            step, weight, inputs = self._waiting
            self._waiting = None
            self._note_inputs(inputs)
            self._add(step, weight, draw=True)
        if self.result is None or self.result.steps[-1] != self._steps:
            self._add(self._steps, read_weight(self._layer), draw=last or self._pace.allows())
        elif last and not self._drawn:
            self._draw(self.result)

    def close(self) -> None:
        """Remove all hooks."""
        if self._search is not None:
            self._search.close()

    def note_losses(self) -> None:
        """Take the losses of the whole fit; all processes must call it."""
        _, self._losses = fit_losses(self._trainer).read(self._trainer)

    def evidence(self) -> FilterEvidence:
        """Return what the rule judges."""
        return FilterEvidence(
            result=self.result,
            input_shape=self._input_shape,
            input_smoothness=self._input_smoothness,
            losses=self._losses,
            loss_reason=why_the_loss_tells_nothing(self._trainer),
            reason="" if self._layer is not None else _NO_LAYER,
            step=self._steps,
        )

    def _note_inputs(self, inputs: Tensor | None) -> None:
        if inputs is None:
            return
        images = as_images(inputs, self._image_shape)
        self._input_shape = images.shape[2:]
        found = smoothness(images)
        if self._trainer.world_size > 1:
            told = torch.tensor(found, device=self._trainer.strategy.root_device)
            found = float(self._trainer.strategy.reduce(told, reduce_op="mean"))
        self._input_smoothness = found

    def _add(self, step: int, weight: Tensor, *, draw: bool) -> None:
        filters = as_filters(weight, self._image_shape)
        if self.result is None:
            self._first = filters
            self.result = FilterResult(layer=str(self._name), shape=filters.shape)
        self.result = self.result.with_reading(step, filters, _moved(self._first, filters))
        tag = f"filter_smoothness{self._suffix}/{self._name}"
        if math.isfinite(self.result.smoothness[-1]):
            log_scalars(self._trainer, {tag: self.result.smoothness[-1]}, step)
        self._drawn = False
        if draw:
            self._draw(self.result)

    def _draw(self, result: FilterResult) -> None:
        self._drawn = True
        tag = f"filters{self._suffix}/{self._name}"
        step = result.steps[-1]
        if not self._trainer.is_global_zero:
            return
        with self._pace.spending():
            log_image(self._trainer, tag, result.image(), step)


def _moved(first: Array | None, filters: Array) -> float:
    if first is None or first.shape != filters.shape:
        return math.nan
    length = float(np.linalg.norm(first))
    return float(np.linalg.norm(filters - first)) / length if length > 0 else math.inf
