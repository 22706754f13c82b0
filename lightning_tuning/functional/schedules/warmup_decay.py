"""A warm-up, and one of the usual ways down after it."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

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

Warmup = Literal["linear", "constant", "exponential"]
Decay = Literal[
    "constant",
    "linear",
    "polynomial",
    "cosine",
    "sqrt",
    "exponential",
    "inverse_time",
    "step",
    "plateau",
]
_SUDDEN = ("constant", "step", "plateau")
"""Ways down that don't fill the time they have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupDecaySchedule:
    """A warm-up and a decay of every parameter group over a whole run.

    The attributes are the arguments of :func:`warmup_decay_schedule`, which checks them; those
    that may differ between parameter groups are tuples over the groups.

    Attributes:
        reductions: Numbers of steps made when a plateau was met, each of which multiplies the rate
            by ``factor``.

    Example:
        >>> schedule = warmup_decay_schedule(110, max_lr=0.1, warmup_steps=10)
        >>> round(schedule.at(60)[0][0], 6)
        0.05
    """

    total_steps: int
    max_lr: tuple[float, ...]
    warmup: Warmup
    warmup_steps: int
    warmup_factor: float
    decay: Decay
    decay_fraction: float
    final_factor: float
    power: float
    factor: float
    milestones: tuple[float, ...]
    cycles: int
    cycle_mult: float
    start_momentum: tuple[float | None, ...]
    end_momentum: tuple[float | None, ...]
    reductions: tuple[int, ...] = ()

    @property
    def cycle_momentum(self) -> tuple[bool, ...]:
        """Whether momentum is set too, of each group."""
        return tuple(momentum is not None for momentum in self.start_momentum)

    @property
    def cycle_ends(self) -> tuple[int, ...]:
        """Numbers of steps made when the rate is at the low end before a restart, and at the end.

        Example:
            >>> warmup_decay_schedule(100, max_lr=1.0, warmup_steps=0, cycles=4).cycle_ends
            (25, 50, 75, 100)
        """
        ends = [self._begin + span * (self.total_steps - self._begin) for span in self._ends]
        return tuple(math.ceil(end - 1e-9) for end in ends)

    def at(self, step: float) -> GroupValues:
        """Return (learning rate, momentum) of each group; momentum is None where it is left alone.

        A step past the end keeps the last value.

        Raises:
            ValueError: ``step`` is negative.

        Example:
            >>> schedule = warmup_decay_schedule(100, max_lr=1.0, warmup_steps=4, decay="linear")
            >>> [round(schedule.at(step)[0][0], 4) for step in (0, 2, 4, 52, 100)]
            [0.01, 0.505, 1.0, 0.5, 0.0]
        """
        not_before(step)
        scale = self._warmup(step) if step < self.warmup_steps else self._decay(step)
        done = min(step / self.total_steps, 1.0)
        groups = zip(self.max_lr, self.start_momentum, self.end_momentum, strict=True)
        return tuple(
            (
                peak * scale,
                None if first is None or last is None else first + (last - first) * done,
            )
            for peak, first, last in groups
        )

    def curve(self, *, max_points: int = 1000) -> Curve:
        """Return evenly spread steps with the values of each group, for a picture or a file.

        Args:
            max_points: The most steps to return; the first and the last step are among them.

        Returns:
            ``"step"``: the steps; ``"lr"`` and ``"momentum"``: a list over steps for each group,
            empty for momentum that is left alone.
        """
        return curve(self, max_points=max_points)

    def to_json(self) -> str:
        """Return the settings, and the curve at up to 1000 steps, as a JSON object."""
        return to_json(self)

    def reduced(self, step: int) -> WarmupDecaySchedule:
        """Return the schedule with one more reduction, from ``step`` on.

        Example:
            >>> flat = warmup_decay_schedule(100, max_lr=1.0, warmup_steps=0, decay="plateau")
            >>> [flat.reduced(40).at(step)[0][0] for step in (39, 40)]
            [1.0, 0.1]
        """
        return dataclasses.replace(self, reductions=(*self.reductions, step))

    @property
    def _begin(self) -> float:
        """The step at which the way down begins."""
        late = self.total_steps * (1 - self.decay_fraction)
        return max(float(self.warmup_steps), late)

    @property
    def _ends(self) -> tuple[float, ...]:
        """Where cycles end, as fractions of the way down."""
        lengths = [self.cycle_mult**k for k in range(self.cycles)]
        return tuple(sum(lengths[: k + 1]) / sum(lengths) for k in range(self.cycles))

    def _warmup(self, step: float) -> float:
        done = step / self.warmup_steps
        if self.warmup == "linear":
            return self.warmup_factor + (1 - self.warmup_factor) * done
        if self.warmup == "exponential":
            return float(self.warmup_factor ** (1 - done))
        return self.warmup_factor

    def _decay(self, step: float) -> float:
        low = self.final_factor
        if self.decay == "constant":
            return 1.0
        if self.decay == "step":
            passed = sum(step >= round(m * self.total_steps) for m in self.milestones)
            return float(self.factor**passed)
        if self.decay == "plateau":
            passed = sum(step >= reduction for reduction in self.reductions)
            return max(float(self.factor**passed), low)
        done = self._done(step)
        if self.decay == "exponential":
            return float(low**done)
        if self.decay == "inverse_time":
            return 1 / (1 + (1 / low - 1) * done)
        return low + (1 - low) * self._left(done)

    def _left(self, done: float) -> float:
        """Return the share of the way down that is left."""
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        if self.decay == "sqrt":
            return 1 - math.sqrt(done)
        return float((1 - done) ** (self.power if self.decay == "polynomial" else 1.0))

    def _done(self, step: float) -> float:
        """Return the share of the way down, or of the present cycle of it, that is over."""
        length = self.total_steps - self._begin
        if step >= self.total_steps or length <= 0:
            return 1.0
        done = max(step - self._begin, 0.0) / length
        ends = self._ends
        # a step that rounding puts before the restart belongs after it
        cycle = min(bisect.bisect_right(ends, done + 1e-12), self.cycles - 1)
        start = ends[cycle - 1] if cycle else 0.0
        return min(max(done - start, 0.0) / (ends[cycle] - start), 1.0)


def warmup_decay_schedule(
    total_steps: int,
    *,
    max_lr: PerGroup,
    warmup: Warmup = "linear",
    warmup_steps: int = 0,
    warmup_factor: float = 0.01,
    decay: Decay = "cosine",
    decay_fraction: float = 1.0,
    final_factor: float | None = None,
    power: float = 2.0,
    factor: float = 0.1,
    milestones: Sequence[float] = (0.5, 0.75),
    cycles: int = 1,
    cycle_mult: float = 1.0,
    start_momentum: float | None = None,
    end_momentum: float | None = None,
    set_momentum: bool | Sequence[bool] = True,
) -> WarmupDecaySchedule:
    """Return a warm-up and a decay of all parameter groups, without any Trainer.

    Over the first ``warmup_steps`` steps the rate goes to ``max_lr`` from ``warmup_factor`` (``w``)
    times it: with ``t`` the fraction of the warm-up that is over, the scale is ``w + (1 - w) t``
    (``"linear"``), ``w ** (1 - t)`` (``"exponential"``) or ``w`` until the end (``"constant"``).

    Then it goes to ``final_factor`` (``f``) times it. With ``p`` the fraction of the way that is
    over, the scale is

    - ``"linear"``: ``f + (1 - f) (1 - p)``
    - ``"polynomial"``: ``f + (1 - f) (1 - p) ** power``
    - ``"cosine"``: ``f + (1 - f) (1 + cos(pi p)) / 2`` (Loshchilov and Hutter 2017), in ``cycles``
      that each start at the peak and are ``cycle_mult`` times as long as the one before
    - ``"sqrt"``: ``f + (1 - f) (1 - sqrt(p))`` (Hägele et al. 2024)
    - ``"exponential"``: ``f ** p``
    - ``"inverse_time"``: ``1 / (1 + k p)`` with ``k = 1 / f - 1``, the 1/t decay
    - ``"step"``: ``factor`` to the number of ``milestones`` that are passed
    - ``"plateau"``: ``factor`` to the number of reductions, at least ``f``
    - ``"constant"``: 1

    With ``decay_fraction`` below 1 the peak is held until that last fraction of the run:
    warmup-stable-decay. Where ``torch.optim.lr_scheduler`` has the same shape, the two agree on
    every step.

    Args:
        total_steps: Length of the run in optimizer steps.
        max_lr: The rate after the warm-up: one number, or one for each parameter group.
        warmup: The shape of the way up.
        warmup_steps: Its length in optimizer steps; 0 for none.
        warmup_factor: The first rate divided by ``max_lr``.
        decay: The shape of the way down.
        decay_fraction: The last fraction of the run, in which the way down lies.
        final_factor: The last rate divided by ``max_lr``. None takes 0, or 0.01 for
            ``"exponential"`` and ``"inverse_time"``, which never reach 0.
        power: Of ``"polynomial"``.
        factor: By what ``"step"`` and ``"plateau"`` multiply the rate.
        milestones: Of ``"step"``, as fractions of the run.
        cycles: Cycles of the way down; each but the last is followed by a restart at the peak.
        cycle_mult: Length of each cycle divided by that of the one before.
        start_momentum: Momentum at the start, which goes linearly to ``end_momentum`` over the run;
            None leaves momentum alone.
        end_momentum: Momentum at the end.
        set_momentum: Whether a group's momentum is set at all: one answer, or one for each group.

    Raises:
        ValueError: An argument is out of its range, two contradict each other, or the lists differ
            in length.

    Example:
        >>> schedule = warmup_decay_schedule(
        ...     1000, max_lr=0.1, warmup_steps=50, decay="sqrt", decay_fraction=0.2
        ... )
        >>> [round(schedule.at(step)[0][0], 4) for step in (50, 800, 850, 1000)]
        [0.1, 0.1, 0.05, 0.0]
    """
    checks.steps("total_steps", total_steps)
    checks.rates("max_lr", max_lr)
    checks.choice("warmup", warmup, get_args(Warmup))
    checks.at_least("warmup_steps", warmup_steps, 0)
    _share("warmup_factor", warmup_factor, least_in=warmup != "exponential")
    checks.choice("decay", decay, get_args(Decay))
    _check_decay(decay, decay_fraction, cycles, cycle_mult)
    never_zero = decay in ("exponential", "inverse_time")
    final = (0.01 if never_zero else 0.0) if final_factor is None else final_factor
    _share("final_factor", final, least_in=not never_zero)
    checks.positive("power", power)
    _share("factor", factor, least_in=False)
    checks.sequence("milestones", milestones)
    if not all(checks.is_number(one) and 0 <= one <= 1 for one in milestones):
        raise ValueError(f"milestones={milestones} must lie between 0 and 1: fractions of the run")
    if (start_momentum is None) != (end_momentum is None):
        raise ValueError(
            f"start_momentum={start_momentum} and end_momentum={end_momentum}: give both or none"
        )
    if start_momentum is not None and end_momentum is not None:
        checks.momenta("start_momentum", start_momentum)
        checks.momenta("end_momentum", end_momentum)
    groups = checks.groups(max_lr=max_lr, set_momentum=set_momentum)
    wanted = spread(set_momentum, groups)
    return WarmupDecaySchedule(
        total_steps=total_steps,
        max_lr=spread(max_lr, groups),
        warmup=warmup,
        warmup_steps=warmup_steps,
        warmup_factor=warmup_factor,
        decay=decay,
        decay_fraction=decay_fraction,
        final_factor=final,
        power=power,
        factor=factor,
        milestones=tuple(sorted(milestones)),
        cycles=cycles,
        cycle_mult=cycle_mult,
        start_momentum=tuple(start_momentum if want else None for want in wanted),
        end_momentum=tuple(end_momentum if want else None for want in wanted),
    )


def _check_decay(decay: Decay, decay_fraction: float, cycles: int, cycle_mult: float) -> None:
    if not checks.is_number(decay_fraction) or not 0 < decay_fraction <= 1:
        raise ValueError(f"decay_fraction={decay_fraction} must be above 0 and at most 1")
    checks.at_least("cycles", cycles, 1)
    checks.positive("cycle_mult", cycle_mult)
    if decay in _SUDDEN and (cycles > 1 or decay_fraction < 1):
        raise ValueError(
            f"decay={decay!r} has no way down that could be repeated or begin late: leave cycles"
            " and decay_fraction at 1, or take decay='cosine'"
        )


def _share(name: str, value: float, *, least_in: bool) -> None:
    fits = checks.is_number(value) and (0 <= value <= 1 if least_in else 0 < value <= 1)
    if not fits:
        least = "at least 0" if least_in else "above 0"
        raise ValueError(f"{name}={value} must be {least} and at most 1: it is a share of max_lr")
