"""The weights of a first layer as pictures, and how smooth they are.

Source: CS231n, *Neural Networks Part 3*, "First-layer visualizations": noisy features are a
symptom; nice, smooth, clean and diverse ones say that the training goes well.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MOST_FILTERS = 64
MOST_CHANNELS = 16
"""So many channels of a filter are shown side by side, if they are no colours."""
_WIDTH = 512
_MOST_PIXELS = 1024
_GAP = (26, 35, 60)
"""Colour between filters, which is none that a grey filter has."""
_OUTLIERS = 0.995


def filters_of_rows(weight: Array, image_shape: Sequence[int]) -> Array:
    """Return the rows of a fully connected layer as filters over its input image.

    Args:
        weight: (outputs, inputs).
        image_shape: (height, width), (channels, height, width), or (height, width, channels) with
            at most four channels.

    Returns:
        (outputs, channels, height, width).

    Raises:
        ValueError: The layer has another number of inputs.

    Example:
        >>> filters_of_rows(np.zeros((10, 12)), (2, 2, 3)).shape
        (10, 3, 2, 2)
    """
    check_image_shape(image_shape, weight.shape[1])
    if len(image_shape) == 2:
        return weight.reshape(-1, 1, *image_shape)
    images = weight.reshape(-1, *image_shape)
    return np.moveaxis(images, -1, 1) if has_channels_last(image_shape) else images


def check_image_shape(image_shape: Sequence[int], inputs: int) -> None:
    """Check that an image has as many values as a layer has inputs.

    Raises:
        ValueError: It has not.
    """
    if math.prod(image_shape) != inputs:
        raise ValueError(
            f"image_shape={tuple(image_shape)!r} has {math.prod(image_shape)} values, and the layer"
            f" has {inputs} inputs"
        )


def has_channels_last(image_shape: Sequence[int]) -> bool:
    """Whether an image's last axis holds its colours.

    Example:
        >>> has_channels_last((28, 28, 3)), has_channels_last((3, 28, 28))
        (True, False)
    """
    return len(image_shape) == 3 and image_shape[-1] <= 4 and image_shape[0] not in (1, 3, 4)


def smoothness(filters: Array) -> float:
    """Return how alike neighbouring weights are: their correlation about zero.

    That is the sum of products of neighbours over the mean of the sums of their squares, over all
    filters, channels and directions at once.

    Args:
        filters: (filters, channels, positions...).

    Returns:
        1 for constant filters, 0 for white noise, -1 for a chessboard, cos(2 pi f) for waves of f
        cycles per weight along each axis; the same for multiples and for either sign. NaN where
        nothing can be said: weights that are all zero, not finite, or have no neighbours.

    Example:
        >>> smoothness(np.ones((1, 1, 5, 5)))
        1.0
        >>> smoothness(np.array([[[1.0, -1.0, 1.0, -1.0]]]))
        -1.0
    """
    products, squares = 0.0, 0.0
    values = filters.astype(np.float64)
    for axis in range(2, filters.ndim):
        low = np.delete(values, -1, axis)
        high = np.delete(values, 0, axis)
        products += float((low * high).sum())
        squares += float((low**2 + high**2).sum()) / 2
    return products / squares if squares > 0 and math.isfinite(products) else math.nan


def smoothness_of_noise(shape: Sequence[int]) -> float:
    """Return the standard deviation of :func:`smoothness` over white noise, for large numbers.

    Args:
        shape: (filters, channels, positions...).

    Example:
        >>> smoothness_of_noise((4, 1, 5, 6))
        0.07142857142857142
    """
    whole = math.prod(shape)
    pairs = sum(whole // size * (size - 1) for size in shape[2:])
    return pairs**-0.5 if pairs else math.inf


def amplitude(filters: Array) -> float:
    """Return the size that nearly all weights stay below; 0 where none is finite.

    Example:
        >>> amplitude(np.array([[[-2.0, 2.0]]]))
        2.0
    """
    finite = np.abs(filters[np.isfinite(filters)])
    return float(np.quantile(finite, _OUTLIERS)) if finite.size else 0.0


def stays_within(filters: Array, scale: float) -> bool:
    """Whether :func:`amplitude` is at most so large, without putting the weights in order.

    Example:
        >>> stays_within(np.arange(1000.0), 995.0), stays_within(np.arange(1000.0), 900.0)
        (True, False)
    """
    beyond = filters.size - int(np.count_nonzero(np.abs(filters) <= scale))
    return beyond <= filters.size - 2 - math.floor(_OUTLIERS * (filters.size - 1))


def shared_scale(scale: float, reached: float) -> float:
    """Return the scale of the next picture: that of those before, doubled until it suffices.

    So pictures of a fit can be compared, and one that can't be has twice the range.

    Args:
        scale: Of the pictures before; 0 if there is none yet.
        reached: Amplitude of the next.

    Example:
        >>> shared_scale(0.0, 0.3), shared_scale(0.3, 0.2), shared_scale(0.3, 0.7)
        (0.3, 0.3, 1.2)
    """
    if scale <= 0:
        return reached
    return math.ldexp(scale, max(0, math.ceil(math.log2(max(reached, scale) / scale) - 1e-9)))


def shown(filters: Array) -> Array:
    """Return the filters that a grid has room for: the first ones."""
    return filters[: _most_shown(filters.shape[1:])]


@functools.lru_cache(maxsize=64)
def _most_shown(shape: tuple[int, ...]) -> int:
    height, width = map(int, _pictures(np.zeros((1, *shape))).shape[1:3])
    fit = max(1, _MOST_PIXELS // (height + 1)) * max(1, _MOST_PIXELS // (width + 1))
    return min(MOST_FILTERS, fit)


def grid(filters: Array, scale: float) -> Array:
    """Draw filters in reading order.

    One channel is grey, three are colours, others lie side by side (the first sixteen of them); so
    do the slices of filters in space and time. A filter in time is a picture with a row for each
    channel.

    Args:
        filters: (filters, channels, positions...), one to three positions.
        scale: Weights of this size are white, of the negative size black, and zero is grey.

    Returns:
        Bytes (height, width, 3), each weight a square of pixels.

    Example:
        >>> grid(np.zeros((4, 1, 7, 7)), 1.0).shape
        (510, 510, 3)
    """
    pictures = _pictures(shown(filters))
    count, height, width = pictures.shape[:3]
    columns = _columns(count, height + 1, width + 1)
    rows = math.ceil(count / columns)
    whole = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), np.nan)
    for index, picture in enumerate(pictures):
        top, left = (height + 1) * (index // columns) + 1, (width + 1) * (index % columns) + 1
        whole[top : top + height, left : left + width] = picture
    painted = _bytes(whole, scale)
    times = max(1, _WIDTH // max(painted.shape[:2]))
    return painted.repeat(times, axis=0).repeat(times, axis=1)


def _columns(count: int, height: int, width: int) -> int:
    """Return the number of columns that makes the grid as square as it can be."""
    return min(range(1, count + 1), key=lambda n: max(n * width, math.ceil(count / n) * height))


def _pictures(filters: Array) -> Array:
    """Return (filters, height, width, 1 or 3), with NaN between parts side by side."""
    if filters.ndim == 3:
        return filters[..., None]
    if filters.ndim == 4:
        if filters.shape[1] == 3:
            return np.moveaxis(filters, 1, -1)
        return _side_by_side(filters[:, :MOST_CHANNELS, ..., None])
    slices = np.moveaxis(filters, 1, -1)
    if filters.shape[1] == 3:
        return _side_by_side(slices)
    flat = filters[:, :MOST_CHANNELS].reshape(len(filters), -1, *filters.shape[3:])
    return _side_by_side(flat[..., None])


def _side_by_side(parts: Array) -> Array:
    """Join (filters, parts, height, width, colours) along the width."""
    widened = np.pad(parts, [(0, 0)] * 3 + [(0, 1), (0, 0)], constant_values=np.nan)
    joined = np.moveaxis(widened, 1, 2)
    count, height, _, _, colours = joined.shape
    return joined.reshape(count, height, -1, colours)[:, :, :-1]


def _bytes(values: Array, scale: float) -> Array:
    gaps = np.isnan(values)
    share = np.clip(np.where(gaps, 0, values) / (scale or 1.0), -1, 1)
    painted = np.rint(127.5 + 127.5 * share).astype(np.uint8)
    return np.where(gaps, np.array(_GAP, np.uint8), painted)
