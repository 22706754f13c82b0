"""Modules that compute otherwise, and give other numbers, where somebody looks at them."""

from __future__ import annotations

from torch import nn

_HAVE_ONE = (nn.TransformerEncoderLayer, nn.MultiheadAttention)


class FastPaths:
    """Knows torch's attention layers, which have a fast path in eval mode.

    They leave it if a part of them has a hook, or if any function mode is on.

    Args:
        module: The program's module.

    Example:
        >>> layer = nn.TransformerEncoderLayer(4, 2)
        >>> paths = FastPaths(layer)
        >>> len(paths.taken_by())
        0
        >>> _ = layer.eval()
        >>> id(layer.linear1) in paths.taken_by()
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = [part for part in module.modules() if isinstance(part, _HAVE_ONE)]
        self.parts = {id(part) for layer in self._layers for part in layer.modules()}
        """All modules in such layers, by identity."""

    def taken_by(self) -> set[int]:
        """Return the modules in layers that are in eval mode now, by identity."""
        return {
            id(part) for layer in self._layers if not layer.training for part in layer.modules()
        }
