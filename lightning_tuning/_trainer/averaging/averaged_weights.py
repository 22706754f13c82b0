"""Both sets of weights of a fit, from its first step until the next fit."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.parallel import DistributedDataParallel

from lightning_tuning._trainer.averaging.average_track import AverageSettings
from lightning_tuning._trainer.averaging.averaged_checkpoint import AveragedCheckpoints, add_entry
from lightning_tuning._trainer.averaging.averages import Averages
from lightning_tuning._trainer.averaging.averaging_start import place_among
from lightning_tuning._trainer.averaging.saved_weights import LoadedWeights, raw_beside, saved_in
from lightning_tuning._trainer.averaging.two_sets import TwoSets, Which
from lightning_tuning._trainer.schedule_start import callbacks_of
from lightning_tuning._trainer.shards import is_sharded


class AveragedWeights:
    """Keeps the averages of a fit, puts them into the module and into checkpoints.

    Args:
        trainer: A trainer; if it is inside ``fit``, its checkpoints hold the averages.
        sets: The two sets of weights.
        owner: The callback; what is saved or stepped while it is not among the trainer's is none of
            this one's business.
        judges: Whether this average is put into the module, and is what checkpoints hold.
        entry: What an exact resume needs, where there are no averages that know it.
        averages: The averages while the training lasts; None before and after it.

    Attributes:
        path: The checkpoint that the weights are of, in evaluation.
    """

    def __init__(
        self,
        trainer: Trainer,
        sets: TwoSets,
        *,
        owner: Callback,
        judges: bool,
        entry: dict[str, Any] | None = None,
        averages: Averages | None = None,
    ) -> None:
        self.sets = sets
        self.averages = averages
        self.judges = judges
        self.path: Any = None
        self._entry = entry
        self._strategy = trainer.strategy
        self._before: Which | None = None
        self._files: AveragedCheckpoints | None = None
        if judges and (entry is not None or averages is not None):
            self._files = AveragedCheckpoints(
                trainer.strategy,
                lambda: self.sets if owner in callbacks_of(trainer) else None,
            )

    @classmethod
    def begin(
        cls,
        trainer: Trainer,
        module: LightningModule,
        settings: AverageSettings,
        *,
        owner: Callback,
        judges: bool,
    ) -> AveragedWeights:
        """Begin with the weights of a fit, once they are restored.

        Args:
            trainer: A trainer inside ``fit``.
            module: Its module.
            settings: How the averages move.
            owner: The callback.
            judges: Whether this average is put into the module.
        """
        averages = Averages(
            trainer, module, settings, paused=lambda: owner not in callbacks_of(trainer)
        )
        sets = TwoSets(module, own="raw", exchange=averages.exchange)
        return cls(trainer, sets, owner=owner, judges=judges, averages=averages)

    def take_up(self, loaded: LoadedWeights) -> None:
        """Go on with what a checkpoint holds."""
        assert self.averages is not None
        if self.judges:
            loaded.load_raw_once_more()
        self.averages.load(loaded.saved.tracks or [])
        self.averages.overwrite(loaded.averages)

    def put(self, which: Which) -> None:
        """Put a set into the module, if this average is what it is judged by."""
        if not self.judges or which == self.sets.inside:
            return
        self.sets.put(which)
        model = self._strategy.model
        if isinstance(model, DistributedDataParallel) and self.sets.has_buffers:
            # it sends the buffers of rank 0 to the others before the first forward after a step
            model.require_forward_param_sync = True

    def begin_evaluation(self, which: Which) -> None:
        """Put what is to be judged into the module."""
        self._before = self.sets.inside
        self.put(which)

    def end_evaluation(self) -> None:
        """Put back what was in the module before."""
        if self._before is not None:
            self.put(self._before)
            self._before = None

    def average(self) -> dict[str, Any]:
        """Return the averages by path, as precise as they are kept; local parts of sharded ones."""
        values = self.sets.values("ema")
        if self.averages is None and self._entry is not None and not is_sharded(self.sets.module):
            values |= self._entry["average"]
        return values

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint what it needs for an exact resume; all processes must call it."""
        entry = self._entry if self.averages is None else self._make_entry(gather=True)
        if entry is None:
            return
        add_entry(checkpoint, entry)
        if self._files is not None:
            self._files.add_raw_state(checkpoint, entry)

    def finish(self, *, interrupted: bool = False) -> None:
        """Let go of the optimizers, and move what is not in the module to the host.

        Args:
            interrupted: Whether other processes may not come here too, so that averages that are
                sharded can't be gathered.
        """
        if self.averages is None:
            return
        averages = self.averages
        try:
            self._entry = self._make_entry(gather=not interrupted)
        finally:
            averages.close()
        self.averages = None
        self.sets = self.sets.settled()

    def forget(self) -> None:
        """Have no part in checkpoints any more."""
        if self._files is not None:
            self._files.close()

    def _make_entry(self, *, gather: bool) -> dict[str, Any]:
        assert self.averages is not None
        self.averages.wait()
        entry: dict[str, Any] = {"tracks": self.averages.state(), "average": {}}
        if gather or not is_sharded(self.sets.module):
            entry["average"] = self.sets.whole_averages(everything=not self.judges)
        return entry


def weights_in(
    checkpoint: dict[str, Any],
    trainer: Trainer,
    module: LightningModule,
    *,
    owner: Callback,
    validates_raw: bool,
) -> tuple[AveragedWeights | None, LoadedWeights | None]:
    """Return both sets of weights of a checkpoint whose averaged ones have just been loaded.

    In a fit the module holds the raw ones afterwards, and the averages lie beside it, for what is
    saved or goes wrong before the first step.

    Args:
        checkpoint: The checkpoint.
        trainer: The trainer.
        module: Its module.
        owner: The callback.
        validates_raw: Whether the raw weights are to be validated.

    Returns:
        Both, and in a fit what :meth:`AveragedWeights.take_up` needs.
    """
    place = place_among(trainer, owner)
    saved = saved_in(checkpoint, place)
    judges, loaded, entry = place == 0, None, None
    if trainer.state.fn == TrainerFn.FITTING:
        if saved.tracks is None or (judges and saved.raw is None):
            return None, None
        loaded = LoadedWeights(module, saved, judges=judges)
        sets: TwoSets | None = loaded.sets()
        entry = saved.entry
    elif trainer.state.fn == TrainerFn.VALIDATING and judges and validates_raw:
        sets = raw_beside(module, saved)
    else:
        return None, None
    if sets is None:
        return None, None
    weights = AveragedWeights(trainer, sets, owner=owner, judges=judges, entry=entry)
    weights.path = trainer.ckpt_path
    return weights, loaded
