"""Calls of layers with weights, seen as a program makes them, and what stands before them."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = frozenset(
    {
        *("conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    }
)
_PRODUCTS = frozenset({"linear", "matmul", "mm", "__matmul__"})
_RECURRENT = frozenset({"rnn_tanh", "rnn_relu", "gru", "lstm"})
_NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
_JOINS = frozenset({"cat", "concat", "stack", "hstack", "add", "__add__", "__radd__", "sub"})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """One call of a layer.

    Attributes:
        name: The path of its weight.
        kind: ``"weight"``, ``"recurrent"`` or ``"norm"``.
        function: The name of torch's function.
        input: What went in.
        weight: Its weight; of a recurrent layer the one of the first input.
        bias: Its bias; None where it has none.
        units: The dimension of the features in its input and of the units in its output.
        of_data: Whether the input is made of data alone, by fixed functions.
    """

    name: str
    kind: str
    function: str
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    units: int
    of_data: bool


class LayerCalls(TorchFunctionMode):
    """Shows each call of a layer to a function that may take it over.

    Args:
        module: Whose parameters are known by name.
        see: Given the call and a function that makes it with other arguments; returns its result.
    """

    def __init__(
        self, module: nn.Module, see: Callable[[LayerCall, Callable[..., Any]], Any]
    ) -> None:
        super().__init__()
        named = module.named_parameters(remove_duplicate=True)
        self._names = {id(parameter): name for name, parameter in named}
        self._see = see
        self._derived: dict[int, weakref.ref[Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call, by way of what sees layers if it is one of a layer."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        call = self._layer_call(name, args, kwargs)
        if call is None:
            value = self.other(func, name, args, kwargs)
        else:
            value = self._see(call, _replaced(func, name, args, kwargs))
        self._note(name, args, kwargs, value, is_layer=call is not None)
        return value

    def other(
        self,
        func: Callable[..., Any],
        name: str,  # noqa: ARG002
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Make a call of anything but a layer."""
        return func(*args, **kwargs)

    def _note(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        value: Any,
        *,
        is_layer: bool,
    ) -> None:
        """Remember whether a result depends on a parameter."""
        results = list(_tensors([value]))
        if not results:
            return
        given = list(_tensors([*args, *kwargs.values()]))
        learnt = [self._is_derived(tensor) for tensor in given]
        if name in _JOINS and given and not is_layer:
            # data beside what was learnt, or with a learnt offset, still has the scale of data
            plain = [
                tensor.is_floating_point() and tensor.dim() > 0 and not derived
                for tensor, derived in zip(given, learnt, strict=True)
            ]
            derived = any(learnt) and not any(plain)
        else:
            derived = is_layer or any(learnt)
        if derived:
            for tensor in results:
                self._derived[id(tensor)] = weakref.ref(tensor)

    def _is_derived(self, tensor: Tensor) -> bool:
        if isinstance(tensor, nn.Parameter):
            return True
        known = self._derived.get(id(tensor))
        return known is not None and known() is tensor

    def _layer_call(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> LayerCall | None:
        parts = _parts(name, args, kwargs)
        if parts is None or not parts[0].is_floating_point() or parts[0].dim() == 0:
            return None
        given, weight, bias = parts
        path = "" if weight is None else self._names.get(id(weight), "")
        kind = "norm" if name in _NORMS else "recurrent" if name in _RECURRENT else "weight"
        if weight is None or not path:
            if kind != "norm":
                return None
            path, weight = name, given
        return LayerCall(
            name=path,
            kind=kind,
            function=name,
            input=given,
            weight=weight,
            bias=bias,
            units=_unit_dim(name, given, weight),
            of_data=not self._is_derived(given),
        )


def _unit_dim(name: str, given: Tensor, weight: Tensor) -> int:
    if name in _CONVOLUTIONS:
        return 1 if given.dim() == weight.dim() else 0
    if name in _NORMS - {"layer_norm", "rms_norm"}:
        return min(1, given.dim() - 1)
    return -1


def _parts(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Return input, weight and bias of a call; None if it is none of a layer."""
    if name in _PRODUCTS | _CONVOLUTIONS:
        given = _at(args, kwargs, 0, "input")
        weight = _at(args, kwargs, 1, "weight" if name not in _PRODUCTS - {"linear"} else "other")
        bias = None if name in _PRODUCTS - {"linear"} else _at(args, kwargs, 2, "bias")
        if not isinstance(weight, nn.Parameter) or isinstance(given, nn.Parameter):
            return None
    elif name == "addmm":
        bias, given, weight = (*args[:3], None, None, None)[:3]
        if not isinstance(weight, nn.Parameter):
            return None
    elif name in _RECURRENT:
        weights = next(
            (
                a
                for a in args
                if isinstance(a, list | tuple) and len(a) > 1 and isinstance(a[0], nn.Parameter)
            ),
            None,
        )
        if weights is None:
            return None
        given, weight, bias = args[0], weights[0], None
    elif name in _NORMS:
        given, weight, bias = _at(args, kwargs, 0, "input"), kwargs.get("weight"), None
        if weight is None:
            learnt = [a for a in args[1:] if isinstance(a, nn.Parameter)]
            weight, bias = (*learnt, None, None)[:2]
        bias = kwargs.get("bias", bias)
    else:
        return None
    return (given, weight, bias) if isinstance(given, Tensor) else None


def _at(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _replaced(
    func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return what makes the call, with another input, weight or bias where one is given."""

    def make(*, given: Tensor | None = None, weights: Mapping[int, Tensor] | None = None) -> Any:
        def other(value: Any) -> Any:
            if isinstance(value, Tensor):
                return (weights or {}).get(id(value), value)
            if isinstance(value, list) and value and isinstance(value[0], Tensor):
                return [other(part) for part in value]
            return value

        now = [other(value) for value in args]
        named = {key: other(value) for key, value in kwargs.items()}
        if given is not None:
            place = 1 if name == "addmm" else 0
            if len(now) > place:
                now[place] = given
            else:
                named["input"] = given
        return func(*now, **named)

    return make


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def axes_but(tensor: Tensor, kept: int) -> list[int]:
    """Return all dimensions of a tensor but one."""
    return [dim for dim in range(tensor.dim()) if dim != kept % tensor.dim()]


def first_output(value: Any) -> Tensor:
    """Return the output of a layer; of a recurrent one that of each step."""
    output = value if isinstance(value, Tensor) else value[0]
    assert isinstance(output, torch.Tensor)
    return output
