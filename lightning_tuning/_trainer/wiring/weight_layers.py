"""The layers of a network, as its weights are multiplied with something."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

_PRODUCTS = frozenset(
    {
        *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "bmm", "einsum"),
        *("conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    }
)
_SLOPE = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightLayer:
    """One product with a weight.

    Attributes:
        weight: The number of the weight among those of the step.
        given: How many numbers went in.
        made: How many came out.
        sources: The numbers of the layers whose results went in, maybe pooled or reshaped.
    """

    weight: int
    given: int
    made: int
    sources: frozenset[int]


class WeightLayers(TorchFunctionMode):
    """Notes the products with weights, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[WeightLayer] = []
        self.weights: list[Tensor] = []
        self._made_by: dict[int, tuple[Tensor, frozenset[int]]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        weight = _weight(func, args, kwargs)
        made_by = self._sources((*args, *kwargs.values()))
        if weight is not None and isinstance(result, Tensor):
            given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            data = next((t for t in given if not _is_weight(t)), None)
            if data is not None:
                self.weights.append(weight)
                layer = WeightLayer(
                    weight=len(self.weights) - 1,
                    given=data.numel(),
                    made=result.numel(),
                    sources=self._sources([data]),
                )
                self.layers.append(layer)
                made_by = frozenset({layer.weight})
        if made_by and isinstance(result, Tensor):
            self._made_by[id(result)] = (result, made_by)
        return result

    def _sources(self, values: Iterable[Any]) -> frozenset[int]:
        known = [self._made_by[id(v)][1] for v in values if id(v) in self._made_by]
        return frozenset().union(*known)

    def chain(self) -> list[WeightLayer]:
        """Return the layers that follow each other up to the last one."""
        chain: list[WeightLayer] = []
        for layer in self.layers[::-1]:
            if not chain or layer.made == chain[-1].given or layer.weight in chain[-1].sources:
                chain.append(layer)
        return chain[::-1]


class Activated(TorchFunctionMode):
    """Puts an activation function after the products with some weights.

    Args:
        weights: Those weights.
    """

    def __init__(self, weights: Collection[Tensor]) -> None:
        super().__init__()
        self._weights = {id(weight) for weight in weights}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, and activate its result."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        weight = _weight(func, args, kwargs)
        if weight is None or id(weight) not in self._weights:
            return result
        return F.leaky_relu(result, _SLOPE)


def _weight(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor | None:
    if getattr(func, "__name__", "") not in _PRODUCTS:
        return None
    operands = (*args, *kwargs.values())
    return next((t for t in operands if _is_weight(t) and t.dim() > 1), None)


def _is_weight(value: Any) -> bool:
    base = getattr(value, "_base", None)
    return isinstance(value, nn.Parameter) or isinstance(base, nn.Parameter)
