"""What a finished run left in its folder, read back as one report."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from lightning_tuning.findings import Finding, Verdict
from lightning_tuning.functional.findings_table import WIDTH
from lightning_tuning.functional.html_report import Picture, html_report
from lightning_tuning.functional.report_table import as_table, overall

FINDINGS_FILE = "findings.json"
_OWNERS = {
    "update_ratio": "update_ratio_monitor",
    "activation": "activation_monitor",
    "filter": "filter_monitor",
    "one_cycle": "one_cycle",
    "lr_range_test": "lr_range_test",
    "overfit_batch": "overfit_batch_check",
    "loss_curve": "loss_curve_diagnosis",
}
"""How the names of pictures begin, and whose they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunReport:
    """Findings and pictures of a run.

    Attributes:
        name: The run's folder.
        findings: What all callbacks said, in that order.
        pictures: The figures in the folder.
    """

    name: str
    findings: tuple[Finding, ...]
    pictures: tuple[Picture, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst verdict.

        Example:
            >>> RunReport(name="version_0", findings=()).verdict
            'skip'
        """
        return overall(self.findings)

    def summary(self, *, width: int = WIDTH) -> str:
        """Return one table: what, verdict, the number, what to do.

        Example:
            >>> RunReport(name="version_0", findings=()).summary()
            'version_0: nothing was checked'
        """
        return as_table(self.findings, title=self.name, width=width)

    def to_html(self) -> str:
        """Return a page that needs nothing else.

        Example:
            >>> "version_0" in RunReport(name="version_0", findings=()).to_html()
            True
        """
        return html_report(self.findings, self.pictures, title=self.name)


def read_run(folder: str | pathlib.Path) -> RunReport:
    """Read ``findings.json`` and the figures of a run.

    Args:
        folder: The run's folder, such as ``"lightning_logs/version_0"``.

    Raises:
        FileNotFoundError: There is no such folder, or nothing of ours in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "findings.json").write_text("[]")
        ...     read_run(folder).findings
        ()
    """
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"RUN_DIR={str(folder)!r} is no folder")
    pictures = tuple(
        Picture(check=owner, caption=file.stem.replace("_", " "), png=file.read_bytes())
        for file in sorted(path.glob("*.png"))
        for owner in [_owner(file.stem)]
        if owner
    )
    told = path / FINDINGS_FILE
    if not told.exists() and not pictures:
        # the latest, and a fit rather than what came before it
        files = [
            (f.parent.name != "preflight", f.stat().st_mtime, str(f.parent))
            for f in path.rglob(FINDINGS_FILE)
        ]
        hint = f"; did you mean {max(files)[-1]}?" if files else ""
        raise FileNotFoundError(f"RUN_DIR={str(folder)!r} holds no {FINDINGS_FILE}{hint}")
    rows = json.loads(told.read_text()) if told.exists() else []
    findings = tuple(Finding(**row) for row in rows)
    return RunReport(name=path.resolve().name, findings=findings, pictures=pictures)


def _owner(name: str) -> str:
    return next((owner for start, owner in _OWNERS.items() if name.startswith(start)), "")
