"""Where a module keeps its tensors that learn, the ones it does not know included."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Owned:
    """A tensor that takes gradients.

    Attributes:
        path: Where it is found, such as ``"net.0.weight"`` or ``"layers[0].weight"``.
        tensor: It itself.
        layer: The innermost module that has it.
        layer_path: The path of that.
        registered: Whether ``parameters()`` gives it.
    """

    path: str
    tensor: Tensor
    layer: nn.Module
    layer_path: str
    registered: bool


def owned_tensors(module: nn.Module) -> dict[int, Owned]:
    """Return the parameters of a module by id, and those that its plain attributes hide.

    Example:
        >>> class Hides(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = [nn.Linear(1, 1, bias=False)]
        >>> [found] = owned_tensors(Hides()).values()
        >>> found.path, found.registered
        ('layers[0].weight', False)
    """
    found: dict[int, Owned] = {}
    known = {id(p) for p in module.parameters()}
    seen: set[int] = set()
    for path, part in module.named_modules():
        _collect(part, path, known, found, seen)
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in ("_modules", "_parameters", "_buffers", "_trainer", "_fabric"):
                for where, inner in _inside(value, _joined(path, key), depth=2):
                    if isinstance(inner, nn.Module):
                        for name, layer in inner.named_modules():
                            _collect(layer, _joined(where, name), known, found, seen)
                    elif inner.requires_grad and inner.grad_fn is None and id(inner) not in found:
                        found[id(inner)] = Owned(
                            path=where,
                            tensor=inner,
                            layer=part,
                            layer_path=path,
                            registered=id(inner) in known,
                        )
    return found


def _collect(
    layer: nn.Module, path: str, known: set[int], found: dict[int, Owned], seen: set[int]
) -> None:
    if id(layer) in seen:
        return
    seen.add(id(layer))
    for name, parameter in layer.named_parameters(recurse=False):
        found.setdefault(
            id(parameter),
            Owned(
                path=_joined(path, name),
                tensor=parameter,
                layer=layer,
                layer_path=path,
                registered=id(parameter) in known,
            ),
        )


def _inside(value: Any, path: str, *, depth: int) -> Iterator[tuple[str, nn.Module | Tensor]]:
    if isinstance(value, nn.Module | Tensor):
        yield path, value
    elif depth and isinstance(value, Mapping):
        for key, entry in list(value.items())[:_MANY]:
            yield from _inside(entry, f"{path}[{key!r}]", depth=depth - 1)
    elif depth and isinstance(value, list | tuple):
        for i, entry in enumerate(value[:_MANY]):
            yield from _inside(entry, f"{path}[{i}]", depth=depth - 1)


_MANY = 1000


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
