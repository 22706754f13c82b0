"""Whether dimensions were exchanged by a reshape, which leaves the numbers where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mixes_positions(source: Tensor, shape: torch.Size, *, channel_dim: int, class_dim: int) -> bool:
    """Whether class scores are put together from several positions of a layer's output.

    Scores may run over the layer's channels, or over the whole of other dimensions (a softmax over
    space); anything between comes from a reshape without a permutation.

    Args:
        source: For each score, the flat index of the layer's output that it is.
        shape: The shape of the layer's output.
        channel_dim: The dimension of the layer's channels.
        class_dim: The dimension of the classes in ``source``.

    Example:
        >>> source = torch.arange(24).view(2, 3, 4)  # 2 examples, 3 channels, 4 positions
        >>> mixes_positions(source, source.shape, channel_dim=1, class_dim=1)
        False
        >>> mixes_positions(source.reshape(-1, 3), source.shape, channel_dim=1, class_dim=1)
        True
    """
    scores = source.movedim(class_dim, -1).flatten(0, -2)
    if scores.size(-1) < 2 or shape[channel_dim] < 2:
        return False
    indices = torch.unravel_index(scores, shape)
    varying = [dim for dim, index in enumerate(indices) if bool((index != index[:, :1]).any())]
    if varying == [channel_dim]:
        return False
    whole = 1
    for dim in varying:
        whole *= shape[dim]
    return scores.size(-1) != whole


def exchange(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...] | None:
    """Return the order of dimensions by which a transpose would do what a reshape did.

    Dimensions of size 1 are left out. None where no sizes were exchanged, or two are the same.

    Example:
        >>> exchange((7, 1, 8, 3), (7, 3, 8)), exchange((8, 8, 3), (8, 3, 8))
        ((0, 2, 1), None)
    """
    one, other = ([n for n in shape if n != 1] for shape in (before, after))
    if not exchanges_sizes(before, after) or len(set(one)) < len(one):
        return None
    return tuple(one.index(size) for size in other)


def exchanges_sizes(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether a reshape gave a shape with the same sizes in another order, as a transpose does.

    Example:
        >>> exchanges_sizes((7, 1, 8, 3), (7, 3, 8)), exchanges_sizes((7, 1, 8), (7, 8, 1))
        (True, False)
    """
    one, other = ([n for n in shape if n != 1] for shape in (before, after))
    return one != other and sorted(one) == sorted(other)
