"""Schedulers and callbacks that wait for a metric to get worse, by its name."""

from __future__ import annotations

import dataclasses
import re

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring

_PART = re.compile(r"f1|r2|[a-z]+")
_FALLS = {
    *("loss", "error", "err", "mae", "mse", "rmse", "nll"),
    *("perplexity", "ppl", "wer", "cer", "fid"),
}
_RISES = {
    *("acc", "accuracy", "f1", "auc", "auroc", "precision", "recall"),
    *("iou", "dice", "r2", "map", "psnr", "ssim", "bleu"),
}
_TURNED = {
    *("neg", "negative", "negated", "minus", "inv", "inverse"),
    *("reduction", "improvement", "decrease", "drop", "gain"),
}
_OTHER = {"min": "max", "max": "min"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitored:
    """What a scheduler or callback waits for.

    Attributes:
        name: The class of it.
        monitor: The metric's name.
        mode: ``"min"`` or ``"max"``.
        stops: Whether it ends the fit.
    """

    name: str
    monitor: str
    mode: str
    stops: bool

    @property
    def is_wrong(self) -> bool:
        """Whether the metric gets worse that way.

        Example:
            >>> Monitored(name="EarlyStopping", monitor="acc", mode="min", stops=True).is_wrong
            True
        """
        return better_when(self.monitor) == _OTHER[self.mode]

    def __str__(self) -> str:
        return f"{self.name}(monitor={self.monitor!r}, mode={self.mode!r})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitorEvidence:
    """All of a fit.

    Attributes:
        schedulers: What lowers the learning rate on a plateau.
        callbacks: What stops the fit or keeps its best weights.
    """

    schedulers: tuple[Monitored, ...]
    callbacks: tuple[Monitored, ...]


def better_when(metric: str) -> str | None:
    """Tell by its name whether a metric is the better the lower or the higher; None if unclear.

    Example:
        >>> better_when("val/loss"), better_when("val_acc"), better_when("neg_loss")
        ('min', 'max', None)
    """
    parts = set(_PART.findall(metric.lower()))
    falls, rises = bool(parts & _FALLS), bool(parts & _RISES)
    if falls == rises or parts & _TURNED:
        return None
    return "min" if falls else "max"


def lr_decayed_too_fast(evidence: MonitorEvidence) -> tuple[Finding, ...]:
    """Find a scheduler that takes each step forward for a plateau."""
    code = "lr_decayed_too_fast"
    wrong = [one for one in evidence.schedulers if one.is_wrong]
    if not wrong:
        count = len(evidence.schedulers)
        if not count:
            return wiring("skip", code, "No scheduler waits for a plateau of a metric.")
        plural = "s that wait" if count > 1 else " that waits"
        text = f"None of {count} scheduler{plural} for a plateau goes the wrong way."
        return wiring("pass", code, text, schedulers=count)
    first = wrong[0]
    return wiring(
        "fail",
        code,
        f"{first} lowers the learning rate while {first.monitor} gets better.",
        hint=f"Write mode={_OTHER[first.mode]!r}.",
        where=first.monitor,
        mode=first.mode,
    )


def metric_wrong(evidence: MonitorEvidence) -> tuple[Finding, ...]:
    """Find a callback that stops at the best of a fit, or keeps the worst."""
    code = "metric_wrong"
    wrong = [one for one in evidence.callbacks if one.is_wrong]
    if not wrong:
        text = f"{len(evidence.callbacks)} callbacks watch a metric, none the wrong way."
        return wiring("pass", code, text, callbacks=len(evidence.callbacks))
    first = wrong[0]
    does = "stops the fit while it gets better" if first.stops else "takes the worst for the best"
    return wiring(
        "fail",
        code,
        f"{first} {does}.",
        hint=f"Write mode={_OTHER[first.mode]!r}.",
        where=first.monitor,
        mode=first.mode,
    )
