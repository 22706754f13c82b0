"""How large the signal is on its way through the network and back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.wiring.layer_calls import (
    LayerCall,
    LayerCalls,
    axes_but,
    first_output,
)
from lightning_tuning.functional.signal_sizes import LayerSignal, Rectified, Squashed

_RECTIFIERS = frozenset({"relu", "relu_"})
_SQUASHERS = {"tanh": 4.0, "tanh_": 4.0, "sigmoid": 7.0, "sigmoid_": 7.0}
"""Beyond these the slope is below 0.0014 and 0.001."""
_KEEPS = frozenset(
    {
        *("view", "reshape", "squeeze", "unsqueeze", "flatten", "transpose", "permute", "mean"),
        *(
            "contiguous",
            "to",
            "float",
            "__getitem__",
            "select",
            "dropout",
            "cat",
            "concat",
            "stack",
        ),
        *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d"),
        *("adaptive_avg_pool1d", "batch_norm", "layer_norm"),
    }
)


class SignalScan(LayerCalls):
    """Measures outputs of layers and activations over several steps, and weights' gradients.

    Used as what watches a step that goes backward: leaving it reads the gradients.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, self._look)
        self._parameters = dict(module.named_parameters())
        self._order: dict[str, list[Tensor]] = {}
        self._spread: dict[str, list[Tensor]] = {}
        self._last = ""
        self._place = 0
        self._alive: dict[tuple[int, str], Tensor] = {}
        self._full: dict[tuple[int, str], list[Tensor]] = {}
        self._squashed: dict[int, tuple[weakref.ref[Tensor], tuple[int, str]]] = {}
        self._used: set[tuple[int, str]] = set()
        self._gradients: dict[str, list[Tensor]] = {}
        self.recurrences: dict[str, int] = {}
        """Time steps by the path of a plain recurrent matrix."""
        self._owners = dict(module.named_modules())

    def __enter__(self) -> Any:
        self._place = 0
        self._last = ""
        self._squashed = {}
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> Any:
        for name in self._order:
            parameter = self._parameters.get(name)
            if parameter is not None and parameter.grad is not None:
                size = parameter.grad.detach().float().to_dense().norm()
                self._gradients.setdefault(name, []).append(size)
        return super().__exit__(*error)  # type: ignore[no-untyped-call]

    def layers(self) -> tuple[LayerSignal, ...]:
        """Return what layers with weights gave and got back, in the order of their calls."""
        names = list(self._order)
        sizes = _rows([self._order[name] for name in names])
        spreads = _rows([self._spread[name] for name in names])
        gradients = _rows([self._gradients.get(name, []) for name in names])
        return tuple(
            LayerSignal(
                name=name,
                output=size,
                spread=spread,
                gradient=gradient if self._gradients.get(name) else None,
            )
            for name, size, spread, gradient in zip(names, sizes, spreads, gradients, strict=True)
        )

    def rectified(self) -> tuple[Rectified, ...]:
        """Return how many units of each ReLU were ever above zero."""
        shares = _rows([[alive.logical_not().float().mean()] for alive in self._alive.values()])
        return tuple(
            Rectified(after=where, dead=share, units=alive.numel())
            for ((_, where), alive), share in zip(self._alive.items(), shares, strict=True)
        )

    def squashed(self) -> tuple[Squashed, ...]:
        """Return how many values of each tanh or sigmoid between layers were flat."""
        keys = [key for key in self._full if key in self._used]
        shares = _rows([self._full[key] for key in keys])
        return tuple(
            Squashed(after=key[1], flat=share) for key, share in zip(keys, shares, strict=True)
        )

    def other(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Look at activations; note what becomes of them."""
        given = args[0] if args else kwargs.get("input")
        if isinstance(given, list | tuple) and given:
            given = given[0]
        before = given.detach() if name in _SQUASHERS and isinstance(given, Tensor) else None
        share = None if before is None else (before.abs() > _SQUASHERS[name]).float().mean()
        value = func(*args, **kwargs)
        if not isinstance(given, Tensor) or not isinstance(value, Tensor) or not value.numel():
            return value
        if name in _RECTIFIERS and self._is_derived(given):
            self._rectifier(value.detach())
        elif share is not None and self._is_derived(given):
            key = (self._next(), self._last)
            self._full.setdefault(key, []).append(share)
            self._squashed[id(value)] = (weakref.ref(value), key)
        elif name in _KEEPS and (known := self._squasher_of(given)) is not None:
            self._squashed[id(value)] = (weakref.ref(value), known)
        return value

    def _look(self, call: LayerCall, make: Callable[..., Any]) -> Any:
        value = make()
        if (known := self._squasher_of(call.input)) is not None:
            self._used.add(known)
        if call.kind == "norm":
            if known is not None:
                self._squashed[id(value)] = (weakref.ref(value), known)
            return value
        self._last = call.name
        self._recurrence(call)
        output = first_output(value).detach().float()
        variance, mean = torch.var_mean(output, axes_but(output, call.units), correction=0)
        spread = variance.mean()
        size = (spread + mean.square().mean()).sqrt()
        self._order.setdefault(call.name, []).append(size)
        self._spread.setdefault(call.name, []).append(spread.sqrt())
        return value

    def _recurrence(self, call: LayerCall) -> None:
        path, _, weight = call.name.rpartition(".")
        owner = self._owners.get(path)
        # a packed sequence does not tell its length by its shape
        if call.function.startswith("rnn_") and isinstance(owner, nn.RNN) and call.input.dim() == 3:
            name = f"{path}.{weight.replace('weight_ih', 'weight_hh')}"
            self.recurrences[name] = call.input.size(1 if owner.batch_first else 0)

    def _rectifier(self, value: Tensor) -> None:
        unit = 1 if value.dim() > 3 else -1
        alive = (value > 0).movedim(unit, -1).reshape(-1, value.size(unit)).any(0)
        key = (self._next(), self._last)
        known = self._alive.get(key)
        if known is None or known.shape != alive.shape:
            self._alive[key] = alive
        else:
            known |= alive

    def _next(self) -> int:
        self._place += 1
        return self._place

    def _squasher_of(self, tensor: Tensor) -> tuple[int, str] | None:
        found = self._squashed.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None


def _rows(parts: Sequence[Sequence[Tensor]]) -> list[float]:
    """Return the mean of each list of scalars, with one transfer to the host."""
    if not parts:
        return []
    means = [
        torch.stack([part.float() for part in row]).mean() if row else torch.zeros(())
        for row in parts
    ]
    device = next((row[0].device for row in parts if row), torch.device("cpu"))
    return [float(v) for v in torch.stack([mean.to(device) for mean in means]).tolist()]
