"""Findings and figures as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import html
import re
from collections.abc import Sequence

from lightning_tuning.findings import Finding, Verdict
from lightning_tuning.functional.findings_table import counted, worst_first
from lightning_tuning.functional.report_table import by_check, located, overall
from lightning_tuning.functional.symptoms import known_symptoms

_CODE, _EMPHASIS = re.compile(r"`([^`]+)`"), re.compile(r"\*([^*]+)\*")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --fail: #c62828; --warn: #b26a00;
  --pass: #2e7d32; --skip: #777; }
@media (prefers-color-scheme: dark) {
  :root { --fail: #ff7b72; --warn: #ffb74d; --pass: #81c784; --skip: #aaa; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th:nth-child(1) { width: 15rem; } th:nth-child(2) { width: 4.5rem; } th:nth-child(4) { width: 30%; }
code { font-size: .92em; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); }
summary { cursor: pointer; color: var(--skip); padding: .35rem 0; }
.fail { color: var(--fail); font-weight: 600; } .warn { color: var(--warn); font-weight: 600; }
.pass { color: var(--pass); } .skip { color: var(--skip); }
td a { color: inherit; } dt { margin-top: .8rem; } dt:target + dd { background: var(--line); }
"""
_SAYS: dict[Verdict, str] = {
    "fail": "Something is wrong.",
    "warn": "Something looks wrong.",
    "pass": "Nothing wrong was found.",
    "skip": "Nothing could be checked.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure of a report.

    Attributes:
        check: The check it belongs to.
        caption: What it shows.
        png: The file's bytes.
    """

    check: str
    caption: str
    png: bytes


def html_report(
    findings: Sequence[Finding], pictures: Sequence[Picture] = (), *, title: str, intro: str = ""
) -> str:
    """Return a page with all findings, worst first, and the pictures beside them.

    Styles and pictures lie inside, so that the file can be sent to somebody. All names and
    messages are escaped: they come from a person's program.

    Args:
        findings: Of any number of checks.
        pictures: Each is shown below the findings of its check.
        title: Title of the page.
        intro: One sentence below it.

    Example:
        >>> made = Finding(check="a", code="zero_init", verdict="pass", message="1 < 2")
        >>> "1 &lt; 2" in html_report([made], title="A report")
        True
    """
    verdict = overall(findings)
    checks = dict(by_check(findings))
    names = list(dict.fromkeys([*checks, *(picture.check for picture in pictures)]))
    sections = [
        _section(name, checks.get(name, []), [p for p in pictures if p.check == name])
        for name in names
    ]
    text = html.escape
    told = f'<span class="{verdict}">{text(_SAYS[verdict])}</span> {text(counted(findings))}.'
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{text(title)}</h1>",
            f"<p>{told} {text(intro)}</p>",
            *sections,
            _explained(findings),
            "</body></html>",
            "",
        ]
    )


def _section(name: str, findings: Sequence[Finding], pictures: Sequence[Picture]) -> str:
    ordered = worst_first(findings)
    loud = [f for f in ordered if f.verdict in ("fail", "warn")]
    quiet = [f for f in ordered if f not in loud]
    parts = [f"<h2>{html.escape(name.replace('_', ' '))}</h2>"]
    if loud:
        parts.append(_table(loud))
    if quiet:
        told = html.escape(counted(quiet))
        opened = " open" if len(quiet) <= 2 else ""
        parts.append(f"<details{opened}><summary>{told}</summary>{_table(quiet)}</details>")
    return "\n".join([*parts, *(_figure(picture) for picture in pictures)])


def _table(findings: Sequence[Finding]) -> str:
    head = "<tr><th>what</th><th>verdict</th><th>the number</th><th>what to do</th></tr>"
    return f"<table>{head}{''.join(_row(finding) for finding in findings)}</table>"


def _explained(findings: Sequence[Finding]) -> str:
    """Return what the findings that speak mean, for those who read on from a row's code."""
    codes = dict.fromkeys(f.code for f in worst_first(findings) if f.verdict in ("fail", "warn"))
    texts = {code: known_symptoms()[code] for code in codes if code in known_symptoms()}
    if not texts:
        return ""
    parts = [
        f'<dt id="{code}"><code>{code}</code></dt><dd>{_text(text)}</dd>'
        for code, text in texts.items()
    ]
    return "\n".join(["<h2>What it means, and what to do</h2>", "<dl>", *parts, "</dl>"])


def _text(markdown: str) -> str:
    """Return the little Markdown that the page of symptoms has, as HTML."""
    code = _CODE.sub(r"<code>\1</code>", html.escape(markdown))
    return _EMPHASIS.sub(r"<em>\1</em>", code)


def _row(finding: Finding) -> str:
    text = html.escape
    name = f"<code>{text(finding.code)}</code>"
    if finding.verdict in ("fail", "warn") and finding.code in known_symptoms():
        name = f'<a href="#{text(finding.code)}">{name}</a>'
    return (
        f"<tr><td>{name}</td>"
        f'<td class="{text(finding.verdict)}">{text(finding.verdict)}</td>'
        f"<td>{text(located(finding))}</td><td>{text(finding.hint)}</td></tr>"
    )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = html.escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
