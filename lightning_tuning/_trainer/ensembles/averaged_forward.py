"""A module whose forward pass is that of several sets of weights, averaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lightning_tuning.functional.ensembles.combine import (
    CombineByName,
    combine_outputs,
    disagreement,
)

Weights = Mapping[str, Tensor]


class AveragedForward:
    """While active, calls of a module run all members and return one output.

    The module keeps its own weights; each member runs through ``torch.func.functional_call``. Of
    several parts that may be called, the outermost is averaged: ``self(x)`` as well as
    ``self.net(x)``.

    Args:
        module: The module.
        members: Weights and buffers by the names of the module's, those of all members stacked
            along a first dimension.
        combine: How outputs become one; see :func:`~lightning_tuning.functional.ensembles.combine`.
        class_dim: Dimension of the classes in the output of one member.
        parts: Names of the parts of the module that may be called; empty for the module itself.
        vectorize: Run all members at once by ``torch.func.vmap`` instead of one after another.
        compare: Also measure how much the members differ.

    Attributes:
        calls: How many calls were averaged.
    """

    def __init__(
        self,
        module: nn.Module,
        members: Weights,
        *,
        combine: CombineByName,
        class_dim: int = 1,
        parts: Sequence[str] = ("",),
        vectorize: bool = False,
        compare: bool = False,
    ) -> None:
        self._module = module
        self._members = members
        self._combine = combine
        self._class_dim = class_dim
        self._parts = parts
        self._vectorize = vectorize
        self._compare = compare
        self._inside = False
        self._put_back = contextlib.ExitStack()
        self._differences: list[Tensor] = []
        self.calls = 0

    def __enter__(self) -> AveragedForward:
        with contextlib.ExitStack() as stack:
            for name in self._parts:
                stack.enter_context(self._averaging(name))
            self._put_back = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._put_back.close()

    @property
    def disagreement(self) -> Tensor | None:
        """How much members differed, over all calls; None where that was not measured."""
        return torch.stack(self._differences).mean() if self._differences else None

    @contextlib.contextmanager
    def _averaging(self, name: str) -> Iterator[None]:
        part = self._module.get_submodule(name)
        original, own = part.forward, vars(part).get("forward")
        prefix = f"{name}." if name else ""
        stacked = _below(self._members, prefix)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return original(*args, **kwargs)
            self._inside = True
            try:
                run = _all_at_once if self._vectorize else _one_by_one
                outputs = run(part, stacked, args, kwargs)
            finally:
                self._inside = False
            self.calls += 1
            self._note(outputs)
            return combine_outputs(outputs, self._combine, class_dim=self._class_dim)

        vars(part)["forward"] = forward
        try:
            yield
        finally:
            if own is None:
                del vars(part)["forward"]
            else:
                vars(part)["forward"] = own

    def _note(self, outputs: Sequence[Any]) -> None:
        if self._compare and isinstance(outputs[0], Tensor) and isinstance(self._combine, str):
            stack = torch.stack([output.detach() for output in outputs])
            self._differences.append(disagreement(stack, self._combine, class_dim=self._class_dim))


def callable_parts(module: LightningModule, output_of: str | None) -> tuple[str, ...]:
    """Return the names of the parts whose outputs stand for the whole module's.

    That is the module itself, where it has a ``forward``, and its only child with weights, which
    steps often call directly.

    Args:
        module: The module.
        output_of: The one part that a person named; None for those above.

    Raises:
        ValueError: There is no such part, or none that stands for the whole.
    """
    names = {name for name, _ in module.named_modules()}
    if output_of is not None:
        if output_of not in names:
            raise ValueError(f"output_of={output_of!r}: {type(module).__name__} has no such part")
        return (output_of,)
    children = [
        name for name, child in module.named_children() if any(True for _ in child.parameters())
    ]
    direct = any(True for _ in module.parameters(recurse=False))
    parts: tuple[str, ...] = ("",) if is_overridden("forward", module, LightningModule) else ()
    if len(children) == 1 and not direct:
        parts += (children[0],)
    if not parts:
        raise ValueError(
            f"{type(module).__name__} has no forward, and its weights are spread over"
            f" {', '.join(children) or 'itself'}: nothing has an output to be averaged. Give it a"
            " forward that the steps call"
        )
    return parts


def _below(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def check_alike(members: Sequence[Weights]) -> None:
    """Check that members are of one architecture.

    Raises:
        ValueError: They don't have the same names and shapes.
    """
    first = members[0]
    for index, member in enumerate(members):
        shapes = {name: tensor.shape for name, tensor in member.items()}
        for name, tensor in first.items():
            if shapes.pop(name, None) != tensor.shape:
                raise ValueError(
                    f"members[{index}] is not of the same architecture as members[0]: {name} has"
                    f" shape {tuple(tensor.shape)} there"
                )
        if shapes:
            raise ValueError(f"members[{index}] has weights that members[0] lacks: {min(shapes)}")


def stacked_weights(members: Sequence[Weights]) -> dict[str, Tensor]:
    """Return the weights of several members by name, stacked along a new first dimension.

    Raises:
        ValueError: They don't have the same names and shapes.
    """
    check_alike(members)
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}


def _one_by_one(part: nn.Module, stacked: Weights, args: Any, kwargs: Any) -> list[Any]:
    count = len(next(iter(stacked.values())))
    members = [{name: tensor[i] for name, tensor in stacked.items()} for i in range(count)]
    return [functional_call(part, weights, args, kwargs) for weights in members]


def _all_at_once(part: nn.Module, stacked: Weights, args: Any, kwargs: Any) -> list[Any]:
    def one(weights: dict[str, Tensor]) -> Any:
        return functional_call(part, weights, args, kwargs)

    outputs = vmap(one, randomness="different")(dict(stacked))
    count = len(next(iter(stacked.values())))
    return [torch.utils._pytree.tree_map(lambda t, i=i: t[i], outputs) for i in range(count)]
