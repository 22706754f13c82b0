"""The module's training step on real batches, without a step of an optimizer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.sandbox import Sandbox
from lightning_tuning._trainer.steps import training_batch


def forward_batches(box: Sandbox, limit: int | None) -> Iterator[Tensor | None]:
    """Run the module's step on the batches of one pass over the training data.

    To be used within :func:`no_steps`.

    Args:
        box: The sandbox, entered.
        limit: At most so many batches; None for all of the pass.

    Yields:
        The loss of each batch, detached; None where the step returned none.
    """
    trainer = box.trainer
    for batch in islice(box._batches.one_pass(epoch=trainer.current_epoch), limit):
        if batch.data is None:  # Lightning skips these
            continue
        try:
            with _block_parallel_sync_behavior(trainer.strategy):
                loss = training_batch(trainer, batch, box._recorder)
        except StopIteration:
            return
        yield loss


@contextlib.contextmanager
def no_steps(trainer: Trainer, *, backward: bool = False) -> Iterator[None]:
    """Let batches accumulate for ever; to be used inside a sandbox, which puts back their traces.

    Under manual optimization the module sends losses backward itself, which is let be.

    Args:
        trainer: The trainer.
        backward: Whether Lightning sends losses backward.

    Raises:
        CannotProbeError: The module steps an optimizer that the trainer does not know.
    """
    fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    skipped = fit_loop._skip_backward
    fit_loop._skip_backward = not backward
    epoch_loop.__dict__["_should_accumulate"] = lambda: True
    # a scheduler has put a step of its own there
    steps = [(optimizer, optimizer.__dict__.get("step")) for optimizer in trainer.optimizers]
    for optimizer in trainer.optimizers:
        optimizer.__dict__["step"] = _only_closure(optimizer.step)
    handle = register_optimizer_step_pre_hook(_refuse_step)
    model = trainer.strategy.model
    # DDP notes in some of these that a batch went unsynchronized
    flags = {name: value for name, value in vars(model).items() if isinstance(value, bool)}
    try:
        yield
    finally:
        handle.remove()
        fit_loop._skip_backward = skipped
        epoch_loop.__dict__.pop("_should_accumulate", None)
        for optimizer, step in steps:
            optimizer.__dict__.pop("step", None)
            if step is not None:
                optimizer.__dict__["step"] = step
        model.__dict__.update(flags)


def silence(module: nn.Module) -> None:
    """Turn off dropout, and whatever else single layers but BatchNorm do in training only.

    What is made of layers keeps its mode: a detector returns losses in training mode only.
    """
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part.dropout = 0.0  # cuDNN goes backward through these in training mode only
        elif isinstance(part, nn.MultiheadAttention) or next(part.children(), None) is None:
            part.training = part.training and isinstance(part, _BatchNorm)


def _only_closure(step: Callable[..., Any]) -> Callable[..., Any]:
    # a scheduler looks for marks of its own on the step
    @functools.wraps(step)
    def stand_in(closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        return torch.enable_grad()(closure)() if closure is not None else None

    return stand_in


def _refuse_step(optimizer: Optimizer, *_: Any) -> None:
    kind = type(optimizer).__name__
    raise CannotProbeError(f"training_step steps an optimizer of its own ({kind})")
