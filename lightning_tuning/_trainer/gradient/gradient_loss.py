"""The losses of a program's training step as a function that can be called again and again."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.gradient.gradient_precision import in_batch
from lightning_tuning._trainer.object_state import ObjectState
from lightning_tuning._trainer.random_state import get_random_state, set_random_state
from lightning_tuning._trainer.tensor_state import TensorState

Gradients = list[dict[int, Tensor]]
"""For each loss, the gradient of each parameter that gets one, by ``id``."""


_REST = 8
"""The attributes of a program that pays them no heed are put back after so many calls."""


class Change(NamedTuple):
    """What to add to some flat entries of a contiguous parameter."""

    parameter: nn.Parameter
    entries: Tensor
    amounts: Tensor


class RepeatedLoss:
    """``training_step`` on one batch: from the same buffers, attributes and random numbers.

    To be used inside a sandbox, and of :func:`no_steps`. It is called by itself, without the
    trainer's precision and without DDP around it. Under manual optimization each loss that is sent
    backward counts.

    Args:
        trainer: The trainer.
        module: Its module.
        data: The batch, on the device.
        index: Its number.
        double: Whether the module is in double precision.

    Attributes:
        is_single: Whether the last call gave a loss in less than double precision.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, data: Any, index: int, *, double: bool
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._data = data
        self._index = index
        self._double = double
        self._tensors = [*module.parameters(), *module.buffers()]
        self._at_first = TensorState(self._tensors)
        self._moving: TensorState | None = None
        self._objects = ObjectState([module], skip=self._tensors)
        self._random = get_random_state()
        self._with_graph = True
        self._calls, self._rest = 0, 1
        self.is_single = False

    def values(self, change: Change | None = None) -> Tensor:
        """Return the losses, detached, on the host in float64.

        Args:
            change: What to add to a parameter meanwhile.

        Raises:
            CannotProbeError: There is none.
        """
        self._rewind()
        with torch.set_grad_enabled(self._with_graph), _changed(change):
            return _on_host(self._run(None))

    def gradients(self, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, Gradients]:
        """Return the losses, and the gradient of each as backward gives it."""
        self._rewind()
        found: Gradients = []
        with torch.enable_grad():
            losses = self._run((list(parameters), found))
        return _on_host(losses), found

    def spare(self, values: Tensor) -> None:
        """Find out what later calls of :meth:`values` can do without, and give the same.

        That is the graph, where the program takes no gradients itself, and the attributes' way back
        after each call, where the loss does not depend on what a few calls do to them.

        Args:
            values: What the losses are.
        """
        self._with_graph = False
        try:
            self._with_graph = not torch.equal(self.values(), values)
        except Exception:  # it takes gradients itself
            self._with_graph = True
        self._rest = _REST
        self._calls = 0
        if not all(torch.equal(self.values(), values) for _ in range(3)):
            self._rest = 1

    def rewind(self) -> None:
        """Go back to where each call starts."""
        self._at_first.restore()
        self._calls = 0
        self._rewind()

    def _run(self, wanted: tuple[list[nn.Parameter], Gradients] | None) -> list[Tensor]:
        catcher = _Catcher(wanted)
        trainer, module = self._trainer, self._module
        data = in_batch(self._data, double=self._double)
        trainer._logger_connector.on_batch_start(data)
        kwargs = trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), data, self._index)
        with _listening(trainer, module, catcher):
            output = module.training_step(*kwargs.values())
        if module.automatic_optimization:
            loss = output.get("loss") if isinstance(output, Mapping) else output
            if isinstance(loss, Tensor):
                catcher.take(loss)
        if self._moving is None:
            self._moving = TensorState(self._moved())
        self.is_single = any(loss.dtype != torch.float64 for loss in catcher.losses)
        if not catcher.losses:
            raise CannotProbeError("the training step gave no loss")
        return catcher.losses

    def _moved(self) -> list[Tensor]:
        """Return the tensors that a step itself writes to, put back."""
        before = zip(self._at_first._tensors, self._at_first._saved, strict=True)
        moved = [t for t, saved in before if not torch.equal(t.detach(), saved.to(t.device))]
        self._at_first.restore()
        return moved

    def _rewind(self) -> None:
        if self._moving is not None:
            self._moving.restore()
        if self._calls % self._rest == 0:
            self._objects.restore()
        self._calls += 1
        set_random_state(self._random)


@contextlib.contextmanager
def _changed(change: Change | None) -> Iterator[None]:
    """Add to some entries of a parameter meanwhile."""
    if change is None:
        yield
        return
    flat = change.parameter.data.view(-1)
    places = change.entries.to(flat.device)
    kept = flat[places]
    flat[places] = kept + change.amounts.to(flat)
    try:
        yield
    finally:
        flat[places] = kept


class _Catcher(Callback):
    """Takes losses, and their gradients if these are wanted."""

    def __init__(self, wanted: tuple[list[nn.Parameter], Gradients] | None) -> None:
        self._wanted = wanted
        self.losses: list[Tensor] = []

    def on_before_backward(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        loss: Tensor,
    ) -> None:
        """Take a loss that the module sends backward itself."""
        self.take(loss)

    def take(self, loss: Tensor) -> None:
        """Take a loss."""
        if loss.numel() != 1:
            raise CannotProbeError("the loss is not a single number")
        self.losses.append(loss.detach())
        if self._wanted is None:
            return
        parameters, found = self._wanted
        asked = [p for p in parameters if p.requires_grad]
        if not loss.requires_grad or not asked:
            found.append({})
            return
        grads = torch.autograd.grad(loss.sum(), asked, retain_graph=True, allow_unused=True)
        found.append({id(p): _dense(g) for p, g in zip(asked, grads, strict=True) if g is not None})


@contextlib.contextmanager
def _listening(trainer: Trainer, module: LightningModule, catcher: _Catcher) -> Iterator[None]:
    """Let ``catcher`` hear of losses, and the module log as within its training step."""
    callbacks = vars(trainer)["callbacks"]
    name = module._current_fx_name
    vars(trainer)["callbacks"] = [catcher]
    module._current_fx_name = "training_step"
    try:
        yield
    finally:
        vars(trainer)["callbacks"] = callbacks
        module._current_fx_name = name


def _on_host(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.detach().reshape(()).double().cpu() for loss in losses])


def _dense(gradient: Tensor) -> Tensor:
    return gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
