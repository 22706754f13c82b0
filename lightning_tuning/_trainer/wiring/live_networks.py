"""A network in which nothing is zero, dead or saturated by chance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lightning_tuning._trainer.step_trace import Intercept
from lightning_tuning._trainer.wiring.observed import Observed
from lightning_tuning.functional.loss_calls import LossCall

_NOISE = 0.1
_RELUS = frozenset({"relu", "relu_", "relu6", "threshold", "threshold_"})


def scores(seen: Observed) -> list[Tensor]:
    """Return what the network gave in a step, before the last activations."""
    if seen.comparisons:
        return [_score(call) for call in seen.calls]
    return [] if seen.output is None else [seen.output]


def _score(call: LossCall) -> Tensor:
    """Return the output before its last activation, which may be saturated."""
    origin = call.origin
    while origin is not None and origin.before is not None:
        origin = origin.before
    return call.input if origin is None else origin.input


def leaky_units() -> Intercept:
    """Return what lets dead units pass a little of their input: leaky ReLUs for ReLUs."""
    return Intercept(_leaky)


def _leaky(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    result = func(*args, **kwargs)
    if getattr(func, "__name__", "") not in _RELUS:
        return result
    given: Tensor = args[0] if args else kwargs["input"]
    return result if result is given else F.leaky_relu(given, 0.2)


class NoisyWeights(contextlib.AbstractContextManager[None]):
    """Puts noise on all parameters, so that none is zero; the probe puts them back.

    Args:
        module: Whose parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self._module.parameters():
                if parameter.is_floating_point():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(_NOISE * noise.to(parameter))

    def __exit__(self, *_: object) -> None: ...
