"""A call of a ``torch.autograd.Function``, taken out of its program to be run by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_tuning.functional.gradient.gradient_winners import Winners

_HALF = 1e-5
_HALVINGS = 36
_JUMP, _POLE = 1e-5, 1e2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FunctionCall:
    """A call as it was in a training step.

    Attributes:
        function: The class.
        args: What ``apply`` was given; tensors are copies.
        wanted: Positions of the arguments that backward was to give a gradient for.
        cotangents: What backward was given, one for each output; None for an output without.
        reached: Names of the parameters behind each of ``wanted``, nearest first.
    """

    function: type[torch.autograd.Function]
    args: tuple[Any, ...]
    wanted: tuple[int, ...]
    cotangents: tuple[Tensor | None, ...]
    reached: tuple[tuple[str, ...], ...]


class NotCheckableError(Exception):
    """Why differences say nothing."""


class Alone:
    """The Function with its arguments of that call, to be run again and again."""

    def __init__(self, call: FunctionCall, dtype: torch.dtype | None, seed: int) -> None:
        self.call = call
        self.seed = seed
        self.args = tree_map(lambda value: _converted(value, dtype), call.args)
        self.wanted = [i for i in call.wanted if self.args[i].layout == torch.strided]
        self.outputs = self.run(self.args)
        if not all(bool(out.isfinite().all()) for out in self.outputs):
            raise NotCheckableError("its outputs are not finite")
        if not all(map(torch.equal, self.outputs, self.run(self.args))):
            raise NotCheckableError("its forward is not the same each time")
        used = [
            (out, given)
            for out, given in zip(self.outputs, self._aligned(call.cotangents), strict=True)
            if given is not None
        ]
        if not used:
            raise NotCheckableError("no gradient came in")
        self.cotangents = [None if g is None else g.to(o.dtype) for o, g in self._pairs()]
        # far from the smallest numbers, whatever the loss is scaled by
        self.scale = max(float(_largest(given)) for _, given in used) or 1.0
        self.resolution = max(torch.finfo(out.dtype).eps for out, _ in used)
        self.resolution = max(self.resolution, self._own_resolution())
        if self.resolution > _HALF:
            raise NotCheckableError("it jumps, or computes in half precision")

    def run(self, args: Sequence[Any]) -> list[Tensor]:
        """Return copies of the floating outputs."""
        with torch.no_grad():
            outputs = self._apply(tree_map(_copied, args))
        return [out.detach().clone() for out in outputs]

    def backward(
        self, factor: float = 1.0, *, only: Sequence[Tensor] | None = None
    ) -> list[Tensor | None]:
        """Return what backward gives for each wanted argument.

        Args:
            factor: So many times the gradient comes in that came in the training step.
            only: The entries of each output that it comes in at.
        """
        masks: Sequence[Any] = [1] * len(self.outputs) if only is None else only
        leaves = {i: self.args[i].clone().requires_grad_() for i in self.wanted}
        # a copy, as a leaf can't be written to
        args = [leaves[i].clone() if i in leaves else _copied(a) for i, a in enumerate(self.args)]
        with torch.enable_grad():
            outputs = self._apply(args)
        pairs = [
            (out, factor * given * mask)
            for out, given, mask in zip(outputs, self.cotangents, masks, strict=True)
            if given is not None and out.requires_grad
        ]
        if not pairs or not self.wanted:
            raise NotCheckableError("it gives no gradient")
        outs, given = zip(*pairs, strict=True)
        return list(torch.autograd.grad(outs, list(leaves.values()), given, allow_unused=True))

    def moved(self, generator: torch.Generator, step: float) -> list[Tensor]:
        """Return the outputs after a small random change of all wanted arguments."""
        args = [
            a + step * _size(a) * torch.randn(a.shape, generator=generator).to(a)
            if i in self.wanted
            else a
            for i, a in enumerate(self.args)
        ]
        return self.run(args)

    def _own_resolution(self) -> float:
        """Return how coarse the forward is inside: some compute in single precision."""
        generator = torch.Generator().manual_seed(self.seed)
        fine, coarse, wide = (
            self.distance(self.moved(generator, step)) for step in (1e-12, 1e-8, 1e-5)
        )
        # what stays as it is everywhere is a staircase
        if 0 < fine < 1e-9 or fine == coarse == wide == 0:
            return 0.0
        return max(fine, coarse - 1e-6, torch.finfo(torch.float32).eps)

    def distance(self, outputs: Sequence[Tensor], origin: Sequence[Tensor] | None = None) -> float:
        """Return the largest change of an entry, relative to the largest entry; NaN if not finite.

        Args:
            outputs: What has changed.
            origin: From what; None for the outputs of the call.
        """
        before = self.outputs if origin is None else origin
        pairs = zip(outputs, before, strict=True)
        apart = torch.stack([_largest(a - b) for a, b in pairs]).max()
        return float(apart) / (max(float(_largest(out)) for out in self.outputs) or 1.0)

    def jumps(self, generator: torch.Generator) -> bool:
        """Whether the forward is not continuous, on the way to a shuffle of its arguments."""
        other = [
            a.flatten()[torch.randperm(a.numel(), generator=generator).to(a.device)].view_as(a)
            if i in self.wanted
            else a
            for i, a in enumerate(self.args)
        ]

        def on_the_way(part: float) -> list[Tensor]:
            return self.run(
                [
                    a + part * (b - a) if i in self.wanted else a
                    for i, (a, b) in enumerate(zip(self.args, other, strict=True))
                ]
            )

        low, high = 0.0, 1.0
        at_low, at_high = on_the_way(low), on_the_way(high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            at_middle = on_the_way(middle)
            if self.distance(at_middle, at_low) > self.distance(at_high, at_middle):
                high, at_high = middle, at_middle
            else:
                low, at_low = middle, at_middle
        # at a pole the change grows without end
        return _JUMP < self.distance(at_high, at_low) < _POLE

    def contraction(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the sum over outputs of cotangent / scale times output, float64 on the host."""
        parts = [
            (given.double() / self.scale * out.double()).sum().cpu()
            for out, given in zip(outputs, self.cotangents, strict=True)
            if given is not None
        ]
        return torch.stack(parts).sum().reshape(1)

    def _apply(self, args: Sequence[Any]) -> list[Tensor]:
        torch.manual_seed(self.seed)
        outputs = self.call.function.apply(*args)  # type: ignore[no-untyped-call]
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        self._kept = [isinstance(out, Tensor) and out.is_floating_point() for out in outputs]
        return [out for out, kept in zip(outputs, self._kept, strict=True) if kept]

    def _aligned(self, cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        pairs = zip(cotangents, self._kept, strict=True)
        return [given if kept else None for given, kept in pairs if kept]

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        return zip(self.outputs, self._aligned(self.call.cotangents), strict=True)


class InputSurface:
    """The contraction as a function of one argument."""

    def __init__(self, alone: Alone, position: int, gradient: Tensor | None) -> None:
        self._alone = alone
        self._position = position
        self.argument: Tensor = alone.args[position]
        given = torch.zeros_like(self.argument) if gradient is None else gradient
        self.gradients = given.detach().double().reshape(1, -1) / alone.scale
        self.resolution = max(alone.resolution, torch.finfo(self.argument.dtype).eps)

    def values(self, entries: Tensor, changes: Tensor) -> Tensor:
        """Return the contraction with changes added to some flat entries."""
        return self._alone.contraction(self.outputs(entries, changes))

    def winners(self, entries: Tensor, changes: Tensor) -> Sequence[Tensor]:
        """Return the winners within its forward."""
        seen = Winners()
        with seen:
            self.outputs(entries, changes)
        return seen.winners

    def outputs(self, entries: Tensor, changes: Tensor) -> list[Tensor]:
        """Return all outputs likewise."""
        moved = self.argument.flatten().clone()
        moved[entries.to(moved.device)] += changes.to(moved)
        args = list(self._alone.args)
        # the layout of the argument may matter to its forward
        args[self._position] = torch.empty_like(self.argument).copy_(moved.view_as(self.argument))
        return self._alone.run(args)

    def is_flat(self, entries: Tensor, changes: Tensor) -> bool:
        """Whether no output moves by a bit, to either side."""
        here = self._alone.outputs
        return all(
            all(map(torch.equal, here, self.outputs(entries, sign * changes))) for sign in (1, -1)
        )


def _largest(tensor: Tensor) -> Tensor:
    return tensor.double().abs().max() if tensor.numel() else torch.zeros((), dtype=torch.float64)


def _size(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) or 1.0


def _converted(value: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    copy = value.detach().clone()
    return copy.to(dtype) if dtype is not None and copy.is_floating_point() else copy


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
