"""Optimizer settings changed for the length of each step, and dropout turned off."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.groups import Group

Values = Callable[[Group], Mapping[str, Any]]
MOMENTUM = 0.9


class DuringSteps:
    """Gives parameter groups other settings, whatever schedulers and the program do in between.

    They are put in place when an optimizer steps and taken back right after, so that a scheduler
    that reads and writes them goes on as ever.

    Args:
        *values: Each tells, for a group, the entries to change and their values.
    """

    def __init__(self, *values: Values) -> None:
        self._values = values
        self._own: dict[int, tuple[Group, dict[str, Any]]] = {}

    def __enter__(self) -> DuringSteps:
        self._handles = (
            register_optimizer_step_pre_hook(self._put),
            register_optimizer_step_post_hook(self._take_back),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _put(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if id(group) in self._own:  # an optimizer around another one
                continue
            entries = {key: v for values in self._values for key, v in values(group).items()}
            self._own[id(group)] = (group, {key: group[key] for key in entries})
            group.update({key: _like(group[key], value) for key, value in entries.items()})

    def _take_back(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            known = self._own.pop(id(group), None)
            if known is not None:
                group.update(known[1])


def pinned(rates: Sequence[tuple[Group, float]]) -> Values:
    """Return the settings that hold each group at one learning rate."""
    known = {id(group): rate for group, rate in rates}
    return lambda group: {"lr": known.get(id(group), group["lr"])}


def scaled(factor: float, *, only: Collection[int] | None = None) -> Values:
    """Return the settings that multiply the present learning rate, of some groups by their id."""

    def values(group: Group) -> Mapping[str, Any]:
        chosen = only is None or id(group) in only
        return {"lr": group["lr"] * factor} if chosen else {}

    return values


def without_weight_decay(group: Group) -> Mapping[str, Any]:
    """Return the settings that decay no weights."""
    return {"weight_decay": 0.0} if "weight_decay" in group else {}


def usual_momentum(group: Group) -> Mapping[str, Any]:
    """Return the settings with a momentum, or Adam's beta1, of 0.9."""
    if "betas" in group:
        return {"betas": (MOMENTUM, *group["betas"][1:])}
    return {"momentum": MOMENTUM} if "momentum" in group else {}


def betas_of(optimizers: Sequence[Optimizer]) -> tuple[tuple[float, float], ...]:
    """Return Adam's two of all groups that have two."""
    found = (group.get("betas", ()) for o in optimizers for group in o.param_groups)
    return tuple((float(betas[0]), float(betas[1])) for betas in found if len(betas) == 2)


class NoDropout(TorchFunctionMode):
    """Leaves out dropout wherever a program calls it, also where it says ``training=True``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function with a probability of zero."""
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            bound = inspect.signature(func).bind(*args, **kwargs)
            bound.arguments["p"] = 0.0
            return func(*bound.args, **bound.kwargs)
        if func is functional.scaled_dot_product_attention:
            if len(args) > _DROPOUT_ARGUMENT:
                args = (*args[:_DROPOUT_ARGUMENT], 0.0, *args[_DROPOUT_ARGUMENT + 1 :])
            elif "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


_DROPOUTS = {
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
}
_DROPOUT_ARGUMENT = 4
"""The place of ``dropout_p`` in ``scaled_dot_product_attention``."""


def without_layer_dropout(module: nn.Module) -> None:
    """Turn off the dropout that recurrent and attention layers keep inside."""
    for part in module.modules():
        if isinstance(part, nn.RNNBase | nn.MultiheadAttention):
            part.dropout = 0.0


def _like(old: Any, value: Any) -> Any:
    """Return the value as what stood there: fused and compiled optimizers want their tensor."""
    if isinstance(old, Tensor):
        return value if isinstance(value, Tensor) else torch.full_like(old, value)
    return value
