"""How one training step uses its parameters: which it calls, and where it cuts their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

_VIEWS = frozenset({"T", "mT", "H", "mH", "real", "imag", "data"})
_QUESTIONS = frozenset(
    {
        *(
            "size",
            "dim",
            "numel",
            "stride",
            "is_floating_point",
            "is_complex",
            "data_ptr",
            "__len__",
        ),
        *(
            "retain_grad",
            "register_hook",
            "backward",
            "grad",
            "zero_",
            "storage_offset",
            "nelement",
        ),
        *("is_contiguous", "element_size", "get_device", "__repr__", "__format__", "__hash__"),
        *("requires_grad_", "_is_view", "ndimension", "__bool__", "isnan", "isfinite", "isinf"),
        *("untyped_storage", "is_same_size", "is_shared"),
        *(
            "has_names",
            "is_nonzero",
            "__deepcopy__",
            "__reduce_ex__",
            "register_post_accumulate_grad_hook",
        ),
    }
)
_STEPS = frozenset({"round", "floor", "ceil", "trunc", "fix", "sign", "sgn"})
_TO_PYTHON = frozenset({"numpy", "__array__", "tolist", "item", "__float__", "__int__", "tensor"})
_CARRIES = frozenset({"cpu", "cuda", "to", "float", "double", "half", "clone", "contiguous"})
DELIBERATE = frozenset({"detach", "detach_", "data"})
"""What a person writes to hold a gradient back; anything else loses it by the way."""


class Uses(TorchFunctionMode):
    """Notes one step's calls while it is active.

    Args:
        parameters: The module's.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {id(p) for p in parameters}
        self._detached: dict[int, tuple[Tensor, Tensor]] = {}
        self._cuts: list[tuple[str, Tensor]] = []
        self._inputs: dict[int, list[list[Tensor]]] = {}
        self.used: dict[int, bool] = {}
        self.roots: list[Tensor] = []
        self.differentiated: set[int] = set()

    def __enter__(self) -> Uses:
        self._handle = register_module_forward_pre_hook(self._on_forward)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *args: object) -> None:
        super().__exit__(*args)  # type: ignore[no-untyped-call]
        self._handle.remove()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, and note what it does to gradients."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = list(_tensors((args, kwargs)))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name not in _VIEWS:
                return func(*args, **kwargs)
        elif name == "backward":
            self.roots += tensors[:1]
        elif func is torch.autograd.grad:
            self.differentiated.update(id(t) for t in tensors[1:])
        with_grad = torch.is_grad_enabled()
        wanted = [t for t in tensors if t.requires_grad] if with_grad else []
        if name not in _QUESTIONS and name != "__set__":
            for tensor in tensors:
                if id(tensor) in self._known:
                    self.used[id(tensor)] = self.used.get(id(tensor), False) or with_grad
        value = func(*args, **kwargs)
        self._note_cut(name, tensors, wanted, value)
        return value

    def _note_cut(self, name: str, tensors: list[Tensor], wanted: list[Tensor], value: Any) -> None:
        if name in _QUESTIONS or name == "__set__":
            return
        origins = [self._detached[id(t)][1] for t in tensors if id(t) in self._detached]
        if origins and name in _TO_PYTHON:
            self._cuts += [(name, origin) for origin in origins]
        elif origins and name in _CARRIES and isinstance(value, Tensor):
            self._detached[id(value)] = (value, origins[0])
        if not wanted:
            return
        if name in _STEPS:
            self._cuts += [(name, tensor) for tensor in wanted]
        elif not any(t.requires_grad for t in _tensors(value)):
            self._cuts += [(name, tensor) for tensor in wanted]
            if name in DELIBERATE and isinstance(value, Tensor):
                self._detached[id(value)] = (value, wanted[0])

    def _on_forward(self, module: nn.Module, args: Any) -> None:
        # the fields of a tensor are read without asking the mode again
        with torch._C.DisableTorchFunction():
            floats = [t for t in _tensors(args) if t.is_floating_point()]
        self._inputs.setdefault(id(module), []).append(floats)

    def cuts_of(self, parameter: Tensor) -> set[str]:
        """Return the functions that end the gradient of a parameter, by name."""
        return {name for name, tensor in self._cuts if id(parameter) in leaves([tensor])}

    def inputs(self, module: nn.Module) -> list[set[int]]:
        """Return, for each call of a module, the leaves of the graph that its inputs come from."""
        return [set(leaves(call)) for call in self._inputs.get(id(module), ())]


def leaves(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Return the tensors at the ends of a graph that take gradients, by id."""
    found = {id(t): t for t in tensors if t.requires_grad and t.grad_fn is None}
    pending = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return found


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
