"""The rule ``auto``: the sweep says where to look, short runs at single rates say what works.

Runs start from the same weights and see the same batches, so that they can be compared step by
step; one that can no longer catch up with the best is abandoned. Only differences of losses are
used, always against a scale that the losses give themselves: adding a constant to the loss or
scaling it changes nothing. How the constants were found, and what each is worth, stands in
``docs/benchmarks.md``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from lightning_tuning.functional.lr_range_test import MIN_POINTS, Interval, LRTrial
from lightning_tuning.functional.lr_suggestion import Curve, running_mean

Stop = Callable[[Sequence[float]], bool]
Run = Callable[[float, int, Stop], list[float]]

RUN_STEPS = 80
"""Steps of a full run; those that fall behind are abandoned long before."""
HEAD = 10
"""So many first losses of the sweep show the level and the noise of the untrained module."""
MEMORY = 0.85
"""Of the running mean over the sweep."""
RISE = 3.0
"""The sweep is over where the loss has risen by so many times the fall, and the noise."""
SIGNAL = 4.0
"""A fall of less than so many times the noise says nothing about where to start."""
BELOW = 1.3
"""Without a fall, start so many decades below the rate at which the sweep was over."""
PLACES = 2
"""Quarter decades between candidates, until the winner is bracketed; then one."""
HOPE = 3.0
"""A run may hope for a gain of at least so many times the noise."""
SHORTEST = 0.4
"""The last run may be as short as this part of :data:`RUN_STEPS`."""
MIN_RUN_STEPS = int(SHORTEST * RUN_STEPS)
"""So many steps must be left for ``auto`` to begin."""
LEARNED = 0.5
"""Where every run gains less than this part of the noise, nothing was learned."""
WELL_BELOW = 30.0
"""A rate so many times smaller than the first to try has hardly moved the weights."""
NEAR = 0.1
"""Rates that gain so nearly as much as the winner are as good as it."""
BACK_OFF = 0.2
"""Decades below the best rate of the runs: training on likes it a little lower."""
_QUARTER = 0.25
_RESOLUTION = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoChoice:
    """What the runs led to.

    Attributes:
        rate: The learning rate; None where no run learned and nothing diverged either.
        interval: The rates that the runs could not tell from it.
        learned: Whether a run's loss fell beyond noise; else the rate is a guess.
        bounded: Whether higher rates than the sweep's last may be better.
        trials: The runs, by rate.
    """

    rate: float | None
    interval: Interval
    learned: bool
    bounded: bool = False
    trials: tuple[LRTrial, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepReading:
    """What ``auto`` reads off a sweep.

    Attributes:
        start: The rate to try first.
        end: The last rate before the loss had risen for good, or that of the sweep.
        risen: Whether it had.
        level: The loss of the untrained module, from the first :data:`HEAD` losses.
        untrained: The same from all losses well below ``start``, so with a smaller error.
        noise: Its standard deviation from batch to batch.
        fall: How far the loss fell, at least the noise.
    """

    start: float
    end: float
    risen: bool
    level: float
    untrained: float
    noise: float
    fall: float


def read_sweep(rates: Curve, losses: Curve) -> SweepReading | None:
    """Find where to start: the rate at which half of the sweep's fall has happened.

    A running mean is used, whose lag is welcome here: it moves the start towards the fast end.

    Args:
        rates: Rates of the sweep, ascending.
        losses: Its finite losses, lower is better.

    Returns:
        None where there are too few points.

    Example:
        >>> rates = np.logspace(-5, 0, 60)
        >>> reading = read_sweep(rates, np.where(rates < 1e-3, 2.0, 1.0))
        >>> 1e-3 < reading.start < 1e-2
        True
    """
    if len(losses) < MIN_POINTS:
        return None
    level = float(np.median(losses[:HEAD]))
    noise = max(float(np.std(losses[:HEAD])), _RESOLUTION * abs(level), 1e-30)
    smoothed = running_mean(losses, MEMORY)
    fall_so_far = np.maximum(level - np.minimum.accumulate(smoothed), noise)
    risen = np.flatnonzero(smoothed > level + RISE * (fall_so_far + noise))
    risen = risen[risen >= HEAD]
    end = int(risen[0]) + 1 if len(risen) else len(losses)
    lowest = int(np.argmin(smoothed[:end]))
    fall = float(level - smoothed[lowest])
    above = np.flatnonzero(smoothed[: lowest + 1] > level - 0.5 * fall)
    start = float(rates[above[-1] if len(above) else lowest])
    if fall < SIGNAL * noise:
        start = float(rates[end - 1]) * 10**-BELOW
    return SweepReading(
        start=start,
        end=float(rates[end - 1]),
        risen=bool(len(risen)),
        level=level,
        untrained=float(np.mean(losses[: max(HEAD, int(np.sum(rates < start / WELL_BELOW)))])),
        noise=noise,
        fall=max(fall, noise),
    )


def choose_rate(
    rates: Curve,
    losses: Curve,
    run: Run,
    *,
    max_steps: int,
    highest: float = math.inf,
    diverged: bool = False,
) -> AutoChoice | None:
    """Climb from the sweep's half-way rate to the one at which short runs learn fastest.

    Candidates lie half a decade apart, above and below the best so far, until it is bracketed, then
    a quarter. The score of a run is the mean of all its losses. The answer is the middle of the
    plateau around the winner, :data:`BACK_OFF` decades lower.

    Args:
        rates: Rates of the sweep, ascending.
        losses: Its finite losses, lower is better.
        run: Called with a rate, a number of steps, and a function that is given the losses so far
            and says whether to stop; trains from the initial weights, on the same batches each
            time, and returns the losses.
        max_steps: Steps for all runs.
        highest: No rate above it is tried.
        diverged: Whether the sweep ended because the loss did.

    Returns:
        None where the sweep is too short to begin, or no step may be spent.

    Example:
        >>> rates = np.logspace(-5, 1, 60)
        >>> def loss(rate, step):
        ...     return (1 - min(rate, 0.3)) ** step if rate < 2 else float("inf")
        >>> losses = np.array([loss(rate, 1) for rate in rates if rate < 2])
        >>> run = lambda rate, steps, stop: [loss(rate, step) for step in range(steps)]
        >>> choice = choose_rate(rates[: len(losses)], losses, run, max_steps=240)
        >>> 0.05 < choice.rate < 2
        True
    """
    reading = read_sweep(rates, losses)
    if reading is None:
        return None
    climb = _Climb(reading, run, (float(rates[0]), highest), max_steps)
    climb.go()
    return climb.choice(may_guess=reading.risen or diverged)


class _Climb:
    """The search over places on a grid of quarter decades around the start."""

    def __init__(self, reading: SweepReading, run: Run, ends: Interval, max_steps: int) -> None:
        self._reading = reading
        self._run = run
        self._ends = ends
        self._left = max_steps
        self._trials: dict[int, LRTrial] = {}
        self._best_run: Curve | None = None

    def go(self) -> None:
        """Measure candidates until the winner is bracketed or the steps are spent."""
        spacing = PLACES
        going = self._measure(0)
        while going:
            best = self._best()
            if self._all_failed(best):
                down = min(self._trials) - spacing * (1 if len(self._trials) == 1 else 2)
                going = self._within(down) and self._measure(down)
                continue
            around = self._neighbours(best, spacing)
            unknown = [p for p in around if p not in self._trials and self._within(p)]
            if unknown:
                going = self._measure(unknown[0])
            elif spacing == 1:
                return
            else:
                spacing = 1

    def choice(self, *, may_guess: bool) -> AutoChoice | None:
        """Return the middle of the plateau; a guess below the diverging rates without one."""
        if not self._trials:
            return None
        reading, best = self._reading, self._best()
        trials = tuple(self._trials[place] for place in sorted(self._trials))
        gain = reading.level - self._trials[best].score
        learned = reading.untrained - self._trials[best].score >= LEARNED * reading.noise
        if gain <= 0 or not learned or self._all_alike():
            guess = reading.end * 10**-BELOW
            return AutoChoice(
                rate=guess if may_guess and not self._all_alike() else None,
                interval=(guess * 10**-BELOW, reading.end),
                learned=False,
                trials=trials,
            )
        low, high = self._plateau(best, gain)
        rate = self._rate((low + high) / 2) * 10**-BACK_OFF
        return AutoChoice(
            rate=rate,
            interval=(
                min(self._rate(low) * 10**-BACK_OFF, rate * 10 ** (-_QUARTER / 2)),
                max(self._rate(high), rate * 10 ** (_QUARTER / 2)),
            ),
            learned=True,
            bounded=not self._within(best + 1) or not self._within(best + PLACES),
            trials=trials,
        )

    def _rate(self, place: float) -> float:
        return self._reading.start * 10 ** (_QUARTER * place)

    def _within(self, place: int) -> bool:
        lowest, highest = self._ends
        return lowest <= self._rate(place) <= highest

    def _best(self) -> int:
        return min(self._trials, key=lambda place: (self._trials[place].score, place))

    def _all_failed(self, best: int) -> bool:
        worse = self._reading.level + self._reading.noise
        return self._best_run is None and not self._trials[best].score <= worse

    def _all_alike(self) -> bool:
        """Whether the rate makes no difference at all: no weight moves, or none matters."""
        runs = [trial.losses for trial in self._trials.values()]
        shortest = min(len(losses) for losses in runs)
        stack = np.array([losses[:shortest] for losses in runs])
        spread = float(np.ptp(stack, axis=0).max(initial=0.0))
        return len(runs) > 1 and spread <= _RESOLUTION * abs(self._reading.level)

    def _neighbours(self, best: int, spacing: int) -> list[int]:
        up, down = best + spacing, best - spacing
        if spacing == PLACES:
            return [up, down]
        scores = {place: trial.score for place, trial in self._trials.items()}
        higher, lower = scores.get(best + PLACES, math.inf), scores.get(best - PLACES, math.inf)
        return [up, down] if higher < lower else [down, up]

    def _measure(self, place: int) -> bool:
        """Score one candidate; return False where too few steps are left."""
        steps = min(RUN_STEPS, self._left)
        if steps < MIN_RUN_STEPS:
            return False
        reference, hope = self._reference()

        def behind(losses: Sequence[float]) -> float:
            return float(np.sum(np.asarray(losses) - reference[: len(losses)]))

        def hopeless(losses: Sequence[float]) -> bool:
            # were it ahead by the whole gain from now on, it would still be behind at the end
            return not behind(losses) <= (RUN_STEPS - len(losses)) * hope

        losses = self._run(self._rate(place), steps, hopeless)
        self._left -= len(losses)
        score = math.inf
        if losses and np.isfinite(losses).all():
            # on the steps that both have seen
            score = float(reference.mean()) + behind(losses) / len(losses)
        self._trials[place] = LRTrial(rate=self._rate(place), losses=tuple(losses), score=score)
        if len(losses) == RUN_STEPS and self._best_run_is_worse_than(score):
            self._best_run = np.asarray(losses)
        return True

    def _reference(self) -> tuple[Curve, float]:
        """Return the run to beat and the gain per step that is thought possible."""
        reading = self._reading
        if self._best_run is None:
            return np.full(RUN_STEPS, reading.level), max(reading.fall, HOPE * reading.noise)
        gain = reading.level - float(self._best_run.mean())
        return self._best_run, max(gain, HOPE * reading.noise)

    def _best_run_is_worse_than(self, score: float) -> bool:
        return math.isfinite(score) and (
            self._best_run is None or score < float(self._best_run.mean())
        )

    def _plateau(self, best: int, gain: float) -> tuple[float, float]:
        """Return the places around the winner between which the gain is nearly as large."""
        loss = {
            place: min((trial.score - self._trials[best].score) / gain, 1.0)
            for place, trial in self._trials.items()
        }
        below = [place for place in sorted(loss, reverse=True) if place <= best]
        above = [place for place in sorted(loss) if place >= best]
        return (max(_edge(loss, below), best - PLACES), min(_edge(loss, above), best + PLACES))


def _edge(loss: dict[int, float], places: list[int]) -> float:
    """Return where, on the way from the winner, the interpolated loss passes :data:`NEAR`."""
    last = places[0]
    for place in places[1:]:
        if loss[place] > NEAR:
            return last + (NEAR - loss[last]) / (loss[place] - loss[last]) * (place - last)
        last = place
    return float(last)
