"""Histograms of many samples at once, in bins that are laid out for activations and gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

REACH = 4.0
"""The outermost bins lie at ``expm1(4)``, or 54 times the root mean square."""
FACTS = 5
"""Numbers before the counts in a row of :func:`histograms`."""
Array = np.ndarray[Any, np.dtype[np.float32]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Places = np.ndarray[Any, np.dtype[np.integer[Any]]]


def histograms(samples: Sequence[Tensor], bins: int) -> Tensor:
    """Count values in bins that are narrow near zero and grow with the distance from it.

    The bins are equal in ``sign(x) * log1p(|x| / rms)``, for each sample with its own root mean
    square; values beyond the last bin count there, and those that are not finite nowhere. Nothing
    waits for the device.

    Args:
        samples: Vectors in single precision on one device, of about equal length.
        bins: Their number.

    Returns:
        A row for each: the root mean square of its finite values over its length, their smallest,
        largest and sum, and the number of values that are not finite, then its counts.

    Example:
        >>> rows = histograms([torch.tensor([-1.0, 1.0, 1.0, 1.0])], 4)
        >>> rows[0].tolist()
        [1.0, -1.0, 1.0, 2.0, 0.0, 0.0, 1.0, 3.0, 0.0]
    """
    # a row is filled up with what is not finite
    padded = torch.nn.utils.rnn.pad_sequence(
        list(samples), batch_first=True, padding_value=math.nan
    )
    lengths, starts = _layout(tuple(map(len, samples)), bins + 1, padded.device)
    low = padded.nan_to_num(math.inf, math.inf, math.inf).amin(1)
    high = padded.nan_to_num(-math.inf, -math.inf, -math.inf).amax(1)
    finite = padded.nan_to_num(0.0, 0.0, 0.0)
    total = finite.sum(1)
    rms = torch.linalg.vector_norm(finite, dim=1) / lengths.sqrt()
    tiny = torch.finfo(padded.dtype).tiny
    ratio = finite.abs().div_(rms.clamp_min(tiny).unsqueeze(1)).log1p_().copysign_(finite)
    place = ratio.mul_(bins / (2 * REACH)).add_(bins / 2 + 1).clamp_(1.0, bins + 0.5)
    # the first bin of a row takes what is not finite: minus itself that is no number
    place += finite.sub_(padded).mul_(0.0)
    index = place.nan_to_num_(0.0).to(torch.int32).add_(starts)
    counts = _counts(index.view(-1), len(samples) * (bins + 1)).view(len(samples), -1)
    counts[:, 0] += lengths - padded.size(1)
    return torch.cat([torch.stack([rms, low, high, total], dim=1), counts], dim=1)


def histograms_on_host(samples: Sequence[Tensor], bins: int) -> Array:
    """Return the rows of :func:`histograms` for samples of any lengths on a CPU.

    Takes a third of the time: one after the other they are counted in one call, where rows of one
    length have to be grouped and filled up.

    Args:
        samples: Vectors in single precision on a CPU, none of them empty.
        bins: Number of bins.

    Example:
        >>> histograms_on_host([torch.tensor([-1.0, 1.0, 1.0, 1.0])], 4)[0].tolist()
        [1.0, -1.0, 1.0, 2.0, 0.0, 0.0, 1.0, 3.0, 0.0]
    """
    values = np.concatenate([sample.numpy() for sample in samples])
    starts, lengths, first = _layout_on_host(tuple(map(len, samples)), bins)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.add.reduceat(values * values, starts)
        total = np.add.reduceat(values, starts)
        rms = np.sqrt(squares / lengths)
    # a sum that is too large for single precision is taken for one of numbers that are not finite
    if not np.isfinite(squares).all():
        return _with_broken_rows(samples, bins, np.isfinite(squares))
    place = np.abs(values)
    place /= np.repeat(np.maximum(rms, np.finfo(np.float32).tiny), lengths)
    np.copysign(np.log1p(place, out=place), values, out=place)
    place *= np.float32(bins / (2 * REACH))
    place += np.float32(bins / 2)
    index = np.clip(place, 0.0, bins - 0.5, out=place).astype(np.int32)
    index += first
    rows = np.empty((len(samples), FACTS + bins), dtype=np.float32)
    rows[:, 0], rows[:, 3], rows[:, 4] = rms, total, 0.0
    rows[:, 1] = np.minimum.reduceat(values, starts)
    rows[:, 2] = np.maximum.reduceat(values, starts)
    rows[:, FACTS:] = np.bincount(index, minlength=len(samples) * bins).reshape(-1, bins)
    return rows


def _with_broken_rows(samples: Sequence[Tensor], bins: int, whole: Flags) -> Array:
    """Return rows where some samples hold what is not finite."""
    rows = np.empty((len(samples), FACTS + bins), dtype=np.float32)
    for place, sample in enumerate(samples):
        if not whole[place]:
            rows[place] = histograms([sample], bins)[0].numpy()
    if whole.any():
        good = [sample for sample, is_whole in zip(samples, whole, strict=True) if is_whole]
        rows[whole] = histograms_on_host(good, bins)
    return rows


@functools.lru_cache(maxsize=256)
def _layout_on_host(lengths: tuple[int, ...], bins: int) -> tuple[Places, Places, Places]:
    """Return where each sample begins, the lengths, and the first bin of each value's row."""
    sizes = np.array(lengths, dtype=np.int64)
    first = np.repeat(np.arange(len(lengths), dtype=np.int32) * bins, sizes)
    return np.cumsum(sizes) - sizes, sizes, first


@functools.lru_cache(maxsize=256)
def _layout(lengths: tuple[int, ...], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return lengths as numbers on the device, filled in there, and where each row's bins begin."""
    sizes = [torch.full((), float(length), device=device) for length in lengths]
    starts = torch.arange(0, len(lengths) * width, width, dtype=torch.int32, device=device)
    return torch.stack(sizes), starts.unsqueeze(1)


@functools.cache
def edges(bins: int) -> tuple[float, ...]:
    """Return the edges of the bins, in root mean squares.

    Example:
        >>> [round(edge, 2) for edge in edges(4)]
        [-53.6, -6.39, 0.0, 6.39, 53.6]
    """
    places = [2 * REACH * k / bins - REACH for k in range(bins + 1)]
    return tuple(math.copysign(math.expm1(abs(place)), place) for place in places)


def _counts(index: Tensor, bins: int) -> Tensor:
    """Count how often each bin is named."""
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=bins).float()
    # `bincount` would wait for the device, to see how many bins there are
    counts = torch.zeros(bins, device=index.device)
    ones = torch.ones(1, device=index.device).expand(len(index))
    if not torch.are_deterministic_algorithms_enabled():
        return counts.scatter_add_(0, index.long(), ones)
    # sums of ones are the same in any order, though torch refuses this or sorts on a GPU there
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        return counts.scatter_add_(0, index.long(), ones)
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn)
