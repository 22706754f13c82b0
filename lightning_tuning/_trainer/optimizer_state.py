"""The state of optimizers, put back in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
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
        self._groups = [(g, g["params"], _copied(g)) for g in optimizer.param_groups]
        self._state = _copied(optimizer.state)
        groups = [{k: v for k, v in group.items() if k != "params"} for *_, group in self._groups]
        self._tensors = TensorState(_tensors([self._state, groups]))

    def restore(self) -> None:
        """Put groups and state back."""
        optimizer = self._optimizer
        optimizer.param_groups[:] = [group for group, *_ in self._groups]
        for group, params, entries in self._groups:
            group.clear()
            group.update(_copied(entries))
            params[:] = entries["params"]
            group["params"] = params
        optimizer.state.clear()
        optimizer.state.update(_copied(self._state))
        self._tensors.restore()


def _copied(value: Any) -> Any:
    """Copy the containers in which tensors and numbers lie (L-BFGS nests them), not the tensors."""
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)
