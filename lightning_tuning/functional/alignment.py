"""How validation data must be turned or moved to look like training data on average."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_FAR = 0.2
_NEARER = 0.5
_OVERLAP = 0.75
_MORE_OVERLAP = 0.15
_FEWEST = 100

TURNS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "turned by 90 degrees": lambda x: x.rot90(1, (-2, -1)),
    "turned by 180 degrees": lambda x: x.rot90(2, (-2, -1)),
    "turned by 270 degrees": lambda x: x.rot90(3, (-2, -1)),
    "mirrored": lambda x: x.flip(-1),
    "turned upside down": lambda x: x.flip(-2),
    "transposed": lambda x: x.transpose(-2, -1),
    "mirrored along the other diagonal": lambda x: x.transpose(-2, -1).rot90(2, (-2, -1)),
    "with channels in reversed order": lambda x: x.flip(-3),
}
"""What may be done to pictures whose last dimensions are channel, height and width."""


def better_turn(mean: Tensor, val_mean: Tensor) -> str | None:
    """Return what brings an average validation picture much nearer to the one of training.

    Args:
        mean: Of the training pictures: channels, height, width.
        val_mean: Of the validation pictures.

    Example:
        >>> picture = torch.arange(12.0).reshape(1, 3, 4)
        >>> better_turn(picture, picture.flip(-1)), better_turn(picture, picture + 0.1)
        ('mirrored', None)
    """
    if mean.shape != val_mean.shape:
        return None
    # of a level that differs tells another rule
    mean, val_mean = mean - mean.mean(), val_mean - val_mean.mean()
    distances = {}
    for name, turn in TURNS.items():
        turned = turn(val_mean)
        if turned.shape == mean.shape:
            distances[name] = float((turned - mean).norm())
    best = min(distances, key=lambda name: distances[name])
    now = float((val_mean - mean).norm())
    far = now > _FAR * float(mean.norm())
    return best if far and distances[best] < _NEARER * now else None


def id_offset(counts: Tensor, val_counts: Tensor) -> int:
    """Return what to take from validation ids to make them as frequent as those of training.

    The overlap of two distributions is the sum of the smaller of both shares (Swain and Ballard
    1991).

    Args:
        counts: Of each id in training.
        val_counts: In validation.

    Returns:
        0 where they overlap as they are, or no offset makes them.

    Example:
        >>> train = torch.tensor([40, 30, 20, 10, 0, 0])
        >>> id_offset(train, train.roll(2)), id_offset(train, train)
        (2, 0)
    """
    if counts.shape != val_counts.shape or min(int(counts.sum()), int(val_counts.sum())) < _FEWEST:
        return 0
    shares, others = counts.double() / counts.sum(), val_counts.double() / val_counts.sum()

    def overlap(offset: int) -> float:
        low, high = max(offset, 0), min(len(shares), len(shares) + offset)
        return float(torch.minimum(shares[low - offset : high - offset], others[low:high]).sum())

    now = overlap(0)
    used = others.nonzero().flatten()
    first = counts.nonzero().flatten()
    ends = int(used[0] - first[-1]), int(used[-1] - first[0])
    if now > _OVERLAP or ends[1] - ends[0] > 20_000:
        return 0
    best = max(range(ends[0], ends[1] + 1), key=overlap)
    return best if overlap(best) > max(now + _MORE_OVERLAP, _OVERLAP) else 0
