"""Attributes that were to freeze or to thaw parameters, and that nothing reads."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence

_GRADIENT = re.compile(r"(\w+?)_*grad(ient)?s?_*")
HINT = (
    "Set requires_grad of each parameter, or call module.requires_grad_(True) or"
    " module.requires_grad_(False)."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnreadFlag:
    """An attribute that says something else than what its parameters do.

    Attributes:
        where: Path of the parameter or module; empty for the whole module.
        attribute: Its name.
        value: Its value.
        contradicted: How many parameters do the opposite.
        of_module: Whether it is that of a module.
    """

    where: str
    attribute: str
    value: bool
    contradicted: int
    of_module: bool


def meant_requires_grad(name: str) -> bool:
    """Whether an attribute is or nearly is ``requires_grad``, so that it was taken for it.

    Example:
        >>> meant_requires_grad("require_gradient"), meant_requires_grad("requires_grad_sync")
        (True, False)
    """
    found = _GRADIENT.fullmatch(name.lower())
    return found is not None and bool(
        difflib.get_close_matches(found[1], ["requires"], n=1, cutoff=0.8)
    )


def told(flags: Sequence[UnreadFlag]) -> str:
    """Put the first of some in words.

    Example:
        >>> flag = UnreadFlag(
        ...     where="net", attribute="requires_grad", value=False, contradicted=2, of_module=True
        ... )
        >>> told([flag])
        'net: requires_grad=False is an attribute that nothing reads; 2 of its parameters learn on.'
    """
    first = flags[0]
    place = first.where or "the whole module"
    more = f" (and {len(flags) - 1} more)" if len(flags) > 1 else ""
    if first.of_module:
        state = "stay frozen" if first.value else "learn on"
        outcome = f"{first.contradicted} of its parameters {state}"
    else:
        outcome = "it stays frozen" if first.value else "it learns on"
    flag = f"{first.attribute}={first.value} is an attribute that nothing reads"
    return f"{place}{more}: {flag}; {outcome}."
