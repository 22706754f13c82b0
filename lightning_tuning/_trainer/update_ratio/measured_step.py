"""One step of one optimizer, measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_tuning._trainer.shards import local_part
from lightning_tuning._trainer.update_ratio.update_norms import (
    RowsBefore,
    copies,
    gradient_norms,
    norms,
    real_part_of,
    rows_before,
    stacked,
    subtract_,
)

Choice = Callable[[nn.Parameter], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorStep:
    """What a step did to one tensor: norms of weights, of the update, of the gradient."""

    weight: float
    update: float
    gradient: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerStep:
    """What one step of one optimizer did, on the host.

    Attributes:
        tensors: By parameter, for those that were to be measured and had a gradient.
        before_clipping: Norm of all gradients; NaN where nobody saw them before clipping.
        after_clipping: The same as the optimizer took them.
        rates: The learning rate of each parameter group.
        taken: Whether weights were moved: not where the loss scaler skipped the step.
    """

    tensors: Mapping[nn.Parameter, TensorStep]
    before_clipping: float
    after_clipping: float
    rates: tuple[float, ...]
    taken: bool


class MeasuredStep:
    """Measures one step; what it finds stays on the device until :meth:`read`.

    Args:
        optimizer: Which is going to step.
        wanted: Tells which parameters are to be measured.
        by_row: Tells which of them are embeddings, where only rows with a gradient count.

    Attributes:
        depth: How many calls of the optimizer's step are going on, one within the other.
        has_copies: Whether the weights before the step are known.
        has_gradients: Whether the gradients are.
        finished: Whether the step was taken, as far as the host knows.
    """

    def __init__(self, optimizer: Optimizer, *, wanted: Choice, by_row: Choice) -> None:
        self._optimizer = optimizer
        self._wanted = wanted
        self._by_row = by_row
        self._whole: list[nn.Parameter] = []
        self._before: list[Tensor] = []
        self._rows: dict[nn.Parameter, RowsBefore] = {}
        self._driven: list[nn.Parameter] = []
        self._gradients: list[Tensor] = []
        self._compared: list[Tensor] = []
        self._others: list[Tensor] = []
        self._rates: list[float | Tensor] = []
        self._clipping_seen = False
        self.finished = False
        self.depth = 0
        self.has_copies = False
        self.has_gradients = False

    @torch.no_grad()
    def copy_weights(self, *, before_backward: bool = False) -> None:
        """Keep the weights; those without a gradient too, where the gradients come later."""
        self.has_copies = True
        for parameter, gradient in self._held():
            if not self._wanted(parameter):
                continue
            if before_backward:
                self._whole.append(parameter)
            elif gradient is not None:
                if self._rows_matter(parameter, gradient):
                    self._rows[parameter] = rows_before(_part(parameter), _part(gradient))
                else:
                    self._whole.append(parameter)
        self._before = copies([_part(parameter) for parameter in self._whole])

    @torch.no_grad()
    def read_gradients(self, *, before_clipping: bool, scale: Tensor | None = None) -> None:
        """Take the norms of the gradients.

        Args:
            before_clipping: Whether they are as backward left them.
            scale: What the loss scaler has multiplied them by.
        """
        self.has_gradients, self._clipping_seen = True, before_clipping
        self._driven = [parameter for parameter, gradient in self._held() if gradient is not None]
        self._gradients = self._gradient_norms()
        if scale is not None:
            self._gradients = [norm / scale.to(norm.device) for norm in self._gradients]

    def gradients_again(self) -> None:
        """Know that there were several evaluations, so that the first tells nothing of clipping."""
        self._clipping_seen = False

    @torch.no_grad()
    def finish(self, found_inf: Tensor | None) -> None:
        """Compare the weights with what they were, in the optimizer's post-hook.

        Args:
            found_inf: What a fused optimizer was given to tell it whether to skip the step; it
                unscales gradients by itself, so that nobody can have clipped them.
        """
        if not self.has_gradients:
            self.read_gradients(before_clipping=False)
        cleared = any(parameter.grad is None for parameter in self._driven)
        after = self._gradients if cleared or found_inf is not None else self._gradient_norms()
        weights = norms(self._before)
        subtract_(self._before, [_part(parameter) for parameter in self._whole])
        self._compared = [
            *weights,
            *[rows.norm() for rows in self._rows.values()],
            *norms(self._before),
            *[rows.update_norm(_part(parameter)) for parameter, rows in self._rows.items()],
            *after,
        ]
        # a scheduler fills rates that are tensors in place before the batch ends
        self._rates = [_kept(group.get("lr", math.nan)) for group in self._optimizer.param_groups]
        self._others = [rate for rate in self._rates if isinstance(rate, Tensor)]
        if found_inf is not None:
            self._others.append(found_inf.reshape(()))
        self._before, self._rows = [], dict.fromkeys(self._rows, _NO_ROWS)
        self.finished = True

    def on_device(self, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Return all that was found as one vector.

        Args:
            total: Sums over the processes; called where weights are spread over them, and then in
                each of them.
        """
        measured = [*self._whole, *self._rows]
        # another part of the program may have set requires_grad to False since the step
        device = next((p.device for p in [*self._driven, *measured]), torch.device("cpu"))
        found = stacked([*self._gradients, *self._compared], device)
        of = [*self._driven, *measured, *measured, *self._driven]
        if any(isinstance(parameter, DTensor) for parameter in of):
            # all processes must send as much, also where the step of one was skipped
            squares = found.new_zeros(len(of))
            squares[: len(found)] = found.square()
            shares = torch.tensor([_share(p) for p in of], dtype=found.dtype).to(device)
            found = total(squares * shares).sqrt()[: len(found)]
        return torch.cat([found, stacked(self._others, device)])

    def read(self, values: Sequence[float]) -> OptimizerStep:
        """Name what :meth:`on_device` gave, once it lies on the host."""
        left = iter(values)
        gradients = _take(left, self._driven)
        total = math.hypot(*gradients.values())
        if not self.finished:
            return OptimizerStep(
                tensors={}, before_clipping=total, after_clipping=math.nan, rates=(), taken=False
            )
        measured = [*self._whole, *self._rows]
        weights, updates = _take(left, measured), _take(left, measured)
        after = _take(left, self._driven)
        rates = [next(left) if isinstance(rate, Tensor) else rate for rate in self._rates]
        return OptimizerStep(
            tensors={
                p: TensorStep(weight=weights[p], update=updates[p], gradient=gradients[p])
                for p in measured
                if p in gradients
            },
            before_clipping=total if self._clipping_seen else math.nan,
            after_clipping=math.hypot(*after.values()),
            rates=tuple(rates),
            taken=not any(left),
        )

    def _rows_matter(self, parameter: nn.Parameter, gradient: Tensor) -> bool:
        return gradient.is_sparse or (parameter.dim() > 1 and self._by_row(parameter))

    def _gradient_norms(self) -> list[Tensor]:
        return gradient_norms([_part(p.grad) for p in self._driven if p.grad is not None])

    def _held(self) -> Iterator[tuple[nn.Parameter, Tensor | None]]:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    yield parameter, parameter.grad


_NO_ROWS = RowsBefore(weights=torch.empty(0), counts=torch.empty(0), rows=None)


def _part(tensor: Tensor) -> Tensor:
    """Return what lies in this process, as real numbers."""
    part = local_part(tensor.detach())
    return part if part.is_sparse else real_part_of(part)


def _share(tensor: Tensor) -> float:
    """Return which part of the sum over all processes is this one's, since some hold the same."""
    shards = 1
    if isinstance(tensor, DTensor):
        for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
            shards *= 1 if placement.is_replicate() else size
    return shards / torch.distributed.get_world_size()


def _kept(rate: float | Tensor) -> float | Tensor:
    if isinstance(rate, Tensor) and rate.device.type != "cpu":
        return rate.detach().reshape(()).clone()
    return float(rate)


def _take(left: Iterator[float], of: Sequence[nn.Parameter]) -> dict[nn.Parameter, float]:
    return {parameter: next(left) for parameter in of}
