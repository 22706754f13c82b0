"""What the data look like where they enter the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.wiring.layer_calls import LayerCall, LayerCalls, axes_but


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SiteStatistics:
    """The data at the input of one layer.

    Attributes:
        name: The path of the layer's weight.
        kind: See :class:`~lightning_tuning._trainer.layer_calls.LayerCall`.
        mean: Of each feature, on the host, float64.
        std: Of each feature, about its mean.
        count: Values of each feature.
    """

    name: str
    kind: str
    mean: Tensor
    std: Tensor
    count: int


class InputScan(LayerCalls):
    """Takes the statistics of data at each layer that they enter, over several steps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, self._look)
        self._kinds: dict[str, str] = {}
        self._sums: dict[tuple[str, int], list[tuple[int, Tensor, Tensor]]] = {}

    def take(self) -> dict[str, SiteStatistics]:
        """Return what was seen, in the order of the calls."""
        found = {}
        for (name, _), parts in self._sums.items():
            if name not in found:
                found[name] = _pooled(name, self._kinds[name], parts)
        return found

    def _look(self, call: LayerCall, make: Callable[..., Any]) -> Any:
        if call.of_data and call.input.numel():
            values = call.input.detach().float()
            # what does not hold a number is the matter of another rule
            values = torch.where(values.isfinite(), values, 0.0)
            variance, mean = torch.var_mean(values, axes_but(values, call.units), correction=0)
            self._kinds.setdefault(call.name, call.kind)
            parts = self._sums.setdefault((call.name, mean.numel()), [])
            parts.append(
                (values.numel() // max(mean.numel(), 1), mean.flatten(), variance.flatten())
            )
        return make()


class MappedInput(LayerCalls):
    """Maps the data by a fixed affine function of each feature where they enter the network.

    Args:
        module: The network.
        maps: Factor and offset of each feature, by the name of the layer.
    """

    def __init__(self, module: nn.Module, maps: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(module, self._map)
        self._maps = dict(maps)

    def _map(self, call: LayerCall, make: Callable[..., Any]) -> Any:
        known = self._maps.get(call.name) if call.of_data else None
        if known is None or known[0].numel() != call.input.size(call.units):
            return make()
        shape = [1] * call.input.dim()
        shape[call.units] = -1
        factor, offset = (part.to(call.input.device).reshape(shape) for part in known)
        mapped = call.input.float() * factor.float() + offset.float()
        return make(given=mapped.to(call.input.dtype))


def standardising(
    sites: Mapping[str, SiteStatistics],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the maps that give each feature mean 0 and deviation 1.

    A feature that hardly varies beside the others is only divided by a tenth of their deviation.
    """
    maps = {}
    for name, site in sites.items():
        typical = (
            site.std[site.std > 0].median() if bool((site.std > 0).any()) else torch.tensor(1.0)
        )
        factor = 1 / site.std.clamp_min(float(typical) / 10)
        maps[name] = (factor, -site.mean * factor)
    return maps


def _pooled(name: str, kind: str, parts: list[tuple[int, Tensor, Tensor]]) -> SiteStatistics:
    counts = torch.tensor([float(count) for count, _, _ in parts], dtype=torch.float64)
    share = (counts / counts.sum())[:, None]
    means = torch.stack([mean for _, mean, _ in parts]).cpu().double()
    variances = torch.stack([variance for _, _, variance in parts]).cpu().double()
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    return SiteStatistics(
        name=name, kind=kind, mean=mean, std=variance.sqrt(), count=int(counts.sum())
    )
