"""Real training steps of the user's program that leave no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tuning._trainer.batches import (
    KeptBatches,
    ProbeBatch,
    ProbeBatches,
    data_holders,
)
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.object_state import ObjectState
from lightning_tuning._trainer.random_state import kept_random_state, reseed
from lightning_tuning._trainer.shards import UNTRIED_STRATEGIES
from lightning_tuning._trainer.snapshot import Shield, Snapshot
from lightning_tuning._trainer.steps import (
    LossRecorder,
    StepCounter,
    begin_training,
    training_batch,
    validation_pass,
)
from lightning_tuning._trainer.uninterrupted import Uninterrupted

_BATCHES_WITHOUT_STEP = 1000
"""So many batches in a row without an optimizer step or a loss end a run with an error."""


class Sandbox:
    """Runs training steps through the user's own hooks, precision and strategy; puts all back.

    Entered in ``on_train_start``, when weights are restored and data are set up. Whatever happens
    inside (an exception, Ctrl-C), leaving it puts back, in place: weights, buffers, gradients,
    optimizers, loss scaler, random generators, the plain attributes of module, data module, data
    sets and samplers, and the trainer's counters, results, callbacks and loggers. Meanwhile the
    callbacks are silent and loggers are dummies.

    Args:
        trainer: A trainer inside ``fit``.
        module: Its module.

    Raises:
        CannotProbeError: On entry: the strategy, the data or the module can't be put back.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = trainer
        self.module = module
        self._recorder = LossRecorder()
        self._validation: tuple[CombinedLoader, list[int | float]] | None = None
        self._losses: Generator[Tensor, None, None] | None = None
        self._order = 0
        self._end_pass = False

    def __enter__(self) -> Sandbox:
        loader = self.trainer.fit_loop._combined_loader
        _refuse_what_cannot_be_put_back(self.trainer, self.module)
        assert loader is not None
        self._batches = ProbeBatches(loader)
        self._snapshot = Snapshot(self.trainer, self.module)
        try:
            with Uninterrupted():
                self._shield = Shield(self.trainer, [self._recorder])
        except KeyboardInterrupt:
            self._shield.restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with Uninterrupted():
            self._put_back()

    @property
    def optimizers(self) -> list[Optimizer]:
        """The fit's own optimizers."""
        return self.trainer.optimizers

    @property
    def callbacks(self) -> list[Callback]:
        """The fit's own callbacks, which are silent meanwhile."""
        return self._shield.callbacks

    def rewind(self, *, order: int = 0) -> None:
        """Go back to the state at entry; the next run starts with the first batch of a pass.

        Args:
            order: 0 repeats the data order and the random numbers of the first run; any other
                number gives an independent order, the same for the same number.
        """
        with Uninterrupted():
            self._put_back()
            self._shield = Shield(self.trainer, [self._recorder])
        self._order = order
        if order:
            reseed(order)
            self._batches.reseed(order)

    def run(
        self,
        num_steps: int,
        *,
        after_step: Callable[[int, Tensor], bool | None],
        before_step: Callable[[int], None] | None = None,
        batches: Iterable[ProbeBatch] | None = None,
    ) -> None:
        """Take optimizer steps; goes on from where the last run stopped, unless rewound.

        Args:
            num_steps: So many optimizer steps at most, however many batches each accumulates.
            after_step: Called after each with its number (from 0) and the mean loss of its batches,
                a detached scalar on the device; returning True ends the run.
            before_step: Called before the first batch of each step.
            batches: What to train on instead of the fit's own data, for this run only.

        Raises:
            CannotProbeError: The data are empty, or the program takes no steps or has no loss.
        """
        own = None if batches is None else self._losses_of_steps(batches)
        for step in range(num_steps):
            if before_step is not None:
                before_step(step)
            loss = self._next_loss() if own is None else next(own, None)
            if loss is None or after_step(step, loss):
                break

    def evaluate(
        self, *, num_batches: int, batches: Sequence[ProbeBatch] | None = None
    ) -> dict[str, Tensor]:
        """Run the user's validation on a few batches, the same ones each time.

        Args:
            num_batches: At most so many batches of each validation loader.
            batches: What to validate on instead of the fit's own data.

        Returns:
            What the module logged, by name.

        Raises:
            CannotProbeError: There is no validation data, or several loaders and other batches.
        """
        with kept_random_state():
            if self._validation is None:
                self._validation = self._read_validation_data(num_batches)
            val_loop = self.trainer.fit_loop.epoch_loop.val_loop
            own = self._validation
            val_loop._combined_loader, val_loop._max_batches = (
                own if batches is None else _in_the_place_of(own[0], batches)
            )
            return validation_pass(self.trainer)

    def _put_back(self) -> None:
        # whatever goes wrong with one of these, the others take their turn; last comes first
        with contextlib.ExitStack() as stack:
            stack.callback(self._snapshot.restore)
            stack.callback(self._shield.restore)
            stack.callback(self._batches.close)
            stack.callback(self._recorder.take)
            if self._losses is not None:
                stack.callback(self._losses.close)
                self._losses = None

    def _next_loss(self) -> Tensor:
        if self._losses is None:
            self._losses = self._losses_of_steps(self._endless_batches())
        try:
            return next(self._losses)
        except BaseException:
            # a generator that raised is at its end; another run starts anew
            self._losses = None
            raise

    def _losses_of_steps(self, batches: Iterable[ProbeBatch]) -> Generator[Tensor, None, None]:
        """Yield the mean loss of each accumulation window that ended with an optimizer step."""
        self.trainer.training = True
        begin_training(self.trainer)
        window: list[Tensor] = []
        idle = 0
        with StepCounter(self.trainer) as counter:
            for batch in batches:
                if idle == _BATCHES_WITHOUT_STEP:
                    what = "an optimizer step" if window else "a loss"
                    raise CannotProbeError(f"{idle} batches gave not one with {what}")
                idle += 1
                try:
                    loss = training_batch(self.trainer, batch, self._recorder)
                except StopIteration:
                    self._end_pass = True
                    continue
                if loss is not None:
                    window.append(loss.float())
                if counter.stepped() and window:
                    yield torch.stack(window).mean()
                    window, idle = [], 0

    def _endless_batches(self) -> Iterator[ProbeBatch]:
        epoch = self.trainer.current_epoch + 1000 * self._order
        while True:
            self._end_pass = False
            for batch in self._batches.one_pass(epoch=epoch):
                if batch.data is not None:  # Lightning skips these
                    yield batch
                if self._end_pass:
                    break
            epoch += 1

    def _read_validation_data(self, limit: int) -> tuple[CombinedLoader, list[int | float]]:
        val_loop = self.trainer.fit_loop.epoch_loop.val_loop
        if not self.trainer.enable_validation:
            raise CannotProbeError("there are no validation data, or no validation_step")
        self.trainer.validating = True
        val_loop.setup_data()
        self.trainer.training = True
        loader = val_loop._combined_loader
        if loader is None or val_loop.skip:
            raise CannotProbeError("the validation data are empty")
        loader.limits = val_loop.max_batches
        batches = ProbeBatches(loader, limit=limit)
        kept = [KeptBatches() for _ in loader.flattened]
        # read once, but as if never: what is read after a rewind must not depend on it
        data = ObjectState([], data=data_holders([val_loop]))
        try:
            for batch in batches.one_pass(epoch=self.trainer.current_epoch):
                kept[batch.dataloader_idx].data.append(batch.data)
        finally:
            batches.close()
            data.restore()
        return CombinedLoader(kept, loader._mode), [len(batches) for batches in kept]


def _in_the_place_of(
    loader: CombinedLoader, batches: Sequence[ProbeBatch]
) -> tuple[CombinedLoader, list[int | float]]:
    if len(loader.flattened) != 1:
        raise CannotProbeError("there are several validation loaders")
    kept = KeptBatches()
    kept.data = [batch.data for batch in batches]
    return CombinedLoader([kept], loader._mode), [len(batches)]


def _refuse_what_cannot_be_put_back(trainer: Trainer, module: LightningModule) -> None:
    strategy = type(trainer.strategy).__name__
    if strategy in UNTRIED_STRATEGIES:
        raise CannotProbeError(f"steps under {strategy} can't be put back")
    if isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
        raise CannotProbeError("training_step(dataloader_iter) reads the data itself")
    lazy = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(tensor, lazy):
            raise CannotProbeError(f"{name} has no shape yet; run one batch before the fit")
