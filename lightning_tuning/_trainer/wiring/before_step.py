"""Something to be done whenever a module's own step begins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import LightningModule


class BeforeStep:
    """Calls a function before each step of a module; to be used within a sandbox.

    Args:
        module: The module.
        name: Which step.
        action: What to call.
    """

    def __init__(
        self,
        module: LightningModule,
        name: Literal["training_step", "validation_step"],
        action: Callable[[], None],
    ) -> None:
        self._module = module
        self._name = name
        self._action = action

    def __enter__(self) -> None:
        own = getattr(self._module, self._name)

        @functools.wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            self._action()
            return own(*args, **kwargs)

        vars(self._module)[self._name] = step

    def __exit__(self, *_: object) -> None:
        vars(self._module).pop(self._name, None)
