"""What becomes of a check's findings: shown, and one exception where the person wants one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch.distributed
from lightning.pytorch import Trainer

from lightning_tuning._trainer.probe import forget_batches
from lightning_tuning._trainer.report import report
from lightning_tuning.findings import ChecksFailedError, Finding

OnFail = Literal["warn", "raise"]
_ORDER = ("fail", "warn", "skip", "pass")


@runtime_checkable
class CheckBeforeFit(Protocol):
    """A callback that checks a program in ``on_train_start``."""

    findings: tuple[Finding, ...]
    on_fail: OnFail

    def checked_before_fit(self) -> bool:
        """Tells these callbacks from others that have findings."""


def reason_to_skip(trainer: Trainer) -> str | None:
    """Return why a program is not checked now; None where it is."""
    if getattr(trainer, "fast_dev_run", False):
        return "fast_dev_run is a check of its own"
    if trainer.global_step > 0:
        return f"training goes on from step {trainer.global_step}"
    return None


def settle(trainer: Trainer, check: CheckBeforeFit, findings: Sequence[Finding]) -> None:
    """Keep and show the findings of a check; the last check of the trainer raises for all.

    All ranks must call it; they have the same findings afterwards.

    Raises:
        ChecksFailedError: A check with ``on_fail="raise"`` found something wrong.
    """
    check.findings = of_all_ranks(trainer, tuple(findings))
    report(trainer, check.findings)
    callbacks: list[object] = vars(trainer)["callbacks"]
    checks = [c for c in callbacks if isinstance(c, CheckBeforeFit)]
    if checks and checks[-1] is not check:
        return
    forget_batches(trainer)
    strict = [c for c in checks or [check] if c.on_fail == "raise"]
    failed = [f for c in strict for f in c.findings if f.verdict == "fail"]
    if failed:
        raise ChecksFailedError(failed)


def of_all_ranks(trainer: Trainer, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the worst of what the ranks found, for each code and place."""
    if trainer.world_size == 1:
        return findings
    gathered: list[tuple[Finding, ...]] = [()] * trainer.world_size
    torch.distributed.all_gather_object(gathered, findings)
    worst: dict[tuple[str, str], Finding] = {}
    for finding in (f for rank in gathered for f in rank):
        known = worst.setdefault((finding.code, finding.where), finding)
        if _ORDER.index(finding.verdict) < _ORDER.index(known.verdict):
            worst[finding.code, finding.where] = finding
    return tuple(worst.values())
