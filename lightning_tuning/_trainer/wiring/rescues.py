"""Changes of a program that take one fault away, for a short run that tells whether it was one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.wiring.layer_calls import LayerCall, LayerCalls, axes_but

_TINY = 1e-20


class DataDependentInit(LayerCalls):
    """Finds weights at which each layer's output varies by about one around zero.

    During one forward pass each layer is taken over by one with its weight divided by the
    deviation of its output over examples, positions and units about each unit's mean, and its bias
    shifted by those means (Salimans and Kingma 2016, section 3; Mishkin and Matas 2016); so are the
    scale and the shift of a normalization. A recurrent matrix of a plain RNN becomes orthogonal.
    The last layer is only made smaller, since its bias may know the targets' mean. The program's
    own weights are not written to.

    Args:
        module: The network.
        last: The path of the last layer's weight.
    """

    def __init__(self, module: nn.Module, *, last: str) -> None:
        super().__init__(module, self._take_over)
        self.found: dict[str, Tensor] = {}
        self._named = dict(module.named_parameters())
        self._paths = {id(parameter): name for name, parameter in self._named.items()}
        self._ids: dict[int, Tensor] = {}
        self._last = last

    def put(self) -> None:
        """Write what was found into the program."""
        with torch.no_grad():
            for name, value in self.found.items():
                self._named[name].copy_(value)

    def _take_over(self, call: LayerCall, make: Callable[..., Any]) -> Any:
        # a weight that is used again keeps what its first use asked for
        if id(call.weight) in self._paths and id(call.weight) not in self._ids:
            if call.kind == "recurrent":
                self._orthogonalise(call)
            elif call.weight.requires_grad:
                self._rescale(call, make().detach().float())
        return make(weights=self._ids)

    def _rescale(self, call: LayerCall, output: Tensor) -> None:
        variance, mean = torch.var_mean(output, axes_but(output, call.units), correction=0)
        scale = variance.mean().sqrt()
        if not bool(scale.isfinite()) or float(scale) < _TINY:
            return
        is_last = call.name == self._last
        if is_last:
            scale = scale.clamp_min(1.0)
        self._set(call.weight, call.weight.detach() / scale)
        if call.bias is not None and call.bias.requires_grad and not is_last:
            self._set(call.bias, (call.bias.detach() - mean.to(call.bias.dtype)) / scale)

    def _orthogonalise(self, call: LayerCall) -> None:
        if not call.function.startswith("rnn_"):
            return
        stem = call.name.replace("weight_ih", "weight_hh")
        matrix = self._named.get(stem)
        if matrix is None or matrix is call.weight or not matrix.requires_grad:
            return
        start = torch.Generator().manual_seed(0)
        square = torch.randn(matrix.shape, generator=start)
        q, r = torch.linalg.qr(square)
        self._set(matrix, (q * r.diagonal().sign()).to(matrix))
        self._ids.setdefault(id(call.weight), call.weight.detach())

    def _set(self, parameter: Tensor, value: Tensor) -> None:
        value = value.to(parameter.dtype)
        self._ids[id(parameter)] = value
        self.found[self._paths[id(parameter)]] = value


class TemperedLogits(TorchFunctionMode):
    """Divides what enters a softmax or sigmoid loss by its deviation in the first such call.

    Attributes:
        scale: The deviation, at least one; None before the first call.
    """

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.scale = scale

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call."""
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") not in LOGIT_LOSSES:
            return func(*args, **kwargs)
        logits = args[0] if args else kwargs.pop("input")
        if self.scale is None:
            size = float(deviation_of_logits(func.__name__, logits))
            self.scale = max(1.0, size) if math.isfinite(size) else 1.0
        return func(logits / self.scale, *args[1:], **kwargs)


LOGIT_LOSSES = frozenset({"cross_entropy", "binary_cross_entropy_with_logits"})


def deviation_of_logits(function: str, logits: Tensor) -> Tensor:
    """Return the root mean square of logits, about their mean over the classes of a softmax."""
    values = logits.detach().float()
    if function == "cross_entropy":
        values = values - values.mean(0 if values.dim() == 1 else 1, keepdim=True)
    return values.square().mean().sqrt()


class WithoutDropout(LayerCalls):
    """Leaves out dropout wherever it is called, and notes how much was dropped.

    Args:
        module: The network.
        keep: Whether dropout is left in place, and only noted.
    """

    def __init__(self, module: nn.Module, *, keep: bool = False) -> None:
        super().__init__(module, lambda _call, make: make())
        self.shares: list[float] = []
        self._keep = keep

    def other(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Make a call, that of dropout without dropping."""
        if name not in _DROPOUTS:
            return func(*args, **kwargs)
        share = float(args[1] if len(args) > 1 else kwargs.get("p", 0.5))
        training = args[2] if len(args) > 2 else kwargs.get("training", True)
        if training:
            self.shares.append(share)
        if self._keep:
            return func(*args, **kwargs)
        return func(args[0] if args else kwargs["input"], share, False)


_DROPOUTS = frozenset(
    {
        *("dropout", "dropout1d", "dropout2d", "dropout3d"),
        *("alpha_dropout", "feature_alpha_dropout"),
    }
)
