"""Who won: which piece of each piecewise function a computation went through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SIGN = ("abs", "relu", "leaky_relu", "prelu", "_prelu_kernel", "rrelu_with_noise", "elu", "sgn")
_KEPT = ("clamp", "clamp_min", "clamp_max", "hardtanh", "threshold", "fmin", "fmax")
_STEPS = ("round", "floor", "ceil", "trunc", "sign", "heaviside", "softshrink", "hardshrink")
_HARD = ("hardswish", "hardsigmoid")
_PIECES: Mapping[str, Callable[[Sequence[Any], Tensor], Tensor]] = {
    **dict.fromkeys(_SIGN, lambda args, _: args[0] > 0),
    **dict.fromkeys(_KEPT, lambda args, out: out == args[0]),
    **dict.fromkeys(_STEPS, lambda _, out: out.round()),
    **dict.fromkeys(("maximum", "minimum"), lambda args, _: args[0] > args[1]),
    **dict.fromkeys(_HARD, lambda args, _: (args[0] / 3).clamp(-1, 1).trunc()),
    **dict.fromkeys(("max", "amax"), lambda args, _: _extreme(args, torch.amax)),
    **dict.fromkeys(("min", "amin"), lambda args, _: _extreme(args, torch.amin)),
}


class Winners(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the winner of each relu, max, abs and the like while it is active.

    What an operation on floats returns as integers or truth values (places of maxima, comparisons,
    orders) is a winner too. If the winners at x + h are not those at x - h, a kink lies between.

    Example:
        >>> def winners(value):
        ...     with Winners() as seen:
        ...         torch.tensor([value, 2.0]).relu().sum()
        ...     return seen.winners
        >>> same(winners(1.0), winners(1.1)), same(winners(1e-6), winners(-1e-6))
        (True, False)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.winners: list[Tensor] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation, and note its winners."""
        # an operation in place overwrites what it was decided by
        before = args
        name = func._schema.name.removeprefix("aten::")
        known = name.removesuffix("_")
        if name != known and known in _PIECES:
            before = [args[0].clone(), *args[1:]]
        out = func(*args, **(kwargs or {}))
        if args and _is_float(args[0]):
            outs = out if isinstance(out, tuple | list) else [out]
            self.winners += [t for t in outs if isinstance(t, Tensor) and not t.is_floating_point()]
            if known in _PIECES and isinstance(outs[0], Tensor) and outs[0].layout == torch.strided:
                self.winners.append(_PIECES[known](before, outs[0]))
        return out


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two computations had the same winners."""
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _extreme(args: Sequence[Any], reduce: Callable[..., Tensor]) -> Tensor:
    given = args[0]
    # of max(x, dim) the places come with the result
    dims = args[1] if len(args) > 1 else tuple(range(given.dim()))
    extreme = reduce(given, dims, keepdim=True) if given.dim() else given
    return torch.eq(given, extreme)
