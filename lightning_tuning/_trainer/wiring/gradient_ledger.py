"""What becomes of each parameter during real steps: gradients that come, are used, are cleared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from lightning_tuning._trainer.wiring.before_step import BeforeStep

_PATIENCE = 200
"""Batches in a row that no program accumulates before its first step."""


@dataclasses.dataclass(kw_only=True, eq=False)
class Account:
    """The entries of one parameter; flags are scalars on its device until the ledger is closed.

    Attributes:
        parameter: The parameter.
        start: A copy of it at the start.
        calls: How many backward passes reached it.
        fed: Whether one of them brought a gradient that is not zero.
        used: Whether a step of an optimizer found a gradient that is not zero.
        moved_by_step: Whether it differed from its start just after a step.
        moved: Whether it differs from its start at the end.
        lr: The largest learning rate that an optimizer had for it.
    """

    parameter: Tensor
    start: Tensor
    calls: int = 0
    fed: Tensor
    used: Tensor
    moved_by_step: Tensor
    moved: Tensor
    lr: float = 0.0


@dataclasses.dataclass(kw_only=True, eq=False)
class Clearing:
    """Whether one optimizer finds gradients of its last step in the next one.

    Attributes:
        left: Whether the last step left a gradient that is not zero.
        cleared: Whether the gradient was seen to be none or zero since then.
        reached: Whether a backward pass added to it since then.
        old: Number of steps that found an old gradient under the new one.
        all: Number of steps that could have.
    """

    left: Tensor
    cleared: Tensor
    reached: bool = False
    old: Tensor
    all: Tensor


class Row(NamedTuple):
    """The flags of one account on the host, and what its rows are like.

    ``uniform`` tells whether all rows (or, in a constant matrix, all columns) were the same at the
    start; ``spread`` is how much they differ at the end, over the distance that they moved.
    """

    fed: bool
    used: bool
    moved_by_step: bool
    moved: bool
    uniform: bool
    spread: float


class NoStepError(Exception):
    """Gradients came for very many batches, and no optimizer took a step."""


class GradientLedger:
    """Watches parameters by hooks on them and on the optimizers' steps; takes part in nothing.

    Args:
        trainer: A trainer within a sandbox.
        parameters: What to watch, by name.
    """

    def __init__(self, trainer: Trainer, parameters: Mapping[str, Tensor]) -> None:
        self._batch = 0
        self._begins = BeforeStep(trainer.lightning_module, "training_step", self._on_batch)
        self._parameters = dict(parameters)
        self._handles: list[RemovableHandle] = []
        self._clearings: dict[tuple[int, int], Clearing] = {}
        self._by_parameter: dict[int, list[Clearing]] = {}
        self._batches: dict[int, set[int]] = {}
        self.accounts: dict[str, Account] = {}
        self._by_id: dict[int, Account] = {}
        self.steps: dict[int, int] = {}
        self.windows: dict[int, list[int]] = {}

    def __enter__(self) -> GradientLedger:
        self._begins.__enter__()
        self.accounts = {n: _account(p) for n, p in self._parameters.items()}
        self._by_id = {id(a.parameter): a for a in self.accounts.values()}
        for account in self.accounts.values():
            if account.parameter.requires_grad:
                hook = self._on_gradient(account)
                handle = account.parameter.register_hook(hook)  # type: ignore[no-untyped-call]
                self._handles.append(handle)
        self._handles.append(register_optimizer_step_post_hook(self._on_step))
        return self

    def __exit__(self, *_: object) -> None:
        self._begins.__exit__()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for account in self.accounts.values():
            account.moved = _differs(account.parameter, account.start)

    def _on_batch(self) -> None:
        self._batch += 1

    def _on_gradient(self, account: Account) -> Any:
        parameter = account.parameter

        def note(gradient: Tensor) -> None:
            account.calls += 1
            account.fed = account.fed | _nonzero(gradient)
            empty = None if parameter.grad is None else ~_nonzero(parameter.grad)
            for clearing in self._by_parameter.get(id(parameter), ()):
                clearing.reached = True
                clearing.cleared = _true(parameter) if empty is None else clearing.cleared | empty
            batches = self._batches.setdefault(id(parameter), set())
            batches.add(self._batch)
            if len(batches) > _PATIENCE and not self.steps:
                raise NoStepError(f"{_PATIENCE} batches went backward without a step")

        return note

    @torch.no_grad()
    def _on_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.steps[id(optimizer)] = self.steps.get(id(optimizer), 0) + 1
        window: set[int] = set()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                window |= self._batches.pop(id(parameter), set())
                if id(parameter) in self._by_id:
                    self._settle(optimizer, self._by_id[id(parameter)], float(group["lr"]))
        self.windows.setdefault(id(optimizer), []).append(len(window))

    def _settle(self, optimizer: Optimizer, account: Account, lr: float) -> None:
        parameter = account.parameter
        no = ~_true(parameter)
        present = no if parameter.grad is None else _nonzero(parameter.grad)
        account.lr = max(account.lr, lr)
        account.used = account.used | present
        account.moved_by_step = account.moved_by_step | _differs(parameter, account.start)
        key = (id(optimizer), id(parameter))
        clearing = self._clearings.get(key)
        if clearing is None:
            zero = no.long()
            clearing = Clearing(left=no, cleared=no, old=zero, all=zero)
            self._clearings[key] = clearing
            self._by_parameter.setdefault(id(parameter), []).append(clearing)
        elif clearing.reached:
            clearing.all = clearing.all + clearing.left.long()
            clearing.old = clearing.old + (clearing.left & ~clearing.cleared).long()
        clearing.left, clearing.cleared, clearing.reached = present, no, False

    def clearings(self, optimizer: Optimizer) -> list[Clearing]:
        """Return those of one optimizer's parameters."""
        return [c for (owner, _), c in self._clearings.items() if owner == id(optimizer)]


def _account(parameter: Tensor) -> Account:
    no = ~_true(parameter)
    start = parameter.detach().clone()
    return Account(parameter=parameter, start=start, fed=no, used=no, moved_by_step=no, moved=no)


def _true(tensor: Tensor) -> Tensor:
    return torch.ones((), dtype=torch.bool, device=tensor.device)


def _nonzero(gradient: Tensor) -> Tensor:
    dense = gradient._values() if gradient.is_sparse else gradient
    return (dense.detach() != 0).any()


def _differs(parameter: Tensor, start: Tensor) -> Tensor:
    return (parameter.detach() != start).any()


def flags_on_host(accounts: Sequence[Account]) -> list[Row]:
    """Bring the flags of accounts to the host with one transfer."""
    if not accounts:
        return []
    device = accounts[0].start.device
    table = torch.stack([_flags(account).to(device) for account in accounts])
    return [
        Row(bool(row[0]), bool(row[1]), bool(row[2]), bool(row[3]), bool(row[4]), row[5])
        for row in table.tolist()
    ]


def _flags(account: Account) -> Tensor:
    uniform, spread = _rows(account.start, account.parameter.detach())
    values = (account.fed, account.used, account.moved_by_step, account.moved, uniform, spread)
    return torch.stack([value.float() for value in values])


def _rows(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    no = torch.zeros((), device=start.device)
    if start.dim() < 2 or start.size(0) < 2 or start.is_sparse:
        return no, no
    first = start.flatten(1)
    uniform = (first == first[:1]).all()
    if start.dim() == 2 and start.size(1) > 1 and bool((start == start.flatten()[0]).all()):
        by_row, by_column = _deviation(end, 0), _deviation(end, 1)
        deviation = torch.minimum(by_row, by_column)
    else:
        deviation = _deviation(end.flatten(1), 0)
    moved = (end.float() - start.float()).abs().max()
    return uniform, torch.where(moved > 0, deviation / moved, torch.zeros_like(moved))


def _deviation(matrix: Tensor, dim: int) -> Tensor:
    values = matrix.float()
    return (values - values.narrow(dim, 0, 1)).abs().max()
