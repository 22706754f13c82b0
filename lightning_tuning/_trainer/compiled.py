"""Which modules run in a graph of ``torch.compile``."""

from __future__ import annotations

import sys

import torch
from torch import nn


def compiled_parts(module: nn.Module) -> set[int]:
    """Return the modules that lie in a compiled one, by identity."""
    if not _dynamo_is_there():
        return set()
    whole = getattr(module, "_compiler_ctx", None) is not None
    roots = [
        part
        for part in module.modules()
        if (part is module and whole)
        or is_wrapper(part)
        or getattr(part, "_compiled_call_impl", None) is not None
        or has_compiled_method(part)
    ]
    return {id(part) for root in roots for part in root.modules()}


def has_compiled_parts(module: nn.Module) -> bool:
    """Whether any part of a module, or a method of one, runs in a compiled graph.

    Example:
        >>> has_compiled_parts(nn.Sequential(nn.Linear(2, 2)))
        False
        >>> has_compiled_parts(nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager")))
        True
    """
    return bool(compiled_parts(module))


def is_wrapper(part: nn.Module) -> bool:
    """Whether this is what ``torch.compile(module)`` returned."""
    return isinstance(part, torch._dynamo.OptimizedModule) if _dynamo_is_there() else False


def has_compiled_method(part: nn.Module) -> bool:
    """Whether a function that the module or its class holds is compiled.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> has_compiled_method(layer)
        False
        >>> layer.forward = torch.compile(layer.forward, backend="eager")
        >>> has_compiled_method(layer)
        True
    """
    return any(
        hasattr(value, "_torchdynamo_orig_callable")
        for holder in (vars(part), *map(vars, type(part).__mro__))
        for value in holder.values()
        if callable(value)
    )


def _dynamo_is_there() -> bool:
    return "torch._dynamo" in sys.modules
