"""Rules that compare validation with training, and the validation loss with other metrics."""

from __future__ import annotations

import numpy as np

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.curves.curve_answer import answer
from lightning_tuning.functional.curves.curve_noise import (
    Array,
    mean_interval,
    noise,
    slope_interval,
)
from lightning_tuning.functional.curves.curve_reading import Reading
from lightning_tuning.functional.curves.loss_curves import Curve

_WORSE, _WORSE_UNKNOWN = 0.2, 0.5
"""Such a share of what was gained must be lost again; more where the loss has no known floor."""
_MILD = 0.2
"""Such a share of the best loss is much where training has nothing left, and no metric gains."""


def overfitting(r: Reading) -> Finding:
    """Judge a validation loss that rises from its minimum while the training loss falls."""
    val = r.val
    if len(val) < 5:
        return answer("overfitting", "skip", f"{len(val)} validations are too few to judge.")
    best = int(np.argmin(val))
    scale = max(_learnt_from(r) - float(val[best]), 0.1 * abs(_learnt_from(r)))
    rise = r.val_end - float(val[best])
    numbers: dict[str, Scalar] = {
        "best": float(val[best]),
        "end": r.val_end,
        "rise": rise / scale,
        "train": r.end,
    }
    after = val[best:]
    # of two or three validations after the best nobody can tell a rise from noise
    sure = _has_risen(after)
    behind = np.asarray(r.curves.train.steps) <= r.curves.val.steps[best] if r.curves.val else None
    at_best = float(np.mean(r.losses[behind][-20:])) if behind is not None else r.end
    falls = r.end < at_best - 0.1 * abs(at_best) or r.end < 0.1 * abs(r.reference)
    falls = falls and r.end < r.reference - 0.2 * abs(r.reference)
    when = _when(r, r.curves.val, best)
    much = _WORSE if r.progress is not None else _WORSE_UNKNOWN
    if r.val_never_learns and len(val) >= 4 and r.progress is not None and r.progress > 0.2:
        return answer(
            "overfitting",
            "warn",
            f"The training loss falls to {r.end:.4g}, but the validation loss never gets below"
            f" {val[best]:.4g}, and a predictor that knows nothing has {r.curves.chance:.4g}: what"
            " is learnt is learnt by heart.",
            "See whether inputs and targets belong together; take more data or regularization.",
            numbers=numbers,
        )
    mild = rise > _MILD * float(val[best]) and rise > 0.03 * r.reference and r.end < 0.1 * r.val_end
    useless = mild and r.progress is not None and len(after) >= 6 and not _metric_gains(r, best)
    if sure and falls and (useless or (rise > much * scale and not _improves(r))):
        return answer(
            "overfitting",
            "warn",
            f"The validation loss rises from {val[best]:.4g} ({when}) to {r.val_end:.4g} while the"
            f" training loss falls to {r.end:.4g}.",
            "Stop at the best validation, or take more data, augmentation or regularization.",
            step=0 if r.curves.val is None else r.curves.val.steps[best],
            numbers=numbers,
        )
    return answer(
        "overfitting",
        "pass",
        f"The validation loss ends at {r.val_end:.4g}, its best is {val[best]:.4g} ({when}).",
        "Keep the checkpoint of the best validation." if sure and rise > 0.05 * scale else "",
        numbers=numbers,
    )


def _has_risen(after: Array) -> bool:
    """Whether validation has risen beyond its noise since its best.

    Either along a line, or first and then at rest where training has nothing left to gain.
    """
    if len(after) == 4:
        return bool((np.diff(after) > 0).all())
    if len(after) > 4 and slope_interval(after)[0] > 0:
        return True
    half = after[len(after) // 2 :]
    return len(after) >= 12 and mean_interval(half)[0] > float(after[0]) + 4 * noise(after)


def train_val_mismatch(r: Reading) -> Finding:
    """Judge whether validation lies apart from training already when no example came twice."""
    c, val = r.curves, r.val
    if why := _not_comparable(r):
        return answer("train_val_mismatch", "skip", why)
    steps = np.asarray(c.train.steps)
    seen = r.losses[(steps <= c.epoch_ends[0])]
    new = float(seen[-max(3, len(seen) // 5) :].mean())
    learnt = r.reference - new
    numbers: dict[str, Scalar] = {
        "first": float(val[0]),
        "train": new,
        "best": float(val.min()),
        "end": r.end,
    }
    enough = len(seen) * c.width >= 15 and learnt > 0.15 * r.reference
    best = r.reference - float(val.min())
    apart = r.reference - float(val[0]) < 0.3 * learnt and best < 0.4 * (r.reference - r.end)
    far = learnt > 0.5 * r.reference and _far_apart(r)
    if enough and (far or (apart and not r.metric_is_good)):
        return answer(
            "train_val_mismatch",
            "warn",
            f"At the end of the first epoch, when no example had come twice, the training loss was"
            f" {new:.4g} and the validation loss {val[0]:.4g}; it never got below"
            f" {val.min():.4g}.",
            "Compare the preparation and the source of training and validation data.",
            numbers=numbers,
        )
    better = r.val_end < r.end - max(0.1 * abs(r.end), 3 * r.noise / len(r.tail) ** 0.5)
    if better:
        why = c.regularized or "augmentation or terms of the training loss"
        return answer(
            "train_val_mismatch",
            "pass",
            f"The validation loss ({r.val_end:.4g}) is lower than the training loss ({r.end:.4g}).",
            f"Usual with {why}; else see whether the validation data are easier, or among those"
            " trained on.",
            numbers=numbers,
        )
    if not enough:
        return answer(
            "train_val_mismatch",
            "skip",
            "Too little was learnt before examples came a second time.",
            numbers=numbers,
        )
    return answer(
        "train_val_mismatch",
        "pass",
        f"After the first epoch the training loss was {new:.4g}, the validation loss {val[0]:.4g}.",
        numbers=numbers,
    )


def metric_apart(r: Reading) -> Finding:
    """Advise on the choice of a checkpoint where the loss and a metric disagree; no fault."""
    val = r.curves.val
    told = [m for m in r.curves.metrics if m.higher_is_better is not None and len(m.values) >= 3]
    if val is None or len(val.values) < 3 or not told:
        return answer(
            "metric_apart_from_loss", "skip", "There is no validation loss beside a metric."
        )
    for metric in told:
        sign = -1 if metric.higher_is_better else 1
        costs = sign * np.asarray(metric.values)
        best, least = int(np.argmin(costs)), int(np.argmin(r.val))
        at = int(np.argmin(np.abs(np.asarray(metric.steps) - val.steps[least])))
        spread = float(np.median(np.abs(np.diff(costs)))) if len(costs) > 3 else 0.0
        if metric.steps[best] != val.steps[least] and costs[at] - costs[best] > 2 * spread > 0:
            later = metric.steps[best] > val.steps[least]
            rising = "while the validation loss rises, " if later else ""
            return answer(
                "metric_apart_from_loss",
                "pass",
                f"{val.name} is lowest {_when(r, val, least)}, but {metric.name} is best"
                f" {_when(r, metric, best)} ({metric.values[best]:.4g}, {metric.values[at]:.4g}"
                " there).",
                f"If {metric.name} counts, choose the checkpoint by it: {rising}it differs.",
                numbers={"loss_step": val.steps[least], "metric_step": metric.steps[best]},
            )
    return answer(
        "metric_apart_from_loss",
        "pass",
        f"{val.name} and {told[0].name} agree on when the fit was best, within noise.",
    )


def _not_comparable(r: Reading) -> str:
    """Return why the losses of the first epoch tell nothing; empty if they do."""
    c = r.curves
    if c.val is None or not c.alike or r.progress is None or c.chance is None:
        return "Training and validation loss are not known to be the same function."
    if not c.epoch_ends or len(r.val) < 2 or c.val.steps[0] > c.epoch_ends[0]:
        return "There was no validation of the first epoch."
    return "The program may have seen these examples before." if r.pretrained else ""


def _far_apart(r: Reading) -> bool:
    """Whether validation stays far above training, from the first epochs to the last one.

    Right after a first epoch a single validation may be off, with averages of batch normalization
    that have not settled, or while the examples get harder; these catch up.
    """
    val = r.curves.val
    if val is None or len(val.values) < 4:
        return False
    steps = np.asarray(r.curves.train.steps)
    gaps = [r.val_end - r.end]
    for step, value in zip(val.steps[:3], val.values[:3], strict=True):
        gaps.append(value - float(r.losses[steps <= step][-10:].mean()))
    return min(gaps[1:]) > 0.3 * r.reference and gaps[0] > 0.25 * r.reference


def _metric_gains(r: Reading, best: int) -> bool:
    """Whether a metric is better at the end than when the validation loss was at its best."""
    val = r.curves.val
    for metric in r.curves.metrics:
        if val is None or metric.higher_is_better is None or len(metric.values) < 5:
            continue
        sign = 1 if metric.higher_is_better else -1
        values = sign * np.asarray(metric.values)
        at = int(np.argmin(np.abs(np.asarray(metric.steps) - val.steps[best])))
        end = float(np.median(values[-max(1, len(values) // 5) :]))
        if end > values[max(0, at - 1) : at + 2].max() + 0.01 * abs(values[at]):
            return True
    return False


def _learnt_from(r: Reading) -> float:
    """Return the validation loss before any learning, as well as it is known."""
    if r.curves.alike or not r.curves.val:
        return r.reference
    return float(r.val[0])


def _improves(r: Reading) -> bool:
    """Whether a metric at the end is about as good as it ever was, and says something good."""
    for metric in r.curves.metrics:
        if not metric.higher_is_better or len(metric.values) < 5:
            continue
        values = np.asarray(metric.values)
        end = float(np.median(values[-max(1, len(values) // 5) :]))
        if metric.values[-1] >= 0.8 or (end >= values.max() - 0.01 and end > values[0] + 0.05):
            return bool(end >= 0.8)
    return False


def _when(r: Reading, curve: Curve | None, place: int) -> str:
    if curve is None:
        return ""
    step = curve.steps[place]
    if not r.curves.epoch_ends:
        return f"at step {step}"
    return f"at epoch {r.curves.epochs([step])[0]:.3g}"
