"""A training step in which nothing holds gradients back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_tuning._trainer.step_trace import Intercept

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class LetThrough:
    """Makes ``no_grad`` and ``detach`` do nothing inside of ``training_step``.

    Args:
        module: The module whose step it is; to be used within a sandbox.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module

    def __enter__(self) -> None:
        own = self._module.training_step

        @functools.wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            with Intercept(_open):
                return own(*args, **kwargs)

        vars(self._module)["training_step"] = step

    def __exit__(self, *_: object) -> None:
        vars(self._module).pop("training_step", None)


def _open(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if func is torch._C._set_grad_enabled and not args[0]:
        return None
    if func is Tensor.detach or func == _DATA:
        return args[0]
    return func(*args, **kwargs)
