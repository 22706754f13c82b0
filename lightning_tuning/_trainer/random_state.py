"""The state of every random number generator that a training step may draw from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def get_random_state() -> dict[str, Any]:
    """Collect the states of Python's, NumPy's and torch's generators, on every device.

    Example:
        >>> state = get_random_state()
        >>> first = torch.rand(1)
        >>> set_random_state(state)
        >>> bool(first == torch.rand(1))
        True
    """
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  (the global generator is what users seed)
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    if torch.xpu.is_available():
        state["xpu"] = torch.xpu.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`get_random_state` collected."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    if "xpu" in state:
        torch.xpu.set_rng_state_all(state["xpu"])


def reseed(number: int) -> None:
    """Give every generator another random start: the same for the same seed and number."""
    seed = (torch.initial_seed() + number) % 2**63
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave every generator as it was found, also after an exception."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)
