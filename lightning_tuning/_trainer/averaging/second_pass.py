"""A second validation beside the first, batch by batch, with other weights.

The module's hooks run a second time in a world of their own: every submodule has a second
``__dict__``, in which plain attributes and metrics are copies, parameters and children the same. To
enter that world and to leave it exchanges pointers only, and torch sees the same modules all along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from lightning_tuning._trainer import random_state
from lightning_tuning._trainer.averaging.second_world import (
    Exchanged,
    History,
    copied,
    second_world,
)
from lightning_tuning._trainer.snapshot import _SilentLogger
from lightning_tuning._trainer.uninterrupted import Uninterrupted


def why_not(trainer: Trainer, module: LightningModule) -> str | None:  # noqa: ARG001
    """Return why a module can't be validated twice in one pass over the data, None if it can."""
    if not is_overridden("validation_step", module):
        return f"{type(module).__name__} has no validation_step"
    if is_param_in_hook_signature(module.validation_step, "dataloader_iter", explicit=True):
        return "validation_step(dataloader_iter) reads the data itself"
    return None


class SecondPass:
    """Validates the module a second time beside the first, batch by batch, with other weights.

    A callback makes one for each validation and calls its methods from its own hooks, which come
    before the module's. What the module logs in it stands beside the first pass's values.

    What the module remembers from one validation to the next, such as its best value so far, each
    pass remembers for itself (see :class:`History`). No checkpoint holds what the second pass
    remembers: after a resume it goes on from what the first one does.

    Args:
        trainer: A trainer in validation.
        module: Its module.
        weights: Gives a context in which the module has the other weights.
        history: What the second pass remembers of the validations before.
        suffix: What the names logged in the second pass end with.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        weights: Callable[[], AbstractContextManager[None]],
        history: History,
        suffix: str = "_raw",
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._weights = weights
        self._history = history
        self._loop: Any = trainer._active_loop
        self._log = _Log(trainer, self._loop, suffix)
        self._waiting: list[Exchanged] = []
        self._is_second = False
        self._kept: tuple[Any, dict[str, Any]] = (None, {})

    def start(self) -> None:
        """Copy what the second pass has of its own; run ``on_validation_start`` with it."""
        # buffers are copied as the other weights have them; what inference mode makes stays in it
        with self._weights(), torch.inference_mode(mode=False), torch.no_grad():
            self._waiting = [*second_world(self._module, self._history), *self._log.exchanged]
        model = self._trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            # the first step without gradients sends the buffers of rank 0 to the other ranks
            name = "require_forward_param_sync"
            self._waiting.append((model, name, getattr(model, name)))
        self._run("on_validation_start")

    def start_epoch(self) -> None:
        """Run ``on_validation_epoch_start``."""
        self._run("on_validation_epoch_start")

    def keep_batch(self, batch: Any) -> None:
        """Copy a batch that nobody has changed yet, and note where the random numbers stand."""
        self._kept = _copy_of_batch(batch), random_state.get_random_state()

    def run_batch(self, batch_idx: int, dataloader_idx: int) -> None:
        """Run the module's step and the hooks around it on the batch that was kept."""
        trainer, loop = self._trainer, self._loop
        (batch, state), self._kept = self._kept, (None, {})
        index = dataloader_idx if loop._is_sequential and loop.num_dataloaders > 1 else None
        kwargs = loop._build_kwargs(batch, batch_idx, index)
        with random_state.kept_random_state(), self._second(batch):
            random_state.set_random_state(state)
            args = kwargs.values()
            call._call_lightning_module_hook(trainer, "on_validation_batch_start", *args)
            step_args = loop._build_step_args_from_hook_kwargs(kwargs, "validation_step")
            output = call._call_strategy_hook(trainer, "validation_step", *step_args)
            call._call_lightning_module_hook(trainer, "on_validation_batch_end", output, *args)

    def end_epoch(self) -> None:
        """Run ``on_validation_epoch_end``; drop all copies but what is logged or remembered."""
        self._run("on_validation_epoch_end")
        self._history.remember((o, v) for o, name, v in self._waiting if name == "__dict__")
        self._waiting = []

    def close(self) -> None:
        """Put back whatever is still out of place; may be called more than once."""
        self._leave()
        self._waiting, self._kept = [], (None, {})
        self._history.compare(self._log.metrics())

    def _run(self, name: str) -> None:
        with random_state.kept_random_state(), self._second():
            self._log.tell()
            call._call_lightning_module_hook(self._trainer, name)

    @contextmanager
    def _second(self, batch: Any = None) -> Iterator[None]:
        with self._weights():
            try:
                with Uninterrupted():
                    self._log.begin(batch)
                    self._waiting = [_exchange(*entry) for entry in self._waiting]
                    self._is_second = True
                yield
            finally:
                self._leave()
        self._log.refuse_taken_names()

    def _leave(self) -> None:
        with Uninterrupted():
            if self._is_second:
                self._waiting += self._log.publish()
                self._waiting = [_exchange(*entry) for entry in self._waiting]
                self._is_second = False


class _Log:
    """What the second pass logs: alone while it runs, renamed among the first's otherwise."""

    def __init__(self, trainer: Trainer, loop: Any, suffix: str) -> None:
        self._trainer = trainer
        self._suffix, self._prefix = suffix, f"{suffix}."
        self._own = _ResultCollection(training=False)
        self._first: _ResultCollection = loop._results
        connector = trainer._logger_connector
        told = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
        self.exchanged: list[Exchanged] = [
            (loop, "_results", self._own),
            (connector, "_current_fx", None),
            *((connector, name, dict(getattr(connector, name))) for name in told),
            # what a hook writes to a logger directly has no name that could get the suffix
            (trainer, "_loggers", [_SilentLogger(logger) for logger in trainer.loggers]),
        ]

    def begin(self, batch: Any) -> None:
        """Stand where the first pass's results stand."""
        self._own.batch, self._own.batch_size = batch, None
        self._own.dataloader_idx = self._first.dataloader_idx

    def tell(self) -> None:
        """Let ``trainer.callback_metrics`` have the epoch's values, of every data loader."""
        for index in {item.meta.dataloader_idx or 0 for item in self._own.values()}:
            self._own.dataloader_idx = index
            _ = self._trainer.callback_metrics
        self._own.dataloader_idx = None

    def metrics(self) -> list[Metric]:
        """Return the metrics of both passes that Lightning resets after the validation."""
        values = [getattr(item, "value", None) for item in self._first.values()]
        return [value for value in values if isinstance(value, Metric)]

    def publish(self) -> list[Exchanged]:
        """Put new results among the first pass's; return the names that they have there."""
        self._own.batch, end = None, self._suffix
        items = {self._prefix + key: item for key, item in self._own.items()}
        new = [item for key, item in items.items() if self._first.get(key) is not item]
        self._first.update(items)
        # the hook is renamed too: what the first pass logs may clear all that its hook has logged
        metas = [replace(m, name=m.name + end, fx=m.fx + end) for m in (v.meta for v in new)]
        return [(item, "meta", meta) for item, meta in zip(new, metas, strict=True)]

    def refuse_taken_names(self) -> None:
        """Raise if the module itself logs a name that is the second pass's."""
        own = {item.meta.name for item in self._own.values()}
        others = {v.meta.name for k, v in self._first.items() if not k.startswith(self._prefix)}
        if taken := own & others:
            raise MisconfigurationException(
                f"The module itself logs {min(taken)!r}, the name under which the second "
                f"validation is logged; choose another suffix than {self._suffix!r}."
            )


def _exchange(owner: Any, name: str, value: Any) -> Exchanged:
    old = getattr(owner, name)
    object.__setattr__(owner, name, value)
    return owner, name, old


def _copy_of_batch(batch: Any) -> Any:
    memo: dict[int, Any] = {}

    def clone(tensor: Tensor) -> Any:
        return memo.setdefault(id(tensor), tensor.clone())

    clones = apply_to_collection(batch, Tensor, clone, allow_frozen=True)
    copy = copied(batch, memo)
    return clones if copy is batch else copy
