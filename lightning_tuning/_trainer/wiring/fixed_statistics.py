"""Normalisation that does not look at its batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_tuning._trainer.step_trace import Intercept


def fixed_statistics(*, over_time: bool = False) -> Intercept:
    """Return what lets batch normalisation use fixed statistics, whatever mode its layer is in.

    Args:
        over_time: Whether group and instance normalisation lose their statistics too, which they
            take over all positions of an example.
    """

    def instead(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if over_time and func in (F.group_norm, F.instance_norm):
            return _only_scaled(func, *args, **kwargs)
        return func(*args, **kwargs)

    return Intercept(instead)


def _batch_norm(*args: Any, **kwargs: Any) -> Tensor:
    names = (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    )
    given = dict(zip(names, args, strict=False)) | kwargs
    x: Tensor = given["input"]
    mean, var = given["running_mean"], given["running_var"]
    return F.batch_norm(
        x,
        x.new_zeros(x.size(1)) if mean is None else mean,
        x.new_ones(x.size(1)) if var is None else var,
        given.get("weight"),
        given.get("bias"),
        training=False,
        eps=given.get("eps", 1e-5),
    )


def _only_scaled(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    names = (
        ("input", "num_groups", "weight", "bias")
        if func is F.group_norm
        else ("input", "running_mean", "running_var", "weight", "bias")
    )
    given = dict(zip(names, args, strict=False)) | kwargs
    x: Tensor = given["input"]
    shape = (1, -1, *[1] * (x.dim() - 2))
    for name, apply in (("weight", torch.mul), ("bias", torch.add)):
        if given.get(name) is not None:
            x = apply(x, given[name].reshape(shape))
    return x
