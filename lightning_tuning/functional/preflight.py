"""What a preflight found out about a program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from lightning_tuning.findings import Finding, Verdict
from lightning_tuning.functional.findings_table import WIDTH
from lightning_tuning.functional.html_report import Picture, html_report
from lightning_tuning.functional.lr_range_test import LRRangeResult
from lightning_tuning.functional.report_table import as_table, overall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PREFLIGHT = "preflight"
_CAPTIONS = {
    "overfit_batch_check": "Training on a tiny batch, at each learning rate that was tried",
    "lr_range_test": "The loss as the learning rate rises, and short runs at single rates",
}


class Measured(Protocol):
    """The result of a check that measures."""

    def to_json(self) -> str:
        """Write it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreflightResult:
    """What :func:`~lightning_tuning.preflight` found.

    Attributes:
        findings: All that there is to say, the checks in the order in which they ran.
        results: What each check measured, by its name: ``"initial_loss_check"``,
            ``"overfit_batch_check"``, ``"gradient_check"``, ``"lr_range_test"``.
        seconds: How long each check took.
    """

    findings: tuple[Finding, ...]
    results: Mapping[str, Measured] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict; ``"skip"`` only where nothing could be checked.

        Example:
            >>> PreflightResult(findings=()).verdict
            'skip'
        """
        return overall(self.findings)

    @property
    def learning_rate(self) -> float | None:
        """The suggested learning rate; None where there is none.

        Example:
            >>> PreflightResult(findings=()).learning_rate is None
            True
        """
        found = self.results.get("lr_range_test")
        return found.suggestion if isinstance(found, LRRangeResult) else None

    def summary(self, *, width: int = WIDTH) -> str:
        """Return one table: what, verdict, the number, what to do.

        Example:
            >>> finding = Finding(check="a", code="zero_init", verdict="pass", message="Fine.")
            >>> print(PreflightResult(findings=(finding,)).summary().splitlines()[0])
            preflight: 1 passed (0.0 s)
        """
        table = as_table(self.findings, title=PREFLIGHT, width=width)
        first, *others = table.split("\n")
        return "\n".join([f"{first} ({sum(self.seconds.values()):.1f} s)", *others])

    def to_json(self) -> str:
        """Return everything as one JSON object.

        Example:
            >>> json.loads(PreflightResult(findings=()).to_json())["verdict"]
            'skip'
        """
        content = {
            "verdict": self.verdict,
            "learning_rate": self.learning_rate,
            "seconds": dict(self.seconds),
            "findings": [finding.to_dict() for finding in self.findings],
            "results": {name: json.loads(each.to_json()) for name, each in self.results.items()},
        }
        return json.dumps(content, indent=1)

    def to_html(self) -> str:
        """Return a page with all findings and figures that needs nothing else.

        Example:
            >>> PreflightResult(findings=()).to_html().startswith("<!DOCTYPE html>")
            True
        """
        pictures = [
            Picture(check=name, caption=_CAPTIONS.get(name, ""), png=_png(result.plot()))
            for name, result in self.results.items()
            if hasattr(result, "plot")
        ]
        rate = self.learning_rate
        intro = "" if rate is None else f"Suggested learning rate: {rate:.3g}."
        return html_report(self.findings, pictures, title="Preflight", intro=intro)


def in_context(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings with hints that take those of the other checks into account.

    A rate that suits a program with a fault seldom suits the mended one, and raw inputs make the
    first loss large too.

    Example:
        >>> fault = Finding(check="a", code="zero_init", verdict="fail", message="Zero.")
        >>> rate = Finding(
        ...     check="b", code="lr_suggested", verdict="pass", message="0.1.", hint="Try 0.1."
        ... )
        >>> in_context([fault, rate])[1].hint
        'Mend the faults first, then look for the rate again.'
    """
    loud = {finding.code for finding in findings if finding.verdict in ("warn", "fail")}
    failed = any(finding.verdict == "fail" for finding in findings)
    return tuple(_told_of(finding, loud, failed=failed) for finding in findings)


def _told_of(finding: Finding, loud: Collection[str], *, failed: bool) -> Finding:
    if finding.code == "lr_suggested" and finding.hint and failed:
        hint = "Mend the faults first, then look for the rate again."
        return dataclasses.replace(finding, hint=hint)
    far_off = finding.code == "loss_not_at_chance" and finding.verdict in ("warn", "fail")
    if far_off and "unnormalized_input" in loud:
        hint = "Mend unnormalized_input first: raw inputs make the first outputs large."
        return dataclasses.replace(finding, hint=hint)
    return finding


def _png(figure: Figure) -> bytes:
    import io

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
