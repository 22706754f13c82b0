"""One value, far from all others and found again and again: what a failed reading leaves behind."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

FAR = 20.0
"""So many robust deviations from its column's median."""
_FEWEST = 3
_MOST = 0.05
_NORMAL = 1.4826
"""The deviation of a normal distribution over its median absolute deviation."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RepeatedExtremes:
    """Values that repeat far from the rest of their columns.

    Attributes:
        values: Each of them once.
        count: So many entries have one.
        share: Of all entries.
        distance: Of the nearest to its column's median, in robust deviations.
        middle: The median of each column.
        reach: How far from it a value must be to count; infinite for columns that hardly vary.
    """

    values: Tensor
    count: int
    share: float
    distance: float
    middle: Tensor
    reach: Tensor

    @property
    def stands_for_missing(self) -> bool:
        """Whether each value is one that people write for a missing one: nines, or beyond 1e15.

        Example:
            >>> data = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
            >>> data[::100] = -999.0
            >>> repeated_extremes(data).stands_for_missing
            True
            >>> data[::100] = 1000.0
            >>> repeated_extremes(data).stands_for_missing
            False
        """
        return all(_is_code(abs(value)) for value in self.values.tolist())

    def filled(self, data: Tensor) -> Tensor:
        """Return the data with their columns' medians in the place of these values.

        Args:
            data: Of shape (..., columns), or (examples,) for one column.
        """
        rows = data if data.dim() > 1 else data[:, None]
        middle = self.middle.to(data.dtype)
        far = (rows - middle).abs().float() > self.reach
        found = far & torch.isin(rows, self.values.to(data.dtype))
        return torch.where(found, middle, rows).reshape(data.shape)


def repeated_extremes(data: Tensor) -> RepeatedExtremes | None:
    """Return what repeats far from its column, with nothing between it and the rest.

    Columns with a long tail have values on the way, and those that are mostly one value have no
    deviation to measure by; neither is found.

    Args:
        data: Of shape (examples, columns).

    Example:
        >>> data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> data[::100, 1] = -200.0
        >>> found = repeated_extremes(data)
        >>> found.values, found.count
        (tensor([-200.]), 5)
    """
    values = data.detach().float()
    middle = values.median(0).values
    deviation = _NORMAL * (values - middle).abs().median(0).values
    varies = deviation > 1e-6 * middle.abs().clamp_min(1e-30)
    distance = torch.where(varies, (values - middle).abs() / deviation, 0.0)
    far = distance > FAR
    distinct, counts = torch.unique(values[far], return_counts=True)
    repeated = distinct[counts >= _FEWEST]
    found = far & torch.isin(values, repeated)
    count = int(found.sum())
    if not count or count > _MOST * values.numel():
        return None
    nearest = float(distance[found].min())
    if float(distance[~found].max()) > nearest / 2:
        return None
    return RepeatedExtremes(
        values=repeated,
        count=count,
        share=count / values.numel(),
        distance=nearest,
        middle=middle,
        reach=torch.where(varies, FAR * deviation, float("inf")),
    )


def _is_code(size: float) -> bool:
    return size > 1e15 or (size >= 99 and size.is_integer() and set(str(int(size))) == {"9"})
