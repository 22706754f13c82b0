"""Reading and writing one parameter group of an optimizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Group = dict[str, Any]


def base_rate(group: Group) -> float:
    """Return what the group's schedulers scale: ``OneCycleLR`` alone writes a peak beside it."""
    return float(next(group[key] for key in ("max_lr", "initial_lr", "lr") if key in group))


def momentum_of(group: Group) -> float:
    """Return the momentum, or Adam's beta1; 0 where there is none."""
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def write(group: Group, key: str, value: float) -> None:
    """Set an entry; a tensor (capturable, compiled optimizers) is filled in place."""
    group[key] = _written(group.get(key), value)


def write_momentum(group: Group, value: float) -> bool:
    """Set the momentum, or Adam's beta1; return whether the group has either."""
    if "betas" in group:
        beta1, *others = group["betas"]
        group["betas"] = (_written(beta1, value), *others)
    elif "momentum" in group:
        write(group, "momentum", value)
    else:
        return False
    return True


def _written(old: Any, value: float) -> Any:
    return old.fill_(value) if isinstance(old, Tensor) else value
