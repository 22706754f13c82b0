"""The measured steps of a fit, in memory that does not grow without end."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from lightning_tuning.functional.update_ratio.update_ratio import Rows, UpdateRatioResult

MOST_ROWS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateRow:
    """One measured step; tensors by their index, optimizers and groups in order.

    Attributes:
        step: The optimizer step.
        log10_ratios: Of the tensors that were measured.
        weight_norms: Of the same.
        update_norms: Of the same.
        gradient_norms: Of the same.
        before_clipping: Of each optimizer.
        after_clipping: Of each optimizer.
        learning_rates: Of each parameter group.
    """

    step: int
    log10_ratios: Mapping[int, float]
    weight_norms: Mapping[int, float]
    update_norms: Mapping[int, float]
    gradient_norms: Mapping[int, float]
    before_clipping: tuple[float, ...]
    after_clipping: tuple[float, ...]
    learning_rates: tuple[float, ...]


class UpdateHistory:
    """Keeps at most 2000 rows: when there are more, every second one goes.

    Attributes:
        rows: Those that are kept.

    Example:
        >>> history = UpdateHistory()
        >>> history.add(
        ...     UpdateRow(
        ...         step=0,
        ...         log10_ratios={0: -3.0},
        ...         weight_norms={0: 1.0},
        ...         update_norms={0: 0.001},
        ...         gradient_norms={0: 1.0},
        ...         before_clipping=(1.0,),
        ...         after_clipping=(1.0,),
        ...         learning_rates=(0.1,),
        ...     )
        ... )
        >>> history.result(["net.weight"], ["weight"]).log10_ratios
        ((-3.0,),)
    """

    def __init__(self) -> None:
        self.rows: list[UpdateRow] = []
        self._stride = 1
        self._seen = 0
        self._first: dict[int, float] = {}

    def add(self, row: UpdateRow) -> None:
        """Keep a row, if its turn has come."""
        for place, norm in row.weight_norms.items():
            self._first.setdefault(place, norm)
        if self._seen % self._stride == 0:
            self.rows.append(row)
        self._seen += 1
        if len(self.rows) > MOST_ROWS:
            self.rows = self.rows[::2]
            self._stride *= 2

    def kinds(self, kinds: Sequence[str]) -> tuple[str, ...]:
        """Return the kinds, with matrices told apart that began with zeros."""
        return tuple(
            "zero_init" if kind == "weight" and self._first.get(place) == 0 else kind
            for place, kind in enumerate(kinds)
        )

    def result(self, names: Sequence[str], kinds: Sequence[str]) -> UpdateRatioResult:
        """Return what was measured, as a whole.

        Args:
            names: Of all tensors.
            kinds: What they are.
        """
        count = len(names)
        return UpdateRatioResult(
            steps=tuple(row.step for row in self.rows),
            names=tuple(names),
            kinds=self.kinds(kinds),
            log10_ratios=_filled([row.log10_ratios for row in self.rows], count),
            weight_norms=_filled([row.weight_norms for row in self.rows], count),
            update_norms=_filled([row.update_norms for row in self.rows], count),
            gradient_norms=_filled([row.gradient_norms for row in self.rows], count),
            before_clipping=_even([row.before_clipping for row in self.rows]),
            after_clipping=_even([row.after_clipping for row in self.rows]),
            learning_rates=_even([row.learning_rates for row in self.rows]),
        )


def _filled(rows: Sequence[Mapping[int, float]], count: int) -> Rows:
    return tuple(tuple(row.get(i, math.nan) for i in range(count)) for row in rows)


def _even(rows: Sequence[tuple[float, ...]]) -> Rows:
    """Make all rows as long as the longest: parameter groups may be added during a fit."""
    width = max(map(len, rows), default=0)
    return tuple(row + (math.nan,) * (width - len(row)) for row in rows)
