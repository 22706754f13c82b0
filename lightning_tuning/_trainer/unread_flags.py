"""Attributes of parameters and modules that somebody took for ``requires_grad``."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator

from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_tuning.functional.unread_flags import UnreadFlag, meant_requires_grad


def unread_flags(trainer: Trainer, trained: Collection[int]) -> tuple[UnreadFlag, ...]:
    """Return those that say something else than what their parameters do at this moment.

    Args:
        trainer: A trainer inside ``fit``.
        trained: The ids of parameters that were seen to learn. What does not learn may be left as
            it is in another way, and then a flag that says so is right.
    """
    module = trainer.lightning_module
    # between the steps of a GAN flags go up and down, and the last one says nothing
    learning = trained if len(trainer.optimizers) == 1 else ()
    of_parameters = (
        _flag(path, name, value, [parameter], learning, of_module=False)
        for path, parameter in module.named_parameters()
        for name, value in _flags(parameter)
    )
    of_modules = (
        _flag(path, name, value, list(part.parameters()), learning, of_module=True)
        for path, part in module.named_modules()
        for name, value in _flags(part)
        if not _is_an_option(part, name)
    )
    return tuple(flag for flag in (*of_parameters, *of_modules) if flag is not None)


def _flags(owner: nn.Parameter | nn.Module) -> Iterator[tuple[str, bool]]:
    for name, value in vars(owner).items():
        if isinstance(value, bool) and meant_requires_grad(name):
            yield name, value


def _is_an_option(part: nn.Module, name: str) -> bool:
    """Whether the class of a module has it, so that its own code reads it."""
    declared = hasattr(type(part), name) and not hasattr(nn.Module, name)
    return declared or name in inspect.signature(type(part).__init__).parameters


def _flag(
    path: str,
    name: str,
    value: bool,
    parameters: list[nn.Parameter],
    learning: Collection[int],
    *,
    of_module: bool,
) -> UnreadFlag | None:
    can_learn = [p for p in parameters if not is_lazy(p) and _is_differentiable(p)]
    against = [p for p in can_learn if p.requires_grad != value]
    # some of a module's parameters may be left to learn, or to rest, on purpose
    most = 2 * _numbers(against) > _numbers(can_learn)
    if not most or not (value or any(id(p) in learning for p in against)):
        return None
    return UnreadFlag(
        where=path, attribute=name, value=value, contradicted=len(against), of_module=of_module
    )


def _is_differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _numbers(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
