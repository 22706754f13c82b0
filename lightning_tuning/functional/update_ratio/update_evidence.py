"""What the rules about update ratios look at."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lightning_tuning.functional.fit_course import FitCourse
from lightning_tuning.functional.unread_flags import UnreadFlag
from lightning_tuning.functional.update_ratio.update_ratio import Matrix, UpdateRatioResult, matrix

Choice = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A matrix in no optimizer that is as it was when the fit began.

    Attributes:
        name: Its path.
        shape: Its shape.
        trainable: Whether it takes gradients.
        fed: Whether it has got one.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    fed: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateEvidence:
    """A measured fit.

    Attributes:
        result: What was measured.
        course: How the training loss went.
        losses: The training loss of each optimizer step.
        fresh: Whether the weights were untrained when the fit began; None where nobody knows.
        eps: Relative spacing of each tensor's numbers.
        groups: The parameter group of each tensor.
        weight_decays: Of each tensor's group.
        trainable: Whether each tensor takes gradients.
        shapes: Of each tensor.
        left_out: The matrices that belong to no optimizer and are as they were when the fit began.
        rest_fresh: The same as ``fresh`` of these, and of what got no gradient.
        unread: Attributes that were to freeze or to thaw, and did not.
        scale_free: Whether layers normalise what others put out, so that the size of their weights
            may not matter.
        steps: Optimizer steps of the fit.
        at: The place on the axis of ``self.log``.
    """

    result: UpdateRatioResult
    course: FitCourse
    losses: tuple[float, ...]
    fresh: bool | None
    eps: tuple[float, ...]
    groups: tuple[int, ...]
    weight_decays: tuple[float, ...]
    trainable: tuple[bool, ...]
    shapes: tuple[tuple[int, ...], ...]
    left_out: tuple[LeftOut, ...]
    rest_fresh: bool | None
    unread: tuple[UnreadFlag, ...]
    scale_free: bool
    steps: int
    at: int

    @functools.cached_property
    def ratios(self) -> Matrix:
        """The logarithms of the ratios, measured steps times tensors."""
        return matrix(self.result.log10_ratios, len(self.result.names))

    @functools.cached_property
    def weights(self) -> Matrix:
        """The norms of the weights, in the same shape."""
        return matrix(self.result.weight_norms, len(self.result.names))

    @functools.cached_property
    def updates(self) -> Matrix:
        """The norms of the updates, in the same shape."""
        return matrix(self.result.update_norms, len(self.result.names))

    @functools.cached_property
    def gradients(self) -> Matrix:
        """The norms of the gradients before clipping, in the same shape."""
        return matrix(self.result.gradient_norms, len(self.result.names))

    @functools.cached_property
    def rates(self) -> Matrix:
        """The learning rate of each tensor at each measured step; NaN where none is known."""
        rates = matrix(self.result.learning_rates)
        if not rates.shape[1]:
            return np.full(self.ratios.shape, np.nan)
        # a group that nobody knows stands for no rate
        return rates[:, np.minimum(self.groups, rates.shape[1] - 1)]

    @functools.cached_property
    def clipping(self) -> Matrix:
        """What clipping left of the gradient's norm at each step; 1 where nobody knows."""
        result = self.result
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.divide(matrix(result.after_clipping), matrix(result.before_clipping))
        known: Matrix = np.where(np.isfinite(left), left, 1.0)
        return np.asarray(known.min(axis=1, initial=1.0))

    @functools.cached_property
    def matrices(self) -> Choice:
        """Which tensors are weights of two or more dimensions that did not begin with zeros."""
        return np.asarray([kind == "weight" for kind in self.result.kinds], dtype=bool)

    @functools.cached_property
    def driven(self) -> Choice:
        """Where a step had a gradient and a learning rate to move a matrix with."""
        some = (self.gradients > 0) & np.isfinite(self.gradients) & (self.rates > 0)
        return np.asarray(some & self.matrices[None, :])

    @functools.cached_property
    def matrices_of_any_kind(self) -> Choice:
        """The same with embeddings and what began with zeros."""
        kinds = ("weight", "zero_init", "embedding")
        return np.asarray([kind in kinds for kind in self.result.kinds], dtype=bool)

    @functools.cached_property
    def idle(self) -> Choice:
        """Which of these never had a gradient."""
        return np.asarray(self.matrices_of_any_kind & np.isnan(self.gradients).all(axis=0))

    @functools.cached_property
    def growth(self) -> float:
        """How often their first norm the matrices reach at most, as the median over them."""
        return self._relative_norm(np.fmax.reduce)

    @functools.cached_property
    def left(self) -> float:
        """Which part of their first norm the matrices have at the end, as the median over them."""
        return self._relative_norm(lambda norms: norms[-1])

    def _relative_norm(self, which: Callable[[Matrix], float]) -> float:
        found = []
        for norms in self.weights[:, self.matrices].T:
            finite = norms[np.isfinite(norms)]
            if len(finite) and finite[0] > 0:
                found.append(which(finite) / finite[0])
        return float(np.median(found)) if found else 1.0

    def quantile(self, share: float) -> Matrix:
        """A quantile over the matrices that were driven, at each step; NaN where none was.

        What did not move in spite of its gradient counts as 1e-20.
        """
        known = self.driven & ~np.isnan(self.ratios)
        counts = known.sum(axis=1)
        if not counts.any():
            return np.full(len(self.ratios), np.nan)
        # what is not known comes last in a sorted row
        ordered = np.sort(np.where(known, np.maximum(self.ratios, -20.0), np.nan), axis=1)
        places = share * np.maximum(counts - 1, 0)
        below = np.floor(places).astype(int)[:, None]
        above = np.ceil(places).astype(int)[:, None]
        low = np.take_along_axis(ordered, below, axis=1)[:, 0]
        high = np.take_along_axis(ordered, above, axis=1)[:, 0]
        return np.asarray(low + (places - below[:, 0]) * (high - low))
