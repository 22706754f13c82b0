"""Hooks that measure layers where they are called, on measured steps only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode
from torch.utils.hooks import RemovableHandle

from lightning_tuning._trainer.activations.activation_calls import Calls
from lightning_tuning._trainer.activations.activation_functions import FunctionCalls
from lightning_tuning._trainer.activations.activation_layers import (
    Choice,
    Layer,
    first_in_graph,
    first_tensor,
)
from lightning_tuning._trainer.activations.weight_gradients import WeightGradients
from lightning_tuning._trainer.fast_paths import FastPaths
from lightning_tuning._trainer.shards import local_part
from lightning_tuning.functional.activations.activation_stats import ACTIVATIONS, Activation

Scale = Callable[[], Tensor | None]


class ActivationRecorder:
    """Sees the calls of chosen layers while it is on.

    Modules are seen by hooks that are there on measured steps alone, activation functions and raw
    weights in them by a mode that sees torch's functions. Modules inside a compiled one have hooks
    all the time, which are part of the graph and, on measured steps, hand out references. Nothing
    looks at what may take a fast path, see :class:`FastPaths`.

    Args:
        module: The program's module.
        choice: Which layers.
        gradients: Whether gradients are measured too.

    Attributes:
        calls: What was seen since :meth:`begin`, by layer and place, in the order of first calls.
        weights: Gradients of weights.
        has_graph: Whether a part of the program is compiled.
        inputs: Whether first inputs are measured.
    """

    def __init__(self, module: nn.Module, choice: Choice, *, gradients: bool) -> None:
        self.calls: dict[tuple[str, str], Calls] = {}
        self.inputs = False
        self._choice = choice
        self._gradients = gradients
        self._layers = choice.layers(module)
        self._fast = FastPaths(module)
        self._raw = choice.raw_weights(module, self._layers)
        self.has_graph = any(layer.compiled for layer in self._layers)
        own = [
            (name, parameter)
            for layer in self._layers
            if layer.measured
            for name, parameter in layer.weights()
        ]
        self.weights = WeightGradients([*own, *self._raw.values()])
        self._hooks: list[RemovableHandle] = []
        self._in_graph: list[RemovableHandle] = []
        self._mode: FunctionCalls | None = None
        self._handed_out: list[tuple[Layer, Any]] = []
        self._on = False
        self._in_module = False
        self._place = ""
        self._channels_first: bool | None = None
        self._rows: Sequence[Tensor] = ()

    def close(self) -> None:
        """Measure no more of this step: what follows is not the program at its present weights.

        L-BFGS, for one, evaluates its closure again at weights that it has moved.
        """
        self._on = False
        self.look_away()

    def look_away(self) -> None:
        """See no functions any more: what follows the forward pass calls torch many times.

        The backward pass shows none to any mode, since it is one call itself.
        """
        # a program may have put its own modes on top
        top = _get_current_function_mode()  # type: ignore[no-untyped-call]
        if self._mode is not None and top is self._mode:
            self._leave_mode()

    def put_into_graphs(self) -> None:
        """Put hooks into compiled modules; before a graph exists."""
        for layer in self._layers:
            # these hooks are there in validation too, where a fast path would be left
            if layer.compiled and id(layer.module) not in self._fast.parts:
                hook = self._graph_hook(layer)
                self._in_graph.append(layer.module.register_forward_hook(hook))

    def begin(self) -> None:
        """Look from now on."""
        self.calls, self.weights.found = {}, {}
        self._place, self._channels_first, self._in_module = "", None, False
        self._rows = ()
        self._on = True
        fast = self._fast.taken_by()
        for layer in self._layers:
            if layer.compiled or id(layer.module) in fast:
                continue
            if layer.measured and layer.activation is not None:
                self._hooks.append(layer.module.register_forward_pre_hook(self._entering()))
            self._hooks.append(layer.module.register_forward_hook(self._hook(layer)))
        if not self.has_graph and not fast:
            self._mode = FunctionCalls(
                self._function, self._raw_layer, self._raw, self._attention_inside
            )
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Look no more; everything that was seen is in :attr:`calls`."""
        self._on = False
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._mode is not None:
            self._leave_mode()
        handed_out, self._handed_out = self._handed_out, []
        for layer, output in handed_out:
            self._see(layer, None, output)

    def remove(self) -> None:
        """Leave nothing behind."""
        self.end()
        self.calls, self.weights.found = {}, {}
        for hook in self._in_graph:
            hook.remove()
        self._in_graph = []

    def _leave_mode(self) -> None:
        mode, self._mode = self._mode, None
        assert mode is not None
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def read_weight_gradients(
        self, parameters: Sequence[nn.Parameter], scale: Tensor | None = None
    ) -> None:
        """Measure gradients of those weights that an optimizer is about to change."""
        if self._on:
            with torch._C.DisableTorchFunction():
                self.weights.read(parameters, scale)

    # A hook is a plain function that closes over this object: copies of a module in the middle of
    # a step then share it instead of copying it.

    def _entering(self) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._in_module = True

        return hook

    def _hook(self, layer: Layer) -> Callable[..., None]:
        is_activation = layer.measured and layer.activation is not None

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            if is_activation:
                self._in_module = False
            if self._on and torch.is_grad_enabled():
                # what is measured here is none of the program's own calls
                with torch._C.DisableTorchFunction():
                    self._see(layer, args, output)

        return hook

    def _graph_hook(self, layer: Layer) -> Callable[..., None]:
        def hook(_: nn.Module, _args: Any, output: Any) -> None:
            if self._on and torch.is_grad_enabled():
                value = first_in_graph(output)
                if value is not None:
                    self._handed_out.append((layer, value.detach()))

        return hook

    def _see(self, layer: Layer, args: Any, output: Any) -> None:
        rows: Sequence[Tensor] = ()
        if isinstance(layer.module, nn.MultiheadAttention):
            rows, self._rows = self._rows, ()
        tensor = first_tensor(output)
        if tensor is None or not _can_be_measured(tensor):
            return
        if layer.measured:
            activation = layer.activation
            if activation is not None and activation.attention:
                activation = None  # its rows are counted where its function is seen
            place = self._place if activation is not None else ""
            calls = self._calls((layer.name, place), layer.kind, activation)
            if calls is not None:
                self._measure(calls, tensor)
                if rows:
                    calls.flat.append(rows[0])
                    calls.judged.append(rows[1])
                if self.inputs and args and layer.kind == "weight":
                    given = first_tensor(args[0])
                    if given is not None and _can_be_measured(given):
                        calls.first_input(local_part(given.detach()))
        if layer.places:
            self._place, self._channels_first = layer.name, layer.channels_first

    def _function(self, function: str, value: Tensor, *, rows: Sequence[Tensor] = ()) -> None:
        """See an activation function that is called outside of a module of its own."""
        if not self._on or (self._in_module and not rows):
            return
        name = f"{self._place}.{function}" if self._place else function
        if not self._choice.wants_function(name, function) or not _can_be_measured(value):
            return
        calls = self._calls((name, self._place), function, ACTIVATIONS[function])
        if calls is None:
            return
        self._measure(calls, value)
        if rows:
            calls.flat.append(rows[0])
            calls.judged.append(rows[1])

    def _attention_inside(self, rows: Sequence[Tensor]) -> None:
        """Keep what the layer that runs is to take when its forward pass is over."""
        if self._on:
            self._rows = rows

    def _raw_layer(self, name: str, value: Tensor, *, channels_first: bool) -> None:
        """See a layer that a program makes of a weight by hand."""
        if not self._on or not _can_be_measured(value):
            return
        path = name.removesuffix(".weight")
        calls = self._calls((path, ""), "weight", None)
        if calls is not None:
            self._measure(calls, value)
        self._place, self._channels_first = path, channels_first

    def _calls(
        self, key: tuple[str, str], kind: str, activation: Activation | None
    ) -> Calls | None:
        """Return the record of a layer; None where a checkpointed part is computed again."""
        backward = torch._C._current_graph_task_id() != -1
        known = self.calls.get(key)
        if known is None:
            known = Calls(key=key, kind=kind, activation=activation, late=backward)
            self.calls[key] = known
        return None if backward and not known.late else known

    def _measure(self, calls: Calls, tensor: Tensor) -> None:
        plain = local_part(tensor.detach())
        calls.output(plain, self._unit_dim(plain))
        # a hook on a leaf, such as a weight that a module returns, would stay there for ever
        if self._gradients and tensor.requires_grad and not tensor.is_leaf:
            tensor.register_hook(self._gradient_hook(calls))  # type: ignore[no-untyped-call]

    def _gradient_hook(self, calls: Calls) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            with torch._C.DisableTorchFunction():
                if self._on and _can_be_measured(gradient):
                    calls.gradient(local_part(gradient.detach()))

        return hook

    def _unit_dim(self, tensor: Tensor) -> int:
        first = tensor.dim() > 3 if self._channels_first is None else self._channels_first
        return 1 if first and tensor.dim() > 2 else -1


def _can_be_measured(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and local_part(tensor).numel() > 0
        and tensor.layout is torch.strided
        and not tensor.is_meta
        # inside torch.func a tensor may stand for many
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )
