"""An ensemble out of one fit."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_tuning._trainer.ensembles.cycle_ends import CycleEnds
from lightning_tuning._trainer.ensembles.judged_members import judge_members
from lightning_tuning._trainer.ensembles.member_files import (
    MemberFiles,
    folder_of,
    refuse_shards,
    weights_now,
)
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.logger import log_result
from lightning_tuning._trainer.report import report
from lightning_tuning._trainer.validated_metric import validated_metric
from lightning_tuning.findings import Finding
from lightning_tuning.functional.checks import at_least, choice
from lightning_tuning.functional.ensembles.combine import Combine, check_combine
from lightning_tuning.functional.ensembles.ensemble_result import (
    CHECK,
    EnsembleMember,
    EnsembleResult,
    ensemble_findings,
    not_judged,
)
from lightning_tuning.functional.metric_mode import MetricMode, mode_of


class CheckpointEnsemble(Callback):
    """Keeps several sets of weights of a fit, and says what they gain together.

    Members are the best by a metric, the latest, or those at the ends of a schedule's cycles
    (snapshots, Huang et al. 2017). No more than ``k`` files lie on disk. At the end of the fit the
    module's own validation runs with each member, and with more and more of them averaged; the fit
    itself is not changed. ``EnsembleModule(model, callback.paths)`` is the ensemble.

    Args:
        collect: ``"best"`` by ``monitor``, at each validation, with the weights that were validated
            (those of ``EMAWeights``, where it is used); ``"last"``, at the end of each epoch; or
            ``"cycles"``, at the end of each cycle of ``CyclicalLR``, ``WarmupDecay`` or
            ``OneCycle``.
        k: The most members.
        monitor: The metric by which members are chosen, and by which the ensemble is judged.
        mode: Whether it improves downwards (``"min"``) or upwards (``"max"``); None takes what its
            name tells.
        combine: What the outputs are; see :class:`~lightning_tuning.EnsembleModule`.
        class_dim: Dimension of the classes in the output of one member.
        output_of: The part of the module whose output is averaged, if it is neither the module
            itself nor its only child with weights.
        dirpath: Where members are written; None takes ``ensemble/<collect>`` in the run's
            folder.
        judge: Whether the ensemble is judged at the end of the fit.

    Raises:
        ValueError: An argument is out of its range.
        MisconfigurationException: The strategy shards the weights; there are no cycles to end; or
            validation logs no ``monitor``.

    Example:
        >>> trainer = Trainer(
        ...     callbacks=[CheckpointEnsemble(k=3)], logger=False, accelerator="cpu"
        ... )
    """

    def __init__(
        self,
        *,
        collect: Literal["best", "last", "cycles"] = "best",
        k: int = 5,
        monitor: str = "val_loss",
        mode: MetricMode | None = None,
        combine: Combine | dict[str, Combine] = "probabilities",
        class_dim: int = 1,
        output_of: str | None = None,
        dirpath: str | None = None,
        judge: bool = True,
    ) -> None:
        choice("collect", collect, ("best", "last", "cycles"))
        at_least("k", k, 1)
        mode_of(monitor, mode)
        check_combine(combine)
        if not monitor:
            raise ValueError("monitor='' must be the name of a metric that validation logs")
        self.collect = collect
        self.k = k
        self.monitor = monitor
        self.mode: MetricMode | None = mode
        self.combine: Combine | dict[str, Combine] = combine
        self.class_dim = class_dim
        self.output_of = output_of
        self.dirpath = dirpath
        self.judge = judge
        self.findings: tuple[Finding, ...] = ()
        self.result: EnsembleResult | None = None
        self._members: list[EnsembleMember] = []
        self._files: MemberFiles | None = None
        self._ends: CycleEnds | None = None
        self._validated: dict[str, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a running fit."""
        return {**self.__dict__, "_files": None, "_ends": None, "_validated": None}

    @property
    def state_key(self) -> str:
        """Tell callbacks of this class with other settings apart."""
        return self._generate_state_key(
            collect=self.collect, k=self.k, monitor=self.monitor, dirpath=self.dirpath
        )

    @property
    def members(self) -> tuple[EnsembleMember, ...]:
        """The members, best or latest first."""
        return tuple(self._members if self._files is None else self._files.members)

    @property
    def paths(self) -> list[str]:
        """The files of the members, for :class:`~lightning_tuning.EnsembleModule`."""
        return [member.path for member in self.members]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before; a checkpoint is restored only after this."""
        if stage == "fit":
            self.findings, self.result, self._members = (), None, []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse early what can't be collected."""
        refuse_shards(trainer, "CheckpointEnsemble")
        self._ends = CycleEnds(trainer, "CheckpointEnsemble") if self.collect == "cycles" else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, with the members of a resumed fit that are still there."""
        by = mode_of(self.monitor, self.mode) if self.collect == "best" else None
        self._files = MemberFiles(folder_of(trainer, self.dirpath, self.collect), self.k, by)
        self._files.members = [m for m in self._members if pathlib.Path(m.path).exists()]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the weights at the end of a cycle."""
        self._end_cycle(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights that were validated, which may be an average."""
        if self._files is not None and self.collect == "best":
            self._validated = weights_now(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep them if they are among the best."""
        weights, self._validated = self._validated, None
        if self._files is None or weights is None:
            return
        score = validated_metric(trainer, self.monitor, name="CheckpointEnsemble(monitor=...)")
        if self._files.wants(score):
            self._files.add(trainer, weights, score=score, name=self.monitor)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights of the epoch."""
        if self._files is not None and self.collect == "last":
            self._files.add(trainer, weights_now(pl_module), score=None, name="")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge members and ensemble."""
        self._end_cycle(trainer, pl_module)
        if self._files is None or not self.judge:
            return
        reason = "" if len(self.members) > 1 else f"there is {len(self.members) or 'no'} member"
        if not reason:
            try:
                self.result = judge_members(
                    trainer,
                    pl_module,
                    self.members,
                    metric=self.monitor,
                    mode=mode_of(self.monitor, self.mode),
                    combine=self.combine,
                    class_dim=self.class_dim,
                    output_of=self.output_of,
                )
            except CannotProbeError as error:
                reason = str(error)
        self.findings = (
            (not_judged(reason),) if self.result is None else ensemble_findings(self.result)
        )
        report(trainer, self.findings)
        if self.result is not None:
            log_result(trainer, CHECK, self.result)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of the copy of the weights; members stay."""
        self._settle()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the trainer; members stay."""
        self._settle()

    def state_dict(self) -> dict[str, Any]:
        """Return which members there are."""
        return {"members": [dataclasses.asdict(member) for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the members of a checkpoint."""
        self._members = [EnsembleMember(**member) for member in state_dict["members"]]

    def _end_cycle(self, trainer: Trainer, module: LightningModule) -> None:
        if self._files is not None and self._ends is not None and self._ends.reached():
            self._files.add(trainer, weights_now(module), score=None, name="")

    def _settle(self) -> None:
        self._members = list(self.members)
        self._files = self._ends = self._validated = None
