"""A training step in which nothing holds gradients back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.overrides import TorchFunctionMode

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
            with _Open():
                return own(*args, **kwargs)

        vars(self._module)["training_step"] = step

    def __exit__(self, *_: object) -> None:
        vars(self._module).pop("training_step", None)


class _Open(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch._C._set_grad_enabled and not args[0]:
            return None
        if func is Tensor.detach or func == _DATA:
            return args[0]
        return func(*args, **(kwargs or {}))
