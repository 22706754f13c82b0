"""Compiled modules as they are written."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Run compiled modules as they are written, since a graph hides its calls."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # the hooks are ours, and are gone before anything is compiled
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global")
        yield
