"""What an ensemble gains over its members."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Literal

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.metric_mode import MetricMode, sign_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECK = "checkpoint_ensemble"
_FAR_WORSE = 0.25
"""A member that is so much worse than the best, as a share of its metric, is of another fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleMember:
    """One set of weights that was kept.

    Attributes:
        path: Its file.
        step: Optimizer steps made by then.
        epoch: The epoch it is from.
        score: The metric of the validation that it was kept for, or None.
    """

    path: str
    step: int
    epoch: int
    score: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleResult:
    """What :class:`~lightning_tuning.CheckpointEnsemble` found, on the validation data.

    Attributes:
        metric: The name of the metric.
        mode: Whether it improves downwards (``"min"``) or upwards (``"max"``).
        members: The members, best first.
        alone: The metric of each.
        together: The metric of the ensemble of the first one, of the first two, and so on.
        disagreement: How much members differ; see
            :func:`~lightning_tuning.functional.ensembles.combine.disagreement`. None where their
            outputs are not one tensor.
    """

    metric: str
    mode: MetricMode
    members: tuple[EnsembleMember, ...]
    alone: tuple[float, ...]
    together: tuple[float, ...]
    disagreement: float | None = None

    @property
    def best_size(self) -> int:
        """The size of the best ensemble; 1 where the best member is better than any.

        Example:
            >>> member = EnsembleMember(path="a.ckpt", step=1, epoch=0)
            >>> EnsembleResult(
            ...     metric="val_loss", mode="min", members=(member,) * 3, alone=(0.5, 0.6, 0.6),
            ...     together=(0.5, 0.45, 0.46),
            ... ).best_size
            2
        """
        sign = sign_of(self.mode)
        return 1 + min(range(len(self.together)), key=lambda i: sign * self.together[i])

    @property
    def gain(self) -> float:
        """How much better the ensemble of all is than the best member; negative if it is worse."""
        sign = sign_of(self.mode)
        return sign * (self.alone[0] - self.together[-1])

    def to_json(self) -> str:
        """Return everything as a JSON object."""
        return json.dumps({**dataclasses.asdict(self), "gain": self.gain})

    def plot(self) -> Figure:
        """Draw the metric over the size of the ensemble; see ``plots.plot_ensemble``."""
        from lightning_tuning.plots import plot_ensemble

        return plot_ensemble(self)


def ensemble_findings(result: EnsembleResult) -> tuple[Finding, ...]:
    """Say what an ensemble gains.

    It is judged on the data that its members were chosen on, which flatters the best member more
    than the ensemble.

    Example:
        >>> member = EnsembleMember(path="a.ckpt", step=1, epoch=0)
        >>> result = EnsembleResult(
        ...     metric="val_loss", mode="min", members=(member,) * 2, alone=(0.5, 0.6),
        ...     together=(0.5, 0.4),
        ... )
        >>> ensemble_findings(result)[0].message
        'An ensemble of 2 has val_loss 0.4, its best member 0.5.'
    """
    size, best = len(result.members), result.alone[0]
    told = (
        f"An ensemble of {size} has {result.metric} {result.together[-1]:.4g}, its best member"
        f" {best:.4g}"
    )
    if result.disagreement is not None:
        told += f"; members disagree by {result.disagreement:.2g}"
    numbers: dict[str, Scalar] = {
        "size": size,
        "best_size": result.best_size,
        "together": result.together[-1],
        "best_alone": best,
        "disagreement": result.disagreement,
    }
    if result.gain > 0 or not math.isfinite(result.gain):
        return (_finding("pass", "ensemble_judged", f"{told}.", numbers),)
    hint = (
        "Members that are less alike gain more: take them at the ends of cycles (CyclicalLR,"
        " WarmupDecay with cycles), or from fits with other seeds."
    )
    if abs(result.alone[-1] - best) > _FAR_WORSE * abs(best):
        hint = (
            f"Its worst member alone has {result.alone[-1]:.4g}, far from the best: the fit was"
            " still improving. Train longer, or keep fewer members (k)."
        )
    return (_finding("warn", "ensemble_no_gain", f"{told}: it gains nothing.", numbers, hint),)


def not_judged(reason: str) -> Finding:
    """Return the finding that an ensemble could not be judged.

    Example:
        >>> not_judged("there is one member").message
        'The ensemble was not judged: there is one member.'
    """
    return _finding("skip", "ensemble_judged", f"The ensemble was not judged: {reason}.", {})


def _finding(
    verdict: Literal["pass", "warn", "skip"],
    code: str,
    message: str,
    evidence: dict[str, Scalar],
    hint: str = "",
) -> Finding:
    return Finding(
        check=CHECK, code=code, verdict=verdict, message=message, evidence=evidence, hint=hint
    )
