"""The state of optimizers and of the loss scaler, put back in place."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from lightning_tuning._trainer.tensor_state import TensorState


class OptimizerState:
    """Parameter groups and per-parameter state of one optimizer.

    State that does not exist yet (before the first step) is dropped on restore, never copied. The
    parameter groups stay the same objects, because schedulers hold on to them.

    Args:
        optimizer: The optimizer to remember.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._groups = [(group, dict(group)) for group in optimizer.param_groups]
        self._params = [list(group["params"]) for group in optimizer.param_groups]
        self._state = {param: _shallow(value) for param, value in optimizer.state.items()}
        holders = [value for value in self._state.values() if isinstance(value, dict)]
        holders += [entries for _, entries in self._groups]
        values = [v for holder in holders for k, v in holder.items() if k != "params"]
        self._tensors = TensorState(v for v in values if isinstance(v, Tensor))

    def restore(self) -> None:
        """Put groups and state back."""
        optimizer = self._optimizer
        optimizer.param_groups[:] = [group for group, _ in self._groups]
        for (group, entries), params in zip(self._groups, self._params, strict=True):
            group.clear()
            group.update(entries)
            group["params"][:] = params
        optimizer.state.clear()
        optimizer.state.update({param: _shallow(value) for param, value in self._state.items()})
        self._tensors.restore()


class ScalerState:
    """The scale and the growth counter of a gradient scaler.

    Args:
        scaler: The scaler of the precision plugin.
    """

    def __init__(self, scaler: GradScaler) -> None:
        self._scaler = scaler
        self._entries = {key: _copied(value) for key, value in vars(scaler).items()}

    def restore(self) -> None:
        """Put the scaler's fields back."""
        vars(self._scaler).update({key: _copied(value) for key, value in self._entries.items()})


def _shallow(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)
