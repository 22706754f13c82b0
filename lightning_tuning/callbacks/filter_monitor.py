"""The weights of the first layer as pictures: do they become features, or stay noise?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tuning._trainer.cadence import epochs_between_readings
from lightning_tuning._trainer.filters.filter_watch import FilterWatch
from lightning_tuning._trainer.fit_losses import fit_losses, forget_losses
from lightning_tuning._trainer.last_words import last_words
from lightning_tuning._trainer.monitor_log import tag_suffix
from lightning_tuning._trainer.report import report
from lightning_tuning._trainer.resting_hooks import RestingHooks, all_awake, awake
from lightning_tuning._trainer.step_hooks import resting_between_steps
from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks as arguments
from lightning_tuning.functional.filters.filter_findings import filters_noisy
from lightning_tuning.functional.filters.filter_result import FilterResult


class FilterMonitor(Callback):
    """Shows what the first layer looks for, as an image grid that can be followed over the fit.

    Convolutions of any kind and number of channels, patch embeddings, and fully connected layers
    over an image are shown, all pictures of a fit on one scale. A number beside them says how
    smooth they are: 1 is constant, 0 is white noise. It changes nothing; the weights are read at
    the ends of epochs.

    Args:
        layer: Path of the layer in the module, such as ``"net.conv1"``; None for the first one
            with filters that a training step calls.
        every_n_epochs: Epochs from one reading to the next; None for each epoch, or fewer in a fit
            of more than a hundred. Pictures are left out where they would take more than 0.2 %
            of the fit's time, the first and the last aside.
        image_shape: Shape of the image that a fully connected layer sees, such as ``[28, 28]`` or
            ``[3, 32, 32]``; None to take it from the batch.

    Raises:
        ValueError: An argument is out of its range, or, at the start of the fit, there is no such
            layer.

    Attributes:
        findings: What was found out in the last fit.
        result: Smoothness and filters over the last fit, a
            :class:`~lightning_tuning.FilterResult`; None before a fit and where there is no layer
            to show.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[FilterMonitor()], logger=False, enable_checkpointing=False
        ... )
    """

    def __init__(
        self,
        layer: str | None = None,
        *,
        every_n_epochs: int | None = None,
        image_shape: Sequence[int] | None = None,
    ) -> None:
        if every_n_epochs is not None:
            arguments.at_least("every_n_epochs", every_n_epochs, 1)
        if image_shape is not None and not _is_shape(image_shape):
            raise ValueError(
                f"image_shape={image_shape!r} must be a list of two or three positive sizes"
            )
        if layer == "":
            raise ValueError("layer='' must be the path of a layer; leave it out for the first one")
        self.layer = layer
        self.every_n_epochs = every_n_epochs
        self.image_shape = image_shape
        self.findings: tuple[Finding, ...] = ()
        self.result: FilterResult | None = None
        self._watch: FilterWatch | None = None
        self._hooks: RestingHooks | None = None
        self._every = 1

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a running fit."""
        return {**awake(vars(self)), "_watch": None, "_hooks": None}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before."""
        if stage == "fit":
            self.findings, self.result, self._watch = (), None, None
            forget_losses(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._every = self.every_n_epochs or epochs_between_readings(trainer)
        self._watch = FilterWatch(
            trainer,
            pl_module,
            layer=self.layer,
            image_shape=self.image_shape,
            suffix=tag_suffix(trainer, self),
        )
        self._hooks = resting_between_steps(
            trainer, self, "on_train_batch_start", "on_before_backward", "on_train_batch_end"
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """See in the first batch which layer is called first."""
        if self._watch is not None:
            self._watch.before_batch(batch)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Copy the weights before the first step."""
        if self._watch is not None:
            self._watch.after_forward()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss."""
        fit_losses(trainer).note(trainer, outputs)
        if self._watch is not None:
            self._watch.after_forward()
            if self._hooks is not None and self._watch.looked:
                self._hooks.rest()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the weights."""
        if self._watch is not None and (trainer.current_epoch + 1) % self._every == 0:
            self._watch.read()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the weights once more if they have changed, and judge."""
        if self._watch is not None:
            self._watch.read(last=True)
            self._watch.note_losses()
            self._settle(trainer, self._watch)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Show what is known so far."""
        if self._watch is not None:
            with last_words(self):
                self._settle(trainer, self._watch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        all_awake(self)
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _settle(self, trainer: Trainer, watch: FilterWatch) -> None:
        watch.close()
        all_awake(self)
        self._watch = None
        self.result = watch.result
        self.findings = filters_noisy(watch.evidence())
        report(trainer, self.findings)


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) in (2, 3)
        and all(isinstance(size, int) and size > 0 for size in value)
    )
