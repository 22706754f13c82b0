"""What a monitor does after an exception, which is the one that a person has to see."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_warn


@contextlib.contextmanager
def last_words(callback: Callback) -> Iterator[None]:
    """Turn an error inside into a warning; for ``on_exception``.

    An error there would take the place of that of the fit, and end the calls of other callbacks,
    such as the one that saves a checkpoint of what was interrupted.

    Args:
        callback: Which speaks.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     with last_words(Callback()):
        ...         raise OSError("no space left on device")
        >>> str(caught[0].message)
        'Callback could not finish after the exception: OSError: no space left on device'
    """
    try:
        yield
    except Exception as error:
        rank_zero_warn(
            f"{type(callback).__name__} could not finish after the exception:"
            f" {type(error).__name__}: {error}"
        )
