"""Slopes of a scalar along directions in one tensor, by centred differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_tuning.functional.gradient.gradient_check import TINY, WITH_KINKS, relative_error
from lightning_tuning.functional.gradient.gradient_winners import same

_LADDER = (1.0, 10.0, 0.1, 100.0, 0.01)
"""A slope that disagrees is measured again with other steps: one of them suits a right gradient."""
_ROUNDING = 32.0
"""So many last places of the value may a computation of it be off."""
_CONTENT = 1e-6
"""With a relative error up to this no other step is tried."""


_FEW = 2**10
"""So many entries are drawn, to find some with a gradient among them."""


class Surface(Protocol):
    """Some scalars (one loss, or several) as functions of one tensor.

    Attributes:
        gradients: What backward says, shape (scalars, entries of the tensor); NaN in the row of a
            scalar that sends the tensor no gradient.
        resolution: Relative distance of neighbouring floating-point numbers in the scalars.
    """

    gradients: Tensor
    resolution: float

    def values(self, entries: Tensor, changes: Tensor) -> Tensor:
        """Return the scalars, in float64 on the host, with changes added to some flat entries."""

    def winners(self, entries: Tensor, changes: Tensor) -> Sequence[Tensor]:
        """Return the winners of all that is piecewise on the way to the scalars."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slope:
    """The derivative along one direction, from backward and from differences."""

    analytic: float
    numeric: float
    error: float


def centred(surface: Surface, entries: Tensor, direction: Tensor, step: float) -> Slope:
    """Compare ``(f(x + h d) - f(x - h d)) / 2h`` with ``gradient . d``; of several f, the worst.

    Args:
        surface: The functions.
        entries: Flat places in the tensor.
        direction: The number d at each.
        step: h.
    """
    up, down = (surface.values(entries, sign * step * direction) for sign in (1, -1))
    here = surface.gradients[:, entries.to(surface.gradients.device)].double().cpu()
    analytic = here @ direction
    numeric = (up - down) / (2 * step)
    noise = _ROUNDING * surface.resolution * torch.maximum(up.abs(), down.abs()) / step + TINY
    slopes = [
        Slope(analytic=a, numeric=n, error=relative_error(a, n, noise=e))
        for a, n, e, absent in zip(
            *(row.tolist() for row in (analytic, numeric, noise, here.isnan().all(1))), strict=True
        )
        if not absent
    ]
    return max(slopes, key=lambda slope: slope.error)


def best(surface: Surface, entries: Tensor, direction: Tensor, step: float) -> Slope:
    """Return the slope for the step that agrees best, of a few around ``step``."""
    found = centred(surface, entries, direction, step)
    for factor in _LADDER[1:]:
        if found.error <= _CONTENT:
            break
        other = centred(surface, entries, direction, step * factor)
        found = min(found, other, key=lambda slope: slope.error)
    return found


def crosses_kink(surface: Surface, entries: Tensor, direction: Tensor, step: float) -> bool:
    """Whether some winner at x + h d is another one at x - h d, for the smallest step tried."""
    step *= min(_LADDER)
    up, down = (surface.winners(entries, sign * step * direction) for sign in (1, -1))
    return not same(up, down)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The worst slope of some entries, how many were compared, how many left out."""

    slope: Slope
    entries: int
    kinks: int


def compare(
    surface: Surface, entries: Tensor, step: float, generator: torch.Generator, *, closely: bool
) -> Comparison:
    """Compare gradient and differences at some entries of a tensor.

    One random direction through all of them needs two evaluations; where it agrees, each of them
    does, but for a coincidence of measure zero. Where not, they are looked at one by one, and those
    are left out at which a kink lies within the smallest step.

    Args:
        surface: The functions.
        entries: Flat places in the tensor.
        step: h, in units of the tensor.
        generator: Of the direction.
        closely: Whether to look at single entries where the direction disagrees.
    """
    count = len(entries)
    signs = torch.randint(2, (count,), generator=generator).double() * 2 - 1
    direction = signs * (0.5 + torch.rand(count, generator=generator, dtype=torch.float64))
    together = best(surface, entries, direction, step)
    if together.error <= WITH_KINKS or not closely:
        return Comparison(slope=together, entries=count, kinks=0)
    kinks, slopes = 0, []
    for entry in entries:
        place, one = entry.reshape(1), torch.ones(1, dtype=torch.float64)
        slope = best(surface, place, one, step)
        if slope.error > WITH_KINKS and crosses_kink(surface, place, one, step):
            kinks += 1
        else:
            slopes.append(slope)
    if not slopes:
        together = Slope(analytic=0.0, numeric=0.0, error=0.0)
    worst = max(slopes, key=lambda slope: slope.error, default=together)
    return Comparison(slope=worst, entries=len(slopes), kinks=kinks)


def choose_entries(gradients: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose entries of a tensor: half of them where a gradient arrives, half of them anywhere.

    Args:
        gradients: Shape (scalars, entries); NaN counts as no gradient.
        count: How many at most.
        generator: What decides.

    Example:
        >>> gradients = torch.zeros(1, 1000)
        >>> gradients[0, 17] = 1.0
        >>> 17 in choose_entries(gradients, 4, torch.Generator().manual_seed(0))
        True
    """
    size = gradients.shape[1]
    if size <= count:
        return torch.arange(size)
    if size <= _FEW:
        drawn = torch.randperm(size, generator=generator)
    else:  # with replacement, as a permutation of a huge table takes its time
        drawn = torch.randint(size, (_FEW,), generator=generator)
    strength = (
        gradients.abs().amax(0) if len(gradients) == 1 else gradients.nan_to_num(0.0).abs().amax(0)
    )
    felt = [int(strength.argmax()), *drawn[strength[drawn.to(strength.device)].cpu() > 0].tolist()]
    chosen = list(dict.fromkeys(felt))[: (count + 1) // 2]
    return torch.tensor(list(dict.fromkeys([*chosen, *drawn[:count].tolist()]))[:count])
