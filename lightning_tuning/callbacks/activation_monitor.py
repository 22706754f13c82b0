"""What each layer puts out and gets back, over the whole fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_tuning._trainer.activations.activation_watch import ActivationWatch
from lightning_tuning._trainer.fit_losses import forget_losses
from lightning_tuning._trainer.last_words import last_words
from lightning_tuning._trainer.monitor_log import tag_suffix
from lightning_tuning._trainer.report import report
from lightning_tuning._trainer.resting_hooks import all_awake, awake
from lightning_tuning._trainer.step_hooks import StepHooks
from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks as arguments
from lightning_tuning.functional.activations.activation_result import ActivationResult


class ActivationMonitor(Callback):
    """Shows what every layer puts out, and which gradient it gets back, over the fit.

    On measured steps, hooks compute histograms, mean and deviation of the layers' outputs, the
    share of dead and saturated units, and the gradients with respect to outputs and weights. All
    of it stays on the device and comes to the host in one copy. On other steps nothing is done.
    It changes nothing: weights, random numbers and what the program logs are the same bit for bit.

    Activation functions are seen both as modules and as functions (``F.relu`` and the like).

    Args:
        layers: None for activation functions and layers with weights, ``"all"`` for all modules
            without children, or a list of type names and patterns for names, such as
            ``["Conv2d", "encoder.*"]``.
        gradients: Whether gradients are measured.
        bins: Number of bins of each histogram.
        every_n_steps: Optimizer steps from one measurement to the next; None for the trainer's
            ``log_every_n_steps``, or what gives twenty points at least and a hundred at most.

    Raises:
        ValueError: An argument is out of its range, or, at the start of the fit, a pattern fits no
            layer.

    Attributes:
        findings: What was found out in the last fit.
        result: All layers over the last fit, an :class:`~lightning_tuning.ActivationResult`; None
            before a fit.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[ActivationMonitor()], logger=False, enable_checkpointing=False
        ... )
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        gradients: bool = True,
        bins: int = 64,
        every_n_steps: int | None = None,
    ) -> None:
        if layers is not None and layers != "all" and not _are_names(layers):
            raise ValueError(
                f"layers={layers!r} must be 'all', or a list of type names and patterns for names"
            )
        if not isinstance(gradients, bool):
            raise ValueError(f"gradients={gradients!r} must be True or False")
        arguments.at_least("bins", bins, 4)
        if every_n_steps is not None:
            arguments.steps("every_n_steps", every_n_steps)
        self.layers = layers
        self.gradients = gradients
        self.bins = bins
        self.every_n_steps = every_n_steps
        self.findings: tuple[Finding, ...] = ()
        self.result: ActivationResult | None = None
        self._watch: ActivationWatch | None = None
        self._hooks: StepHooks | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a running fit."""
        return {**awake(vars(self)), "_watch": None, "_hooks": None}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before."""
        if stage == "fit":
            self.findings, self.result = (), None
            self._leave()
            forget_losses(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the layers, and put hooks into modules that are going to be compiled."""
        self._watch = ActivationWatch(
            trainer,
            pl_module,
            layers=self.layers,
            gradients=self.gradients,
            bins=self.bins,
            every_n_steps=self.every_n_steps,
            suffix=tag_suffix(trainer, self),
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; all states are restored at this moment."""
        if self._watch is not None:
            self._hooks = StepHooks(
                trainer,
                self,
                self._watch.start(),
                "on_before_zero_grad",
                "on_before_backward",
                "on_before_optimizer_step",
                "on_train_batch_end",
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at this step if it is to be measured."""
        if self._watch is not None and self._watch.before_batch() and self._hooks is not None:
            self._hooks.measure()

    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """See that the forward pass is over."""
        if self._watch is not None:
            self._watch.after_forward()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Remember what a loss scaler does."""
        if self._watch is not None:
            self._watch.before_backward()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradients of weights, before clipping."""
        if self._watch is not None:
            self._watch.before_optimizer_step(optimizer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write down what was measured."""
        if self._watch is not None:
            self.findings += self._watch.after_batch(outputs)
            if self._hooks is not None:
                self._hooks.measured()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, where there is time for it."""
        if self._watch is not None:
            self._watch.after_validation()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was found."""
        self._finish(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave nothing behind, and say what is known."""
        if trainer.world_size > 1:
            self._leave()  # other ranks may not be here to answer
        else:
            with last_words(self):
                self._finish(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing behind."""
        self._leave()

    def _finish(self, trainer: Trainer) -> None:
        watch = self._let_go()
        if watch is None:
            return
        watch.remove()
        told = {finding.code for finding in self.findings}
        self.findings, self.result = watch.finish()
        # what had to be known at once was shown then
        report(trainer, [finding for finding in self.findings if finding.code not in told])
        if self.result is not None:
            watch.draw(self.result)

    def _leave(self) -> None:
        watch = self._let_go()
        if watch is not None:
            watch.remove()

    def _let_go(self) -> ActivationWatch | None:
        all_awake(self)
        watch, self._watch = self._watch, None
        return watch


def _are_names(layers: object) -> bool:
    return (
        isinstance(layers, Sequence)
        and not isinstance(layers, str)
        and bool(layers)
        and all(isinstance(name, str) and name for name in layers)
    )
