"""Which layers of a program a monitor looks at."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from lightning_tuning._trainer.compiled import compiled_parts, is_wrapper
from lightning_tuning.functional.activations.activation_stats import ACTIVATIONS, Activation

_FUNCTIONS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.ReLU6, "relu6"),  # before Hardtanh, which it extends
    (nn.ReLU, "relu"),
    (nn.Threshold, "threshold"),
    (nn.LeakyReLU, "leaky_relu"),
    (nn.RReLU, "rrelu"),
    (nn.PReLU, "prelu"),
    (nn.Softplus, "softplus"),
    (nn.GLU, "glu"),
    (nn.GELU, "gelu"),
    (nn.SiLU, "silu"),
    (nn.Mish, "mish"),
    (nn.Hardswish, "hardswish"),
    (nn.ELU, "elu"),
    (nn.CELU, "celu"),
    (nn.SELU, "selu"),
    (nn.Tanh, "tanh"),
    (nn.Softsign, "softsign"),
    (nn.Hardtanh, "hardtanh"),
    (nn.Sigmoid, "sigmoid"),
    (nn.Hardsigmoid, "hardsigmoid"),
    (nn.Softmax, "softmax"),
)
_CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A module whose calls are seen.

    Attributes:
        name: Its path.
        module: Itself.
        kind: ``"weight"`` for one with weights, the name of an activation function, or ``""``.
        measured: Whether its outputs are measured; otherwise it tells the place of others.
        places: Whether activations after it are named after it.
        compiled: Whether its calls are made by a graph.
    """

    name: str
    module: nn.Module
    kind: str
    measured: bool
    places: bool
    compiled: bool

    @property
    def activation(self) -> Activation | None:
        """What is known of it as an activation function."""
        return ACTIVATIONS.get(self.kind)

    @property
    def channels_first(self) -> bool:
        """Whether its units lie along the second dimension."""
        return isinstance(self.module, _CHANNELS_FIRST)

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield its own weights, without biases."""
        for name, parameter in self.module.named_parameters(recurse=False):
            if _is_weight(parameter):
                yield _clean(f"{self.name}.{name}"), parameter


class Choice:
    """Which modules and functions are measured.

    Args:
        layers: None for activation functions and layers with weights, ``"all"`` for all leaves, or
            type names and patterns for names.
    """

    def __init__(self, layers: str | Sequence[str] | None) -> None:
        self._everything = layers is None or layers == "all"
        self._leaves = layers == "all"
        self._patterns = () if layers is None or isinstance(layers, str) else tuple(layers)

    def layers(self, module: nn.Module) -> list[Layer]:
        """Return the modules to be seen, measured or not.

        Raises:
            ValueError: A pattern names neither a module, nor a type, nor an activation function.
        """
        compiled = compiled_parts(module)
        found = []
        for path, part in module.named_modules():
            if not path or is_wrapper(part):
                continue
            kind, name = _kind(part), _clean(path)
            measured = self._wants(name, part, kind)
            is_place = kind == "weight" or "Norm" in type(part).__name__
            if measured or is_place:
                found.append(
                    Layer(
                        name=name,
                        module=part,
                        kind=kind,
                        measured=measured,
                        places=is_place,
                        compiled=id(part) in compiled,
                    )
                )
        self._refuse_strangers(module)
        return found

    def raw_weights(
        self, module: nn.Module, layers: Sequence[Layer]
    ) -> dict[int, tuple[str, nn.Parameter]]:
        """Return weights that belong to no measured module, by identity."""
        owned = {id(p) for layer in layers for _, p in layer.weights()}
        return {
            id(parameter): (_clean(name), parameter)
            for name, parameter in module.named_parameters()
            if id(parameter) not in owned
            and _is_weight(parameter)
            and (self._everything or self.wants_function(_clean(name), ""))
        }

    def wants_function(self, name: str, function: str) -> bool:
        """Whether a call of a function outside of its module is measured."""
        return self._everything or any(
            fnmatch.fnmatchcase(name, pattern) or function == pattern for pattern in self._patterns
        )

    def _wants(self, name: str, part: nn.Module, kind: str) -> bool:
        if self._patterns:
            return any(_matches(name, part, pattern) for pattern in self._patterns)
        leaf = next(part.children(), None) is None
        return leaf if self._leaves else kind != ""

    def _refuse_strangers(self, module: nn.Module) -> None:
        named = [(_clean(path), part) for path, part in module.named_modules() if path]
        weights = [_clean(name) for name, _ in module.named_parameters()]
        for pattern in self._patterns:
            # the functional form is named after the layer before it
            is_function = pattern.rpartition(".")[2] in ACTIVATIONS
            is_weight = bool(fnmatch.filter(weights, pattern))
            is_module = any(_matches(name, part, pattern) for name, part in named)
            if not (is_function or is_weight or is_module):
                raise ValueError(
                    f"layers: {pattern!r} is neither the name of a module of the program, nor a "
                    f"pattern for one, nor a type; its modules are, for example, "
                    f"{', '.join(repr(name) for name, _ in named[:5])}"
                )


def first_tensor(output: object) -> Tensor | None:
    """Return the first floating-point tensor of what a module returned.

    Example:
        >>> import torch
        >>> first_tensor({"ids": torch.tensor([1]), "hidden": (torch.ones(2), None)})
        tensor([1., 1.])
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.numel() else None
    if isinstance(output, Mapping):
        parts: Sequence[object] = list(output.values())
    elif isinstance(output, tuple | list):
        parts = output
    elif dataclasses.is_dataclass(output):
        parts = [getattr(output, field.name) for field in dataclasses.fields(output)]
    else:
        return None
    return next((t for part in parts if (t := first_tensor(part)) is not None), None)


def first_in_graph(output: object) -> Tensor | None:
    """As :func:`first_tensor`, in a form that torch 2.7 can put into a graph."""
    parts = output if isinstance(output, (tuple, list)) else [output]
    for part in output.values() if isinstance(output, dict) else parts:
        if isinstance(part, Tensor) and part.is_floating_point():
            return part
    return None


def _matches(name: str, part: nn.Module, pattern: str) -> bool:
    types = {cls.__name__ for cls in type(part).__mro__} - {"Module", "object"}
    return pattern in types or fnmatch.fnmatchcase(name, pattern)


def _kind(part: nn.Module) -> str:
    for cls, function in _FUNCTIONS:
        if isinstance(part, cls):
            return function
    if next(part.children(), None) is not None and not isinstance(part, nn.MultiheadAttention):
        return ""
    return "weight" if any(map(_is_weight, part.parameters(recurse=False))) else ""


def _is_weight(parameter: nn.Parameter) -> bool:
    if isinstance(parameter, nn.UninitializedParameter):
        return True
    return parameter.dim() > 1 and parameter.is_floating_point()


def _clean(path: str) -> str:
    return path.replace("_orig_mod.", "").replace("._orig_mod", "")
