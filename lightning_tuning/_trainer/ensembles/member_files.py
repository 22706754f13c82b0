"""Members of an ensemble as files: written whole, and never more than asked for."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_tuning._trainer.report import run_folder
from lightning_tuning._trainer.shards import UNTRIED_STRATEGIES
from lightning_tuning.functional.ensembles.ensemble_result import EnsembleMember
from lightning_tuning.functional.metric_mode import MetricMode, sign_of

_FOLDER = "ensemble"


def refuse_shards(trainer: Trainer, name: str) -> None:
    """Refuse strategies under which no process has all weights.

    Raises:
        MisconfigurationException: The strategy is one of these.
    """
    strategy = type(trainer.strategy).__name__
    if strategy in (*UNTRIED_STRATEGIES, "ModelParallelStrategy"):
        raise MisconfigurationException(
            f"{name} needs the whole weights in each process, and {strategy} shards them; take"
            " ModelCheckpoint, and EnsembleModule on its files once they are consolidated"
        )


def folder_of(trainer: Trainer, dirpath: str | None, collect: str) -> str:
    """Return where members are written, the same on all ranks: in the run's folder by default."""
    folder = run_folder(trainer)
    place = pathlib.Path(trainer.default_root_dir if folder is None else folder) / _FOLDER / collect
    return str(trainer.strategy.broadcast(str(place) if dirpath is None else dirpath))


def weights_now(module: LightningModule) -> dict[str, Tensor]:
    """Return a copy of all weights and buffers, where they are."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class MemberFiles:
    """The members that are kept, best or latest first.

    Args:
        folder: Where files are written.
        k: The most members.
        mode: Which scores are better; None keeps the latest.
    """

    def __init__(self, folder: str, k: int, mode: MetricMode | None) -> None:
        self._folder = pathlib.Path(folder)
        self._k = k
        self._mode = mode
        self.members: list[EnsembleMember] = []

    def wants(self, score: float | None) -> bool:
        """Whether a member of this score would be kept."""
        if self._mode is None or len(self.members) < self._k:
            return score is None or not math.isnan(score)
        assert score is not None
        last = self.members[-1].score
        assert last is not None
        return score < last if self._mode == "min" else score > last

    def add(
        self, trainer: Trainer, weights: Mapping[str, Tensor], *, score: float | None, name: str
    ) -> None:
        """Write a member, and remove the one that it takes the place of.

        The new file is whole before an old one goes.
        """
        step, epoch = trainer.global_step, trainer.current_epoch
        told = "" if score is None else f"-{name.replace('/', '_')}={score:.6g}"
        path = self._folder / f"step={step}{told}.ckpt"
        if trainer.is_global_zero:
            saved: dict[str, Any] = {"state_dict": dict(weights), "global_step": step}
            saved |= {"epoch": epoch, "score": score}
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            torch.save(saved, unfinished)
            os.replace(unfinished, path)
        member = EnsembleMember(path=str(path), step=step, epoch=epoch, score=score)
        # a step that is saved again, after a resume, is the same member
        self.members = [one for one in self.members if one.path != member.path]
        self.members = self._ordered([member, *self.members])
        for other in self.members[self._k :]:
            if trainer.is_global_zero:
                pathlib.Path(other.path).unlink(missing_ok=True)
        self.members = self.members[: self._k]
        trainer.strategy.barrier()

    def _ordered(self, members: list[EnsembleMember]) -> list[EnsembleMember]:
        if self._mode is None:
            return members
        sign = sign_of(self._mode)
        return sorted(members, key=lambda one: sign * (one.score or 0.0))
