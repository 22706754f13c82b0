"""The one-cycle policy: the learning rate up and down once, momentum the other way round."""

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

AnnealStrategy = Literal["cos", "linear"]


def one_cycle(
    step: float,
    total_steps: int,
    *,
    max_lr: float,
    pct_start: float = 0.3,
    anneal_strategy: AnnealStrategy = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
) -> tuple[float, float]:
    """Return the learning rate and the momentum of one step of a one-cycle schedule.

    The rate goes from ``max_lr / div_factor`` up to ``max_lr``, then down to
    ``max_lr / div_factor / final_div_factor``; with ``three_phase`` it first comes back to where it
    started, in as many steps as it went up. Momentum mirrors it between ``max_momentum`` and
    ``base_momentum``. Between two ends ``a`` and ``b`` of a phase, at the fraction ``p``, the value
    is ``b + (a - b) / 2 * (cos(pi * p) + 1)``, or ``(b - a) * p + a`` when linear.

    The policy is Smith's (2018, "A disciplined approach to neural network hyper-parameters"). The
    ends of the phases are those of ``torch.optim.lr_scheduler.OneCycleLR``, so the two agree on
    every step of the cycle. Unlike it, a step past the end keeps the last value, and a warm-up of
    exactly one step (``pct_start * total_steps == 1``) is that step at the peak.

    Args:
        step: Optimizer steps made so far; 0 for the first. May be fractional.
        total_steps: Length of the cycle in optimizer steps.
        max_lr: The learning rate at the peak.
        pct_start: Fraction of the steps in which the rate rises.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        div_factor: The peak divided by the first rate.
        final_div_factor: The first rate divided by the last.
        three_phase: Come back to the first rate before the last descent.
        base_momentum: Momentum at the peak of the rate.
        max_momentum: Momentum at the start and at the end.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> [round(value, 3) for value in one_cycle(0, 100, max_lr=1.0)]
        [0.04, 0.95]
        >>> [round(value, 3) for value in one_cycle(29, 100, max_lr=1.0)]
        [1.0, 0.85]
        >>> round(one_cycle(10**9, 100, max_lr=1.0)[0], 9)
        4e-06
    """
    schedule = one_cycle_schedule(
        total_steps,
        max_lr=max_lr,
        pct_start=pct_start,
        anneal_strategy=anneal_strategy,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        three_phase=three_phase,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )
    [(lr, momentum)] = schedule.at(step)
    assert momentum is not None
    return lr, momentum


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneCycleSchedule:
    """The learning rate and momentum of every parameter group over a whole run.

    It holds the settings and computes values when asked, so it is small however long the run.
    The attributes are the arguments of :func:`one_cycle_schedule`, which checks them; those that
    may differ between parameter groups are tuples over the groups.

    Example:
        >>> schedule = one_cycle_schedule(10, max_lr=[0.1, 0.01])
        >>> schedule.at(2)
        ((0.1, 0.85), (0.01, 0.85))
    """

    total_steps: int
    max_lr: tuple[float, ...]
    pct_start: float
    anneal_strategy: AnnealStrategy
    div_factor: float
    final_div_factor: float
    three_phase: bool
    cycle_momentum: tuple[bool, ...]
    base_momentum: tuple[float, ...]
    max_momentum: tuple[float, ...]

    @property
    def cycle_ends(self) -> tuple[int, ...]:
        """The number of steps made when the cycle has ended, as the only one.

        Example:
            >>> one_cycle_schedule(10, max_lr=1.0).cycle_ends
            (10,)
        """
        return (self.total_steps,)

    def at(self, step: float) -> GroupValues:
        """Return (learning rate, momentum) of each group; momentum is None where it is not cycled.

        Raises:
            ValueError: ``step`` is negative.

        Example:
            >>> one_cycle_schedule(10, max_lr=1.0, cycle_momentum=False).at(2)
            ((1.0, None),)
        """
        not_before(step)
        start, end, fraction = self._phase(step)
        values = []
        for peak, cycled, low, high in zip(
            self.max_lr, self.cycle_momentum, self.base_momentum, self.max_momentum, strict=True
        ):
            first = peak / self.div_factor
            rates = {"first": first, "peak": peak, "last": first / self.final_div_factor}
            momenta = {"first": high, "peak": low, "last": high}
            lr = self._anneal(rates[start], rates[end], fraction)
            momentum = self._anneal(momenta[start], momenta[end], fraction) if cycled else None
            values.append((lr, momentum))
        return tuple(values)

    def curve(self, *, max_points: int = 1000) -> Curve:
        """Return evenly spread steps with the values of each group, for a picture or a file.

        Args:
            max_points: The most steps to return; the first and the last step are among them.

        Returns:
            ``"step"``: the steps; ``"lr"`` and ``"momentum"``: a list over steps for each group,
            empty for momentum that is not cycled.

        Example:
            >>> curve = one_cycle_schedule(5, max_lr=1.0, pct_start=0.5).curve(max_points=2)
            >>> curve["step"]
            [0, 4]
        """
        return curve(self, max_points=max_points)

    def to_json(self) -> str:
        """Return the settings, and the curve at up to 1000 steps, as a JSON object.

        Example:
            >>> import json
            >>> json.loads(one_cycle_schedule(10, max_lr=0.1).to_json())["max_lr"]
            [0.1]
        """
        return to_json(self)

    def _phase(self, step: float) -> tuple[str, str, float]:
        """Return where the phase of this step starts and ends, and how far the step is in it."""
        last = self.total_steps - 1
        step = min(step, last)
        phases = [("first", "peak", self.pct_start * self.total_steps - 1)]
        if self.three_phase:
            phases.append(("peak", "first", 2 * self.pct_start * self.total_steps - 2))
        phases.append((phases[-1][1], "last", last))
        current = next((i for i, (_, _, finish) in enumerate(phases) if step <= finish), -1)
        start, end, finish = phases[current]
        begin = phases[current - 1][2] if current > 0 else 0.0
        # a phase without length is at its end
        return start, end, (step - begin) / (finish - begin) if finish != begin else 1.0

    def _anneal(self, start: float, end: float, fraction: float) -> float:
        if self.anneal_strategy == "linear":
            return (end - start) * fraction + start
        return end + (start - end) / 2 * (math.cos(math.pi * fraction) + 1)


def one_cycle_schedule(
    total_steps: int,
    *,
    max_lr: PerGroup,
    pct_start: float = 0.3,
    anneal_strategy: AnnealStrategy = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
    cycle_momentum: bool | Sequence[bool] = True,
    base_momentum: PerGroup = 0.85,
    max_momentum: PerGroup = 0.95,
) -> OneCycleSchedule:
    """Return the one-cycle schedule of all parameter groups, without any Trainer.

    See :func:`one_cycle` for the formula and its source.

    Args:
        total_steps: Length of the cycle in optimizer steps.
        max_lr: The learning rate at the peak: one number, or one for each parameter group.
        pct_start: Fraction of the steps in which the rate rises.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        div_factor: The peak divided by the first rate.
        final_div_factor: The first rate divided by the last.
        three_phase: Come back to the first rate before the last descent.
        cycle_momentum: Whether momentum is cycled too: one answer, or one for each group.
        base_momentum: Momentum at the peak of the rate: one number, or one for each group.
        max_momentum: Momentum at the start and the end: one number, or one for each group.

    Raises:
        ValueError: An argument is out of its range, or the lists differ in length.

    Example:
        >>> one_cycle_schedule(100, max_lr=[0.1, 0.2]).at(29)
        ((0.1, 0.85), (0.2, 0.85))
    """
    checks.steps("total_steps", total_steps)
    checks.rates("max_lr", max_lr)
    checks.fraction("pct_start", pct_start)
    checks.choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
    checks.positive("div_factor", div_factor)
    checks.positive("final_div_factor", final_div_factor)
    checks.momenta("base_momentum", base_momentum)
    checks.momenta("max_momentum", max_momentum)
    groups = checks.groups(
        max_lr=max_lr,
        cycle_momentum=cycle_momentum,
        base_momentum=base_momentum,
        max_momentum=max_momentum,
    )
    return OneCycleSchedule(
        total_steps=total_steps,
        max_lr=spread(max_lr, groups),
        pct_start=pct_start,
        anneal_strategy=anneal_strategy,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        three_phase=three_phase,
        cycle_momentum=spread(cycle_momentum, groups),
        base_momentum=spread(base_momentum, groups),
        max_momentum=spread(max_momentum, groups),
    )
