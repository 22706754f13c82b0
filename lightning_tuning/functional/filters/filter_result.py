"""What FilterMonitor saw of a layer over a fit."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING

from lightning_tuning.functional.filters.filter_images import (
    Array,
    amplitude,
    grid,
    shared_scale,
    shown,
    smoothness,
    stays_within,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_KEPT = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterResult:
    """The weights of a layer over a fit, as :class:`~lightning_tuning.FilterMonitor` read them.

    Attributes:
        layer: Its path in the module.
        shape: (filters, channels, positions...).
        steps: Place of each reading on the loggers' axis; the first is before the first step.
        smoothness: At each reading, of all filters: 1 is constant, 0 is white noise.
        moved: At each reading, the distance from the first weights as a share of their length.
        scale: The weight that is drawn white.
        filters: Weights of the filters that are shown, at some of the readings, the first and the
            last among them; not part of the JSON.
        filter_steps: The steps of these.

    Example:
        >>> import numpy as np
        >>> result = FilterResult(layer="conv", shape=(1, 1, 2, 2)).with_reading(
        ...     0, np.ones((1, 1, 2, 2))
        ... )
        >>> result.smoothness
        (1.0,)
    """

    layer: str
    shape: tuple[int, ...]
    steps: tuple[int, ...] = ()
    smoothness: tuple[float, ...] = ()
    moved: tuple[float, ...] = ()
    scale: float = 0.0
    filters: tuple[Array, ...] = dataclasses.field(default=(), repr=False, compare=False)
    filter_steps: tuple[int, ...] = ()

    def with_reading(self, step: int, weights: Array, moved: float = 0.0) -> FilterResult:
        """Return the result with one reading more.

        Args:
            step: Place on the loggers' axis.
            weights: All filters, (filters, channels, positions...).
            moved: How far they are from the first ones, as a share of their length.
        """
        steps, kept = (*self.filter_steps, step), (*self.filters, shown(weights))
        if len(kept) > _MOST_KEPT:
            # every other one of those between the first and the last
            keep = [0, *range(2, len(kept) - 1, 2), len(kept) - 1]
            steps, kept = tuple(steps[i] for i in keep), tuple(kept[i] for i in keep)
        scale = self.scale
        if not stays_within(weights, scale):
            scale = shared_scale(scale, amplitude(weights))
        return dataclasses.replace(
            self,
            steps=(*self.steps, step),
            smoothness=(*self.smoothness, smoothness(weights)),
            moved=(*self.moved, moved),
            scale=scale,
            filters=kept,
            filter_steps=steps,
        )

    def image(self) -> Array:
        """Draw the latest reading, as bytes (height, width, 3)."""
        return grid(self.filters[-1], self.scale)

    def plot(self) -> Figure:
        """Draw filters at some of the readings on one scale, and their smoothness over the fit.

        Returns:
            A ``matplotlib.figure.Figure`` that belongs to no window.
        """
        from lightning_tuning.plot_filters import plot_filters

        return plot_filters(self)

    def to_json(self) -> str:
        """Return all but the weights as JSON; values that are not finite become null."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["filters"], fields["filter_steps"]
        for name in ("smoothness", "moved"):
            fields[name] = [x if math.isfinite(x) else None for x in fields[name]]
        return json.dumps(fields, indent=1, allow_nan=False)
