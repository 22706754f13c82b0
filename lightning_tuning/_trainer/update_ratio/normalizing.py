"""Whether layers make the size of others' weights a matter of indifference."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized

_KINDS = (_BatchNorm, _InstanceNorm, nn.GroupNorm)


def normalizes(module: nn.Module) -> bool:
    """Return whether some layer normalises each channel, or a weight is parametrized.

    Layer normalization stands before the layers of a transformer, whose weights keep their size.

    Example:
        >>> normalizes(nn.BatchNorm1d(2)), normalizes(nn.LayerNorm(2))
        (True, False)
    """
    return any(isinstance(part, _KINDS) or is_parametrized(part) for part in module.modules())
