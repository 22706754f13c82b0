"""Cyclical learning rates: up and down again and again between two bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from lightning_tuning.functional import checks
from lightning_tuning.functional.checks import PerGroup
from lightning_tuning.functional.schedules.schedule import (
    Curve,
    GroupValues,
    curve,
    not_before,
    spread,
    to_json,
)

CyclicalMode = Literal["triangular", "triangular2", "exp_range"]


def cyclical_lr(
    step: float,
    cycle_steps: float,
    *,
    base_lr: float,
    max_lr: float,
    mode: CyclicalMode = "triangular",
    gamma: float = 0.99994,
    pct_start: float = 0.5,
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
) -> tuple[float, float]:
    """Return the learning rate and the momentum of one step of a cyclical schedule.

    With ``x`` the fraction of the present cycle that is over, the height ``h`` rises from 0 to 1
    while ``x`` goes to ``pct_start``, and falls back to 0 until the cycle ends, both linearly. The
    rate is ``base_lr + (max_lr - base_lr) * h * s`` and momentum
    ``max_momentum - (max_momentum - base_momentum) * h * s``, where ``s`` is 1 (``"triangular"``),
    halves with each cycle (``"triangular2"``) or is ``gamma ** step`` (``"exp_range"``).

    The policies are Smith's (2017, "Cyclical Learning Rates for Training Neural Networks"), with
    momentum against the rate as in Smith (2018). They agree with
    ``torch.optim.lr_scheduler.CyclicLR``, whose ``step_size_up`` is ``pct_start * cycle_steps``.

    Args:
        step: Optimizer steps made so far; 0 for the first. May be fractional.
        cycle_steps: Length of a cycle in optimizer steps; may be fractional.
        base_lr: The learning rate at both ends of a cycle.
        max_lr: The learning rate at the peak of the first cycle.
        mode: How peaks change over cycles.
        gamma: By what the peaks shrink with each step, for ``"exp_range"``.
        pct_start: Fraction of a cycle in which the rate rises.
        base_momentum: Momentum at the peak of the rate.
        max_momentum: Momentum at both ends of a cycle.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> [round(v, 3) for v in cyclical_lr(5, 10, base_lr=0.1, max_lr=1.0)]
        [1.0, 0.8]
        >>> [round(v, 3) for v in cyclical_lr(15, 10, base_lr=0.1, max_lr=1.0, mode="triangular2")]
        [0.55, 0.85]
    """
    schedule = cyclical_schedule(
        max(1, math.ceil(step) + 1),
        cycle_steps,
        base_lr=base_lr,
        max_lr=max_lr,
        mode=mode,
        gamma=gamma,
        pct_start=pct_start,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )
    [(lr, momentum)] = schedule.at(step)
    assert momentum is not None
    return lr, momentum


@dataclasses.dataclass(frozen=True, kw_only=True)
class CyclicalSchedule:
    """A cyclical learning rate, and momentum, of every parameter group over a whole run.

    The attributes are the arguments of :func:`cyclical_schedule`, which checks them; those that
    may differ between parameter groups are tuples over the groups.

    Example:
        >>> schedule = cyclical_schedule(20, 10, base_lr=0.1, max_lr=[1.0, 0.5])
        >>> schedule.at(5)
        ((1.0, 0.8), (0.5, 0.8))
    """

    total_steps: int
    cycle_steps: float
    base_lr: tuple[float, ...]
    max_lr: tuple[float, ...]
    mode: CyclicalMode
    gamma: float
    pct_start: float
    cycle_momentum: tuple[bool, ...]
    base_momentum: tuple[float, ...]
    max_momentum: tuple[float, ...]

    @property
    def cycle_ends(self) -> tuple[int, ...]:
        """Numbers of steps made when a cycle has ended, within the run.

        Example:
            >>> cyclical_schedule(10, 2.5, base_lr=0.1, max_lr=1.0).cycle_ends
            (3, 5, 8, 10)
        """
        # what is left of a division is not a step
        cycles = math.floor(self.total_steps / self.cycle_steps + 1e-9)
        return tuple(math.ceil(k * self.cycle_steps - 1e-9) for k in range(1, cycles + 1))

    def at(self, step: float) -> GroupValues:
        """Return (learning rate, momentum) of each group; momentum is None where it is not cycled.

        The cycles go on past ``total_steps``.

        Raises:
            ValueError: ``step`` is negative.

        Example:
            >>> cyclical_schedule(20, 10, base_lr=0.0, max_lr=1.0).at(12)[0][0]
            0.4
        """
        not_before(step)
        over = step % self.cycle_steps / self.cycle_steps
        rising = over <= self.pct_start and self.pct_start > 0
        height = over / self.pct_start if rising else (1 - over) / (1 - self.pct_start)
        height *= self._scale(step)
        values = []
        for low, high, cycled, base, top in zip(
            self.base_lr,
            self.max_lr,
            self.cycle_momentum,
            self.base_momentum,
            self.max_momentum,
            strict=True,
        ):
            momentum = top - (top - base) * height if cycled else None
            values.append((low + (high - low) * height, momentum))
        return tuple(values)

    def curve(self, *, max_points: int = 1000) -> Curve:
        """Return evenly spread steps with the values of each group, for a picture or a file.

        Args:
            max_points: The most steps to return; the first and the last step are among them.

        Returns:
            ``"step"``: the steps; ``"lr"`` and ``"momentum"``: a list over steps for each group,
            empty for momentum that is not cycled.
        """
        return curve(self, max_points=max_points)

    def to_json(self) -> str:
        """Return the settings, and the curve at up to 1000 steps, as a JSON object."""
        return to_json(self)

    def _scale(self, step: float) -> float:
        if self.mode == "triangular2":
            return float(0.5 ** (step // self.cycle_steps))
        return float(self.gamma**step) if self.mode == "exp_range" else 1.0


def cyclical_schedule(
    total_steps: int,
    cycle_steps: float,
    *,
    base_lr: PerGroup,
    max_lr: PerGroup,
    mode: CyclicalMode = "triangular",
    gamma: float = 0.99994,
    pct_start: float = 0.5,
    cycle_momentum: bool | Sequence[bool] = True,
    base_momentum: PerGroup = 0.8,
    max_momentum: PerGroup = 0.9,
) -> CyclicalSchedule:
    """Return the cyclical schedule of all parameter groups, without any Trainer.

    See :func:`cyclical_lr` for the formula and its source.

    Args:
        total_steps: Length of the run in optimizer steps.
        cycle_steps: Length of a cycle in optimizer steps; may be fractional.
        base_lr: The rate at both ends of a cycle: one number, or one for each parameter group.
        max_lr: The rate at the peak of the first cycle: one number, or one for each group.
        mode: How peaks change over cycles.
        gamma: By what the peaks shrink with each step, for ``"exp_range"``.
        pct_start: Fraction of a cycle in which the rate rises.
        cycle_momentum: Whether momentum is cycled too: one answer, or one for each group.
        base_momentum: Momentum at the peak of the rate: one number, or one for each group.
        max_momentum: Momentum at the ends of a cycle: one number, or one for each group.

    Raises:
        ValueError: An argument is out of its range, or the lists differ in length.

    Example:
        >>> cyclical_schedule(100, 50, base_lr=1e-3, max_lr=0.1).cycle_ends
        (50, 100)
    """
    checks.steps("total_steps", total_steps)
    if not checks.is_number(cycle_steps) or not 1 <= cycle_steps < math.inf:
        raise ValueError(f"cycle_steps={cycle_steps!r} must be at least 1 optimizer step")
    rates_between("base_lr", base_lr, "max_lr", max_lr)
    checks.choice("mode", mode, ("triangular", "triangular2", "exp_range"))
    if not checks.is_number(gamma) or not 0 < gamma <= 1:
        raise ValueError(f"gamma={gamma!r} must be above 0 and at most 1: peaks don't grow")
    checks.fraction("pct_start", pct_start)
    if pct_start == 1:
        raise ValueError(f"pct_start={pct_start} leaves no way down; take a number below 1")
    checks.momenta("base_momentum", base_momentum)
    checks.momenta("max_momentum", max_momentum)
    groups = checks.groups(
        base_lr=base_lr,
        max_lr=max_lr,
        cycle_momentum=cycle_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )
    return CyclicalSchedule(
        total_steps=total_steps,
        cycle_steps=cycle_steps,
        base_lr=spread(base_lr, groups),
        max_lr=spread(max_lr, groups),
        mode=mode,
        gamma=gamma,
        pct_start=pct_start,
        cycle_momentum=spread(cycle_momentum, groups),
        base_momentum=spread(base_momentum, groups),
        max_momentum=spread(max_momentum, groups),
    )


def rates_between(low_name: str, low: PerGroup, high_name: str, high: PerGroup) -> None:
    """Check a lower and an upper learning rate, of each group where lists are given.

    Raises:
        ValueError: One is no rate, or a lower one lies above its upper one.
    """
    lows = low if isinstance(low, Sequence) else [low]
    if not all(checks.is_number(rate) and 0 <= rate < math.inf for rate in lows):
        raise ValueError(f"{low_name}={low} must be a learning rate, or one for each group")
    checks.rates(high_name, high)
    groups = checks.groups(**{low_name: low, high_name: high})
    if any(a > b for a, b in zip(spread(low, groups), spread(high, groups), strict=True)):
        raise ValueError(f"{low_name}={low} must not lie above {high_name}={high}")
