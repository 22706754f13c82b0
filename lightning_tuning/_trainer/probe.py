"""Experiments with a program before its fit: single steps, short runs, each from the same start."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from torch import Tensor

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.changed_batches import changed, copied
from lightning_tuning._trainer.eagerly import eagerly
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.forward_only import no_steps
from lightning_tuning._trainer.loss_call_recorder import LossCallRecorder
from lightning_tuning._trainer.probe_mode import Mode, set_mode
from lightning_tuning._trainer.probe_results import Run, Step, StepError
from lightning_tuning._trainer.sandbox import Sandbox
from lightning_tuning._trainer.snapshot import Snapshot
from lightning_tuning._trainer.steps import begin_training, training_batch

Watch = contextlib.AbstractContextManager[Any]
_JUDGED_BATCHES = 4
_READ: weakref.WeakKeyDictionary[object, tuple[int, list[ProbeBatch]]]
_READ = weakref.WeakKeyDictionary()


class Probe:
    """A sandbox for experiments; whatever happens in it is put back on leaving.

    Args:
        trainer: A trainer in ``on_train_start``.
        module: Its module.

    Raises:
        CannotProbeError: On entry: the program can't be put back.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self.module = module
        self.box = Sandbox(trainer, module)
        self._base: Snapshot | None = None
        self._stack = contextlib.ExitStack()
        self._still = contextlib.ExitStack()

    def __enter__(self) -> Probe:
        with contextlib.ExitStack() as stack:
            stack.enter_context(eagerly())
            stack.enter_context(self.box)
            stack.callback(self._move)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def batches(self, count: int) -> list[ProbeBatch]:
        """Return the first batches of a pass on the host, or all where there are fewer.

        They are read once for all checks of a fit. Don't write into them.
        """
        loader = self.trainer.fit_loop._combined_loader
        asked, known = _READ.get(loader, (0, []))
        if asked < count:
            self.rewind()
            one_pass = self.box._batches.one_pass(epoch=self.trainer.current_epoch)
            known = list(itertools.islice((b for b in one_pass if b.data is not None), count))
            _READ[loader] = (count, known)
            self.box.rewind()
        return known[:count]

    def rewind(self) -> None:
        """Go back to the fit's start."""
        self._move()
        self.box.rewind()

    def step(
        self,
        batch: ProbeBatch,
        *,
        mode: Mode = "live",
        backward: bool = False,
        seed: int | None = None,
        watch: Sequence[Watch] = (),
    ) -> Step:
        """Run ``training_step`` on a batch without a step of an optimizer.

        The next step starts from the same weights, buffers, attributes and random numbers.
        Gradients may be read by what watches; afterwards they are gone.

        Args:
            batch: The batch, on the host.
            mode: ``"live"`` as in training; ``"silent"`` without dropout, BatchNorm by the batch;
                ``"eval"`` in evaluation mode.
            backward: Whether the loss goes backward.
            seed: A start of the random numbers; None for the fit's own.
            watch: Contexts to be active around the step.

        Raises:
            StepError: The program's step raised.
        """
        base = self._stand_still()
        recorder = LossCallRecorder()
        self.trainer.fit_loop._skip_backward = not backward
        set_mode(self.module, mode)
        if seed is not None:
            torch.manual_seed(seed)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(_block_parallel_sync_behavior(self.trainer.strategy))
                for context in (recorder, *watch):
                    stack.enter_context(context)
                loss = training_batch(self.trainer, copied(batch), self.box._recorder)
        except StopIteration:
            loss = None
        except CannotProbeError:
            raise
        except Exception as error:
            raise StepError(error, recorder.take()) from error
        finally:
            self.box._recorder.take()
            base.restore()
        return Step(loss=loss, calls=tuple(recorder.take()))

    def settle(
        self,
        num_steps: int,
        *,
        batches: Sequence[ProbeBatch] | None = None,
        until: Callable[[int, Tensor], bool] | None = None,
    ) -> None:
        """Take a few optimizer steps; single steps then start from there, until a rewind.

        Args:
            num_steps: Optimizer steps.
            batches: What to train on, over and over; None for the fit's own order.
            until: Called after each step with its number and its loss on the device; True ends it.
        """
        self.rewind()
        self._train(num_steps, self._source(batches, None), (), until or (lambda *_: None))
        self._stand_still(begin=False)

    def validate(
        self,
        *,
        num_batches: int = 2,
        watch: Sequence[Watch] = (),
        batches: Sequence[ProbeBatch] | None = None,
    ) -> dict[str, Tensor]:
        """Run the program's validation on a few batches, always from the same state.

        Args:
            num_batches: At most so many of each validation loader.
            watch: Contexts to be active around it.
            batches: What to validate on instead of the validation data.

        Returns:
            What it logged, by name.

        Raises:
            CannotProbeError: There is no validation data.
            StepError: The program's step raised.
        """
        base = self._stand_still()
        try:
            with contextlib.ExitStack() as stack:
                for context in watch:
                    stack.enter_context(context)
                return self.box.evaluate(num_batches=num_batches, batches=batches)
        except CannotProbeError:
            raise
        except Exception as error:
            raise StepError(error, ()) from error
        finally:
            base.restore()

    def run(
        self,
        num_steps: int,
        *,
        prepare: Callable[[], None] | None = None,
        batches: Sequence[ProbeBatch] | None = None,
        change: Callable[[Any], Any] | None = None,
        schedules: bool = True,
        judged_by: Sequence[ProbeBatch] | None = None,
        watch: Sequence[Watch] = (),
        until: Callable[[int, Tensor], bool] | None = None,
    ) -> Run:
        """Train from the fit's start, and judge it on a few training batches.

        Args:
            num_steps: Optimizer steps.
            prepare: Changes something about the program before the first step.
            batches: What to train on, over and over; None for the fit's own order.
            change: Changes the data of each batch, on the host, for training and judging.
            schedules: Whether schedulers that go by steps do so.
            judged_by: The batches to judge by; None for the first four.
            watch: Contexts to be active during training.
            until: Called after each step with its number and its loss on the device; True ends it.
        """
        judges = self.batches(_JUDGED_BATCHES) if judged_by is None else list(judged_by)
        self.rewind()
        if prepare is not None:
            prepare()
        before = self._judged(judges, change, begin=True)
        source = self._source(batches, change)
        losses: list[Tensor] = []

        def note(step: int, loss: Tensor) -> bool:
            losses.append(loss)
            if schedules:
                self.trainer.fit_loop.epoch_loop.update_lr_schedulers(
                    "step", update_plateau_schedulers=False
                )
            return until is not None and until(step, loss)

        problem = ""
        try:
            self._train(num_steps, source, watch, note)
        except CannotProbeError:
            raise
        except Exception as error:  # a diverged program may say anything
            problem = f"{type(error).__name__}: {error}"
        after = float("nan")
        if not problem:
            try:
                after = self._judged(judges, change, begin=False)
            except StepError as error:
                problem = str(error)
        return Run(losses=self.on_host(losses), before=before, after=after, error=problem)

    def _source(
        self, batches: Sequence[ProbeBatch] | None, change: Callable[[Any], Any] | None
    ) -> Iterator[ProbeBatch] | None:
        if batches is None and change is None:
            return None
        own = self.box._endless_batches() if batches is None else itertools.cycle(batches)
        return (changed(batch, change) for batch in own)

    def _train(
        self,
        num_steps: int,
        source: Iterator[ProbeBatch] | None,
        watch: Sequence[Watch],
        note: Callable[[int, Tensor], bool | None] = lambda _step, _loss: None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            for context in watch:
                stack.enter_context(context)
            self.box.run(num_steps, after_step=note, batches=source)

    def _judged(
        self, judges: Sequence[ProbeBatch], change: Callable[[Any], Any] | None, *, begin: bool
    ) -> float:
        """Return the mean loss over fixed batches at the present weights, which stay."""
        losses = []
        now = Snapshot(self.trainer, self.module)
        self._stand_still(begin=begin)
        try:
            for batch in judges:
                step = self.step(changed(batch, change), mode="silent", seed=1)
                if step.loss is not None:
                    losses.append(step.loss)
        finally:
            self._move()
            now.restore()
        values = self.on_host(losses)
        return sum(values) / len(values) if values else float("nan")

    def _stand_still(self, *, begin: bool = True) -> Snapshot:
        if self._base is None:
            self.trainer.training = True
            if begin:
                begin_training(self.trainer)
            self._still.enter_context(no_steps(self.trainer))
            self._base = Snapshot(self.trainer, self.module)
        return self._base

    def _move(self) -> None:
        self._still.close()
        self._base = None

    def on_host(self, losses: Sequence[Tensor]) -> tuple[float, ...]:
        """Bring scalars to the host with one transfer, as means over the ranks."""
        if not losses:
            return ()
        values = torch.stack([loss.detach().reshape(()).float() for loss in losses])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.broadcast(
                self.trainer.strategy.reduce(values, reduce_op="mean")
            )
        return tuple(values.tolist())


def forget_batches(trainer: Trainer) -> None:
    """Let go of the batches that the checks of this fit have read."""
    _READ.pop(trainer.fit_loop._combined_loader, None)
