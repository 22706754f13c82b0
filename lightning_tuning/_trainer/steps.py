"""One training batch, one validation batch: Lightning's own path, without its loops around it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer import call
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from lightning_tuning._trainer.batches import ProbeBatch


class LossRecorder(Callback):
    """Notes the losses that are sent backward, for modules whose ``training_step`` returns none."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_before_backward(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        loss: Tensor,
    ) -> None:
        """Note one loss, as it was before fp16 scaling."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None or scaler._scale is None else scaler._scale
        self.losses.append(loss.detach() / scale)

    def take(self) -> list[Tensor]:
        """Return the losses since the last call."""
        losses, self.losses = self.losses, []
        return [loss.float() for loss in losses]


class StepCounter:
    """Tells whether the last batch ended with an optimizer step.

    Under automatic optimization Lightning says so. Under manual optimization the optimizers say it
    by their hooks (any optimizer: some keep another one inside), and Lightning's count adds the
    steps that fp16 overflow skipped.

    Args:
        trainer: A trainer inside ``fit``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._automatic = trainer.lightning_module.automatic_optimization
        self._hook_calls = 0
        self._seen = self._count()

    def __enter__(self) -> StepCounter:
        self._handle = register_optimizer_step_post_hook(self._on_step)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def stepped(self) -> bool:
        """Whether a step was taken since the last call."""
        if self._automatic:
            return not self._trainer.fit_loop._should_accumulate()
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        manual = self._trainer.fit_loop.epoch_loop.manual_optimization
        return manual.optim_step_progress.total.completed + self._hook_calls

    def _on_step(self, *_: object) -> None:
        self._hook_calls += 1


def begin_training(trainer: Trainer) -> None:
    """Call the module's hooks that stand before the first batch of an epoch."""
    call._call_lightning_module_hook(trainer, "on_train_start")
    call._call_lightning_module_hook(trainer, "on_train_epoch_start")


def training_batch(trainer: Trainer, batch: ProbeBatch, recorder: LossRecorder) -> Tensor | None:
    """Run the user's step on one batch, with backward and, where it is due, the optimizer's step.

    Returns:
        The batch's loss, not divided by the number of accumulated batches; None where the step
        returned none and sent none backward.

    Raises:
        StopIteration: The module's ``on_train_batch_start`` asked to end the epoch.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    module = trainer.lightning_module
    epoch_loop.batch_progress.current.ready = batch.position + 1
    epoch_loop.batch_progress.is_last_batch = batch.is_last
    data, index = _to_device(trainer, batch.data, 0), batch.position
    trainer._logger_connector.on_batch_start(data)
    if call._call_lightning_module_hook(trainer, "on_train_batch_start", data, index) == -1:
        raise StopIteration
    call._call_strategy_hook(trainer, "on_train_batch_start", data, index)
    kwargs = epoch_loop._build_kwargs(OrderedDict(), data, index)
    if module.automatic_optimization:
        output = epoch_loop.automatic_optimization.run(trainer.optimizers[0], index, kwargs)
        factor = trainer.accumulate_grad_batches
    else:
        output = epoch_loop.manual_optimization.run(kwargs)
        factor = 1
    call._call_lightning_module_hook(trainer, "on_train_batch_end", output, data, index)
    # what on_batch_end does, less the values for progress bars and callbacks, which are away
    epoch_loop._results.batch = None
    epoch_loop._results.batch_size = None
    sent_backward = recorder.take()
    returned = _returned_loss(output)
    if returned is None:
        return torch.stack(sent_backward).sum() if sent_backward else None
    return returned * factor


def validation_pass(trainer: Trainer) -> dict[str, Tensor]:
    """Run the fit's validation loop once and return all that the module logged, by name."""
    connector = trainer._logger_connector
    connector.reset_metrics()
    first_loop_iter = connector._first_loop_iter
    trainer.validating = True
    try:
        trainer.fit_loop.epoch_loop.val_loop.run()
    finally:
        trainer.training = True
        connector._first_loop_iter = first_loop_iter
    return dict(connector._callback_metrics)


def _to_device(trainer: Trainer, data: Any, dataloader_idx: int) -> Any:
    data = trainer.precision_plugin.convert_input(data)
    data = trainer.lightning_module._on_before_batch_transfer(data, dataloader_idx=dataloader_idx)
    return call._call_strategy_hook(trainer, "batch_to_device", data, dataloader_idx=dataloader_idx)


def _returned_loss(output: Any) -> Tensor | None:
    loss = output.get("loss") if isinstance(output, Mapping) else None
    return loss.detach() if isinstance(loss, Tensor) else None
