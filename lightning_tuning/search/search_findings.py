"""What a search has to tell besides its winner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.metric_mode import MetricMode, sign_of
from lightning_tuning.functional.search.finalists import Ranking
from lightning_tuning.functional.search.narrow import borders
from lightning_tuning.functional.search.search_result import StageResult
from lightning_tuning.search.records import ranked

_CHECK = "search"
_MANY = 0.5


def search_findings(
    stages: Sequence[StageResult],
    *,
    ranking: Ranking,
    scores: Sequence[float],
    repeats: int,
    mode: MetricMode,
    monitor: str,
) -> tuple[Finding, ...]:
    """Return findings about borders, seeds, and trials that came to nothing.

    Args:
        stages: The stages, the repetitions of the last candidates as the last one.
        ranking: The last candidates over seeds.
        scores: The winner's metric with each seed.
        repeats: So many seeds each.
        mode: Which values are better.
        monitor: The metric.
    """
    return (
        _winner(ranking, repeats, monitor),
        *_lost_on_the_way(stages[:-1], scores, mode, monitor),
        *_borders(stages[:-1], mode),
        *_losses(stages),
    )


def _winner(ranking: Ranking, repeats: int, monitor: str) -> Finding:
    first = ranking.order[0]
    told = f"The winner has {monitor} {ranking.means[first]:.4g}"
    if repeats > 1:
        told += f" (deviation {ranking.deviations[first]:.2g} over {repeats} seeds)"
    numbers: dict[str, Scalar] = {"value": ranking.means[first], "tied": len(ranking.tied)}
    others = len(ranking.order) - 1
    if not others:
        return _finding("pass", "search_winner", f"{told}; it was the only candidate.", numbers)
    if not ranking.tied:
        text = f"{told}, and is better than {others} other candidates beyond the noise of seeds."
        return _finding("pass", "search_winner", text, numbers)
    noise = "cannot be told from it by so few seeds" if repeats > 1 else "were not repeated either"
    return _finding(
        "warn",
        "search_tie",
        f"{told}; {len(ranking.tied)} of {len(ranking.order)} last candidates {noise}.",
        numbers,
        "Take the simplest or cheapest of them, or give the last ones more seeds (repeats).",
    )


def _lost_on_the_way(
    stages: Sequence[StageResult],
    scores: Sequence[float],
    mode: MetricMode,
    monitor: str,
) -> list[Finding]:
    """Tell of an earlier trial, of no longer training, that was better than the winner ever is."""
    sign = sign_of(mode)
    reached = min(sign * score for score in scores)
    tops = [ranked(stage.trials, mode)[0] for stage in stages]
    best = min(tops, key=lambda trial: sign * (trial.value or 0.0))
    if best.value is None or sign * best.value >= reached - 1e-9 * abs(reached):
        return []
    stage = next(i for i, top in enumerate(tops, 1) if top is best)
    return [
        _finding(
            "warn",
            "search_passed_better",
            f"Trial {best.number} of stage {stage} had {monitor} {best.value:.4g}, and the winner"
            f" never has with {len(scores)} seeds (at best {sign * reached:.4g}).",
            {"value": best.value, "stage": stage, "trial": best.number},
            "It may have been luck of its seed; else keep more of a stage (keep), or give the"
            " stages more trials.",
        )
    ]


def _borders(stages: Sequence[StageResult], mode: MetricMode) -> list[Finding]:
    found = []
    for number, stage in enumerate(stages, 1):
        last = number == len(stages)
        tried = [trial.params for trial in ranked(stage.trials, mode)]
        for border in borders(stage.space, tried[0], tried):
            then = "and no stage came after it" if last else "the next stage has gone beyond it"
            found.append(
                _finding(
                    "warn" if last else "pass",
                    "best_at_border",
                    f"The best {border.name} of stage {number}, {border.value:.3g}, lies at the"
                    f" {border.side} end of its range ({border.end:.3g}); {then}.",
                    {"value": border.value, "end": border.end, "stage": number},
                    "Search again with that side wider." if last else "",
                    where=border.name,
                )
            )
    return found


def _losses(stages: Sequence[StageResult]) -> list[Finding]:
    trials = [trial for stage in stages for trial in stage.trials]
    counts = {
        kind: sum(t.state == kind for t in trials) for kind in ("diverged", "crashed", "lost")
    }
    if not any(counts.values()):
        return []
    bad = sum(counts.values()) / len(trials)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    errors = [trial.error for trial in trials if trial.error]
    first = f"; the first that raised said {errors[0]}" if errors else ""
    return [
        _finding(
            "warn" if bad > _MANY or counts["crashed"] else "pass",
            "search_trials_failed",
            f"Of {len(trials)} trials {told}{first}.",
            {**counts, "trials": len(trials)},
            "Mend what raised, or take its values out of the space." if errors else "",
        )
    ]


def _finding(
    verdict: Literal["pass", "warn"],
    code: str,
    message: str,
    evidence: dict[str, Scalar],
    hint: str = "",
    *,
    where: str = "",
) -> Finding:
    return Finding(
        check=_CHECK,
        code=code,
        verdict=verdict,
        message=message,
        evidence=evidence,
        hint=hint,
        where=where,
    )
