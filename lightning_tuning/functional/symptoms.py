"""What each finding means, where it usually comes from, and what to do."""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re
from collections.abc import Mapping

from lightning_tuning.findings import CODES

_TITLE = re.compile(r"^### ([a-z_]+)\n", re.MULTILINE)


def explain(code: str) -> str:
    """Return what a finding's code means, the usual causes, and what to do.

    It is the section of the page "Symptoms" that has this name.

    Args:
        code: As findings have it, such as ``"lr_too_high"``.

    Returns:
        A few sentences in Markdown.

    Raises:
        ValueError: No finding that warns or fails has this code.

    Example:
        >>> print(explain("dead_relu").split(". ")[0])
        Most units of a layer are silent for every example, and the loss does not fall
    """
    found = known_symptoms()
    if code in found:
        return found[code]
    if code in CODES:
        raise ValueError(f"code={code!r} tells what was done or seen; there is nothing to mend")
    near = difflib.get_close_matches(code, found, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "the page Symptoms has all of them"
    raise ValueError(f"code={code!r}: no finding has this code; {hint}")


@functools.cache
def known_symptoms() -> Mapping[str, str]:
    """Return all that can be explained, by code.

    Example:
        >>> "overfitting" in known_symptoms()
        True
    """
    page = (
        importlib.resources.files("lightning_tuning.functional")
        .joinpath("symptoms.md")
        .read_text("utf-8")
    )
    _, *parts = _TITLE.split(page)
    return {
        code: text.split("\n## ")[0].strip()
        for code, text in zip(parts[::2], parts[1::2], strict=True)
    }
