"""An exponential moving average of the weights, used wherever the model is judged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_tuning._trainer.averaging.average_track import AverageSettings
from lightning_tuning._trainer.averaging.averaged_weights import AveragedWeights, weights_in
from lightning_tuning._trainer.averaging.averaging_end import end_training
from lightning_tuning._trainer.averaging.averaging_start import (
    note_length,
    place_among,
    refuse_what_cannot_be_averaged,
    settle_decay,
)
from lightning_tuning._trainer.averaging.saved_weights import LoadedWeights
from lightning_tuning._trainer.averaging.second_pass import SecondPass, why_not
from lightning_tuning._trainer.averaging.second_world import History
from lightning_tuning._trainer.choices import log_choices
from lightning_tuning._trainer.report import report
from lightning_tuning.findings import Finding
from lightning_tuning.functional import ema_findings as say
from lightning_tuning.functional.checks import at_least, choice, decay_below_one
from lightning_tuning.functional.ema import parse_half_life


class EMAWeights(Callback):
    """Keeps an exponential moving average of the weights and judges the model by it.

    After each optimizer step ``average = d * average + (1 - d) * weights``, in one fused operation.
    Validation, ``trainer.validate / test / predict`` and every checkpoint use the average; training
    goes on with the weights themselves. After the fit the module holds the average. Optimizers
    count their steps each for itself, and a step that fp16 skips does not count; parameters that
    no optimizer holds serve as they are.

    With ``warmup``, ``d = min(decay, (1 + t) / (10 + t))`` at ``t`` steps since the average began
    (TensorFlow's ``ExponentialMovingAverage(num_updates)``; Shamir and Zhang 2013 with eta = 8):
    0.182, 0.55, 0.918, 0.991 at steps 1, 10, 100, 1000, and 0.999 from step 8990 on.

    The first of several in a trainer puts its average into the module; the others keep theirs
    beside it, to be reached by :meth:`averaged` and in checkpoints.

    Args:
        decay: ``d`` in the long run, from 0 up to but not including 1.
        half_life: Instead of ``decay``: how long until an old weight counts half, in optimizer
            steps (``700``), or as text in samples or epochs (``"10000 samples"``,
            ``"0.5 epochs"``).
        every_n_steps: Move the average after each so many optimizer steps, by the product of their
            decays, so that its time constant stays.
        update_after_step: So many optimizer steps before the average begins; until then it is the
            weights.
        warmup: Let early averages follow the weights.
        buffers: ``"copy"`` them with each update, ``"average"`` the floating ones, or ``"skip"``
            them: the module's own serve both sets of weights. Where the average is updated after
            every step, a copy is the module's own too.
        device: ``"cpu"`` keeps the average in host memory; ``None`` where the weights are.
        validate: What validation judges: ``"ema"``, ``"raw"`` (the weights themselves), or
            ``"both"`` in one pass: each metric is then logged a second time, with the suffix
            ``_raw``, for the weights themselves. A best value so far is remembered for each; a
            resumed fit goes on from the average's.
        after_fit: What the module holds after the fit, ``"ema"`` or ``"raw"``.
        recalibrate_batch_norm: At the end of the fit, recompute BatchNorm's statistics for the
            averaged weights in one pass over the training data.

    Raises:
        ValueError: An argument is out of its range, or ``decay`` and ``half_life`` are both given.
        MisconfigurationException: At the start of the fit: another callback averages the weights,
            the strategy is one that is not supported, or a half-life in samples or epochs can't be
            converted.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EMAWeights(0.999)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        half_life: float | str | None = None,
        every_n_steps: int = 1,
        update_after_step: int = 0,
        warmup: bool = True,
        buffers: Literal["copy", "average", "skip"] = "copy",
        device: str | None = None,
        validate: Literal["ema", "raw", "both"] = "ema",
        after_fit: Literal["ema", "raw"] = "ema",
        recalibrate_batch_norm: bool = False,
    ) -> None:
        decay_below_one("decay", decay)
        if half_life is not None:
            parse_half_life(half_life)
            if decay != 0.999:
                raise ValueError(f"decay={decay!r} and half_life={half_life!r}: give one of them")
        at_least("every_n_steps", every_n_steps, 1)
        at_least("update_after_step", update_after_step, 0)
        choice("buffers", buffers, ("copy", "average", "skip"))
        if device not in (None, "cpu"):
            raise ValueError(f"device={device!r} must be 'cpu', or None for the weights' own")
        choice("validate", validate, ("ema", "raw", "both"))
        choice("after_fit", after_fit, ("ema", "raw"))
        self.decay = decay
        self.half_life = half_life
        self.every_n_steps = every_n_steps
        self.update_after_step = update_after_step
        self.warmup = warmup
        self.buffers: Literal["copy", "average", "skip"] = buffers
        self.device = device
        self.validate: Literal["ema", "raw", "both"] = validate
        self.after_fit: Literal["ema", "raw"] = after_fit
        self.recalibrate_batch_norm = recalibrate_batch_norm
        self._findings: list[Finding] = []
        self._weights: AveragedWeights | None = None
        self._second: SecondPass | None = None
        self._history = History()
        self._loaded: LoadedWeights | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the weights out: they belong to one module in one process."""
        return {**vars(self), "_weights": None, "_second": None, "_loaded": None}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the callback has to say about the latest fit."""
        return tuple(self._findings)

    @property
    def average(self) -> dict[str, Tensor]:
        """A copy of the averages by path, of what has one; empty before they begin.

        Of weights that are sharded over processes it is the local part. The module's
        ``state_dict()`` under :meth:`averaged` has the rest too.
        """
        values = {} if self._weights is None else self._weights.average()
        return {name: value.detach().clone() for name, value in values.items()}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average into the module for the time of a block, in a fit or after it."""
        weights = self._weights
        with contextlib.nullcontext() if weights is None else weights.sets.using("ema"):
            yield

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before; a checkpoint is restored only after this."""
        if stage == "fit":
            self._findings = []
            self._loaded = self._second = None
            self._history = History()
            self._drop_weights()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take both sets of weights out of the checkpoint."""
        # the module holds the file's weights now: those of the fit before don't belong to it
        self._drop_weights()
        self._weights, self._loaded = weights_in(
            checkpoint, trainer, pl_module, owner=self, validates_raw=self.validate != "ema"
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what can't work."""
        refuse_what_cannot_be_averaged(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the weights, or go on with what the checkpoint held."""
        place = place_among(trainer, self)
        if place > 0:
            self._findings.append(say.not_judging_finding(place))
        settings = AverageSettings(
            every_n_steps=self.every_n_steps,
            update_after_step=self.update_after_step,
            warmup=self.warmup,
            buffers=self.buffers,
            on_host=self.device == "cpu",
        )
        self._weights = AveragedWeights.begin(
            trainer, pl_module, settings, owner=self, judges=place == 0
        )
        assert self._weights.averages is not None
        if self._loaded is not None:
            self._weights.take_up(self._loaded)
            self._loaded = None
        elif trainer.global_step > 0:
            self._findings.append(say.started_from_weights_finding(trainer.global_step))
        note_length(trainer, self._weights.averages, self.half_life)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Settle the decay before the first step."""
        averages = None if self._weights is None else self._weights.averages
        if averages is not None and averages.decay is None:
            told = settle_decay(
                trainer, averages, batch, decay=self.decay, half_life=self.half_life
            )
            self._findings.append(told)
            report(trainer, self.findings)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the device finish its copy of the weights before it changes them."""
        if self._weights is not None and self._weights.averages is not None:
            self._weights.averages.before_step(optimizer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put what is to be judged into the module."""
        if trainer.sanity_checking:
            return
        judged = self._begin_evaluation(trainer, pl_module, self.validate)
        if judged is not None and self.validate == "both" and self._can_do_both(trainer, pl_module):
            sets = judged.sets
            self._second = SecondPass(
                *(trainer, pl_module), weights=lambda: sets.using("raw"), history=self._history
            )
            self._second.start()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the raw weights too."""
        if self._second is not None:
            self._second.start_epoch()

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch for the raw weights."""
        if self._second is not None:
            self._second.keep_batch(batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Judge the raw weights on the same batch."""
        if self._second is not None:
            self._second.run_batch(batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the raw weights too."""
        if self._second is not None:
            self._second.end_epoch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put back what was in the module."""
        self._end_evaluation()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module."""
        self._begin_evaluation(trainer, pl_module, "ema")

    on_predict_start = on_test_start
    on_test_end = on_predict_end = on_validation_end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module."""
        if self._weights is not None and self._weights.averages is not None:
            told = end_training(
                trainer,
                self._weights,
                after_fit=self.after_fit,
                recalibrate=self.recalibrate_batch_norm,
            )
            self._findings += told
            report(trainer, told)
        log_choices(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module, though a resumed fit had no step left to take."""
        if self._weights is not None:
            self._weights.put(self.after_fit)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Put each set of weights where it belongs, before a checkpoint is saved."""
        self._end_evaluation()
        if self._weights is None:
            return
        try:
            self._weights.finish(interrupted=True)
        except Exception as error:
            # the person has an error of their own to look at
            rank_zero_warn(f"EMAWeights: the averages are lost, because of {error!r}")
            self._weights = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save both sets of weights, and what an exact resume needs."""
        if self._weights is not None and self._weights.sets.module is pl_module:
            self._weights.save(checkpoint)

    def _begin_evaluation(
        self, trainer: Trainer, module: LightningModule, which: str
    ) -> AveragedWeights | None:
        """Put what is to be judged into the module; return its weights if they are kept here."""
        weights = self._weights
        if weights is None or not weights.judges or weights.sets.module is not module:
            return None
        if trainer.state.fn != TrainerFn.FITTING and trainer.ckpt_path not in (None, weights.path):
            # Lightning tells of no file that holds weights alone
            self._drop_weights()
            return None
        weights.begin_evaluation("raw" if which == "raw" else "ema")
        return weights

    def _drop_weights(self) -> None:
        if self._weights is not None:
            self._weights.forget()
            self._weights = None

    def _end_evaluation(self) -> None:
        if self._second is not None:
            self._second.close()
            self._second = None
        if self._weights is not None:
            self._weights.end_evaluation()

    def _can_do_both(self, trainer: Trainer, module: LightningModule) -> bool:
        reason = why_not(trainer, module)
        if reason is not None and all(f.code != "ema_not_both" for f in self._findings):
            told = say.one_pass_finding(reason)
            self._findings.append(told)
            report(trainer, [told])
        return reason is None
