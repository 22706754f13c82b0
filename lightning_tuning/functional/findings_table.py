"""Findings as text for a console and as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence

from lightning_tuning.findings import Finding, Verdict

WIDTH = 100
_VERDICTS: tuple[Verdict, ...] = ("fail", "warn", "skip", "pass")
_WORDS = {"fail": "failed", "warn": "warned", "skip": "not checked", "pass": "passed"}
_FEW = 3
_VERDICT, _CODE = 6, 27


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings in the order fail, warn, skip, pass.

    Example:
        >>> made = [
        ...     Finding(check="a", code="zero_init", verdict=verdict, message="m")
        ...     for verdict in ("pass", "fail")
        ... ]
        >>> [finding.verdict for finding in worst_first(made)]
        ['fail', 'pass']
    """
    return sorted(findings, key=lambda finding: _VERDICTS.index(finding.verdict))


def counted(findings: Sequence[Finding]) -> str:
    """Return how many failed, warned, were not checked, and passed.

    Example:
        >>> counted([Finding(check="a", code="zero_init", verdict="fail", message="m")])
        '1 failed'
    """
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{counts[v]} {_WORDS[v]}" for v in _VERDICTS if counts[v])


def as_text(findings: Sequence[Finding], *, width: int = WIDTH) -> str:
    """Return the findings of one check as a table for a console.

    What failed or warned is told in full, with what to do; where there are many answers, those
    that passed or could not be checked are only named.

    Args:
        findings: Of one check.
        width: At most so many characters a line.

    Example:
        >>> finding = Finding(
        ...     check="wiring_check", code="zero_init", verdict="fail", message="All is zero.",
        ...     hint="Draw the weights.", where="net.0.weight",
        ... )
        >>> print(as_text([finding]))
        wiring_check: 1 failed
        fail  zero_init                  net.0.weight: All is zero. -> Draw the weights.
    """
    lines = textwrap.wrap(f"{findings[0].check}: {counted(findings)}", width)
    quiet: dict[Verdict, list[Finding]] = {"skip": [], "pass": []}
    for finding in worst_first(findings):
        if finding.verdict in quiet and len(findings) > _FEW:
            quiet[finding.verdict].append(finding)
        else:
            lines += _row(finding, width)
    for verdict, those in quiet.items():
        if those:
            names = ", ".join(dict.fromkeys(finding.code for finding in those))
            lines += _wrapped(verdict, "", names, width)
    return "\n".join(lines)


def as_markdown(findings: Sequence[Finding]) -> str:
    """Return the findings as a Markdown list, worst first.

    A list, since TensorBoard breaks the words of a table's narrow columns.

    Example:
        >>> finding = Finding(check="a", code="zero_init", verdict="pass", message="Fine.")
        >>> as_markdown([finding])
        '- **pass** `zero_init` Fine.'
    """
    return "\n".join(_item(finding) for finding in worst_first(findings))


def _item(finding: Finding) -> str:
    where = f" `{' '.join(finding.where.split())}`:" if finding.where else ""
    hint = f" → *{_line(finding.hint)}*" if finding.hint else ""
    return f"- **{finding.verdict}** `{finding.code}`{where} {_line(finding.message)}{hint}"


def _row(finding: Finding, width: int) -> list[str]:
    told = finding.where in finding.message
    where = f"{finding.where}: " if finding.where and not told else ""
    hint = f" -> {finding.hint}" if finding.hint else ""
    return _wrapped(finding.verdict, finding.code, f"{where}{finding.message}{hint}", width)


def _wrapped(verdict: str, code: str, text: str, width: int) -> list[str]:
    margin = _VERDICT + (_CODE if code else 0)
    start = f"{verdict:{_VERDICT}}{code:{_CODE if code else 0}}"
    return textwrap.wrap(
        text, width, initial_indent=start.ljust(margin), subsequent_indent=" " * margin
    )


def _line(text: str) -> str:
    """Keep names as they are written, on one line."""
    return re.sub(r"([*_`])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
