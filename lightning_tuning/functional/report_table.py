"""The findings of several checks as one table: what, verdict, the number, what to do."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence

from lightning_tuning.findings import Finding, Verdict
from lightning_tuning.functional.findings_table import WIDTH, counted, worst_first

_LEADING = frozenset({"initial_loss", "batch_overfitted", "gradient_checked", "lr_suggested"})
"""Codes whose message is the number that a check was made for."""
_HEADER = ("what", "verdict", "the number", "what to do")
_WHAT, _VERDICT = 27, 7
_MOST_NAMES = 6

Row = tuple[str, str, str, str]


def overall(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict on all: the worst one, where a skip is worse than a pass only if alone.

    Example:
        >>> overall([Finding(check="a", code="zero_init", verdict="skip", message="m")])
        'skip'
    """
    found = {finding.verdict for finding in findings}
    order: tuple[Verdict, ...] = ("fail", "warn", "pass")
    return next((verdict for verdict in order if verdict in found), "skip")


def rows(findings: Sequence[Finding]) -> list[Row]:
    """Return (what, verdict, the number, what to do) for a table, the checks in their order.

    Each finding that failed or warned has a row; of the others, each check has one.

    Example:
        >>> finding = Finding(check="a", code="zero_init", verdict="pass", message="Fine.")
        >>> rows([finding])
        [('a', 'pass', 'Fine.', '')]
    """
    found: list[Row] = []
    for check, group in by_check(findings):
        loud = [f for f in worst_first(group) if f.verdict in ("fail", "warn")]
        found += [(f.code, f.verdict, located(f), f.hint) for f in loud]
        quiet = [f for f in group if f.verdict in ("skip", "pass")]
        if quiet:
            found.append(_quiet_row(check, quiet))
    return found


def by_check(findings: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    """Return the findings of each check, the checks in the order in which they first spoke.

    Example:
        >>> by_check([Finding(check="a", code="zero_init", verdict="pass", message="m")])[0][0]
        'a'
    """
    names = list(dict.fromkeys(finding.check for finding in findings))
    return [(name, [f for f in findings if f.check == name]) for name in names]


def as_table(findings: Sequence[Finding], *, title: str, width: int = WIDTH) -> str:
    """Return one table of the findings of all checks for a console.

    Args:
        findings: Of any number of checks.
        title: What stands above it, before the counts.
        width: At most so many characters a line; 60 or more.

    Example:
        >>> finding = Finding(
        ...     check="wiring_check", code="zero_init", verdict="fail", message="All is zero.",
        ...     hint="Draw the weights.", where="net.0.weight",
        ... )
        >>> print(as_table([finding], title="preflight", width=80))
        preflight: 1 failed
        what                        verdict the number             what to do
        --------------------------- ------- ---------------------- ---------------------
        zero_init                   fail    net.0.weight: All is   Draw the weights.
                                            zero.
    """
    rest = width - _WHAT - _VERDICT - 3
    widths = (_WHAT, _VERDICT, rest - rest // 2, rest // 2)
    told = f"{title}: {counted(findings)}" if findings else f"{title}: nothing was checked"
    lines = textwrap.wrap(told, width)
    if findings:
        lines += [*_lines(_HEADER, widths), " ".join("-" * part for part in widths)]
    for row in rows(findings):
        lines += _lines(row, widths)
    return "\n".join(lines)


def located(finding: Finding) -> str:
    """Return the message, with the place before it where it does not name it.

    Example:
        >>> located(Finding(check="a", code="zero_init", verdict="warn", message="m", where="net"))
        'net: m'
    """
    told = not finding.where or finding.where in finding.message
    return finding.message if told else f"{finding.where}: {finding.message}"


def _quiet_row(check: str, quiet: Sequence[Finding]) -> Row:
    passed = [f for f in quiet if f.verdict == "pass"]
    skipped = [f for f in quiet if f.verdict == "skip"]
    verdict = "pass" if passed else "skip"
    leading = [f for f in quiet if f.code in _LEADING] or (quiet if len(quiet) == 1 else [])
    parts = [f.message for f in leading]
    others = len(passed) - sum(f.verdict == "pass" for f in leading)
    if others:
        parts.append(f"{others} more passed." if parts else f"{others} passed.")
    left = [f.code for f in skipped if f not in leading]
    if left:
        names = list(dict.fromkeys(left))
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        parts.append(f"Not checked: {', '.join(names[:_MOST_NAMES])}{more}.")
    return (check, verdict, " ".join(parts), " ".join(f.hint for f in leading if f.hint))


def _lines(row: Row, widths: Sequence[int]) -> list[str]:
    cells = [textwrap.wrap(text, size) for text, size in zip(row, widths, strict=True)]
    return [
        " ".join(f"{part:{size}}" for part, size in zip(line, widths, strict=True)).rstrip()
        for line in itertools.zip_longest(*cells, fillvalue="")
    ]
