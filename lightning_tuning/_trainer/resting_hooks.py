"""Hooks of a callback that Lightning passes over while they have nothing to do."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer import call

_EACH_BATCH = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
)
_PACKAGES = ("lightning_tuning", "lightning")


class RestingHooks:
    """Lets hooks of a callback rest, so that steps on which it does nothing cost nothing.

    Lightning asks every callback at every hook, six times a step, whatever it does there: 0.04
    milliseconds for four callbacks that do nothing. A hook that is not callable it passes over, and
    that is what a resting one is. What the callback does not override rests from the beginning.

    Hooks of subclasses that a user writes never rest, nor those of a callback that another one
    calls, which the trainer does not hold itself.

    Args:
        trainer: The trainer.
        callback: One of its callbacks.
        names: The hooks that are to rest at times.

    Example:
        >>> callback = Callback()
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> hooks = RestingHooks(trainer, callback)
        >>> callable(callback.on_after_backward)
        False
        >>> all_awake(callback)
        >>> callable(callback.on_after_backward)
        True
    """

    def __init__(self, trainer: Trainer, callback: Callback, *names: str) -> None:
        self._own = vars(callback)
        able = _are_passed_over()
        free = [name for name in _EACH_BATCH if able and is_ours(trainer, callback, name)]
        self._names = [name for name in free if name in names]
        self._own.update({name: None for name in free if _is_inherited(callback, name)})

    def rest(self) -> None:
        """Let the hooks rest."""
        for name in self._names:
            self._own[name] = None

    def wake(self) -> None:
        """Let them be called again."""
        for name in self._names:
            self._own.pop(name, None)


def is_ours(trainer: Trainer, callback: Callback, name: str) -> bool:
    """Whether a hook is none that a user wrote, and called by Lightning itself.

    Example:
        >>> callback = Callback()
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> is_ours(trainer, callback, "on_after_backward")
        True
        >>> is_ours(trainer, Callback(), "on_after_backward")
        False
    """
    held = any(other is callback for other in vars(trainer)["callbacks"])
    package = getattr(type(callback), name).__module__.partition(".")[0]
    return held and package in _PACKAGES and name not in vars(callback)


def all_awake(callback: Callback) -> None:
    """Let no hook of a callback rest any more.

    Example:
        >>> callback = Callback()
        >>> callback.on_after_backward = None
        >>> all_awake(callback)
        >>> callable(callback.on_after_backward)
        True
    """
    own = vars(callback)
    for name in _EACH_BATCH:
        if own.get(name, name) is None:
            del own[name]


def awake(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a callback's attributes without what rests; for ``__getstate__``.

    Example:
        >>> awake({"bins": 64, "on_after_backward": None})
        {'bins': 64}
    """
    return {k: v for k, v in state.items() if not (k in _EACH_BATCH and v is None)}


def _is_inherited(callback: Callback, name: str) -> bool:
    return getattr(type(callback), name) is getattr(Callback, name)


@functools.cache
def _are_passed_over() -> bool:
    """Whether this version of Lightning passes over what is not callable, as all known ones do."""
    stub: Any = SimpleNamespace(lightning_module=None, callbacks=[SimpleNamespace(hook=None)])
    try:
        call._call_callback_hooks(stub, "hook")
    except Exception:  # any of what another version may do
        return False
    return True
