"""A few examples that the program takes as a batch."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.examples import Examples
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_mode import Mode
from lightning_tuning._trainer.wiring.observed import working_mode

_TRIED = 2


def small_batches(probe: Probe, whole: Examples) -> Iterator[tuple[Examples, Mode]]:
    """Yield batches of a few examples, and the mode in which the program takes them.

    The whole batch comes where it takes no smaller one.

    Raises:
        CannotProbeError: It takes none.
    """
    taken = 0
    for size in whole.sizes()[:_TRIED]:
        examples = whole.cut(size)
        try:
            mode = working_mode(probe, examples.batch)
        except CannotProbeError:
            continue
        taken += 1
        yield examples, mode
    if not taken:
        yield whole, working_mode(probe, whole.batch)


def small_batch(probe: Probe, whole: Examples) -> tuple[Examples, Mode]:
    """Return the first of :func:`small_batches`."""
    return next(small_batches(probe, whole))
