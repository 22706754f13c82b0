"""Drawing without the collection of garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Put off the collection of garbage, for work that makes many objects and keeps them a moment.

    A figure consists of some ten thousand. In their middle a collection would go through all that
    a process with torch has, for a quarter of a second, as long as drawing takes, and free nothing.

    Example:
        >>> with without_collection():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
