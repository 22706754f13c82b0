"""The record of one fit for ``UpdateRatioMonitor``: what is measured, logged, drawn and said."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.cadence import Cadence
from lightning_tuning._trainer.custom_scalars import WELL
from lightning_tuning._trainer.drawing_pace import DrawingPace
from lightning_tuning._trainer.fit_gate import why_the_loss_tells_nothing
from lightning_tuning._trainer.fit_losses import fit_losses
from lightning_tuning._trainer.monitor_log import chart, log_figure, log_scalars, tag_suffix
from lightning_tuning._trainer.report import real_loggers, report, run_folder
from lightning_tuning._trainer.unread_flags import unread_flags
from lightning_tuning._trainer.update_ratio.normalizing import normalizes
from lightning_tuning._trainer.update_ratio.weight_updates import WeightUpdates
from lightning_tuning.findings import Finding
from lightning_tuning.functional.fit_course import fit_course
from lightning_tuning.functional.update_ratio.update_evidence import UpdateEvidence
from lightning_tuning.functional.update_ratio.update_exact_rules import (
    UPDATE_RATIO_MONITOR,
    newly_non_finite,
)
from lightning_tuning.functional.update_ratio.update_history import (
    UpdateHistory,
    UpdateRow,
)
from lightning_tuning.functional.update_ratio.update_ratio import UpdateRatioResult, summary
from lightning_tuning.functional.update_ratio.update_ratio_rules import update_findings

_MOST_BATCHES = 50
"""So long it is waited for an optimizer that a module drives itself, such as a GAN's second."""
_BAND = {"target": -3.0, "band_low": -4.0, "band_high": -2.0}


class UpdateRecord:
    """Begins in ``on_train_start`` and ends with :meth:`finish`.

    Args:
        trainer: The trainer.
        module: Its module.
        owner: The callback; several of a class have tags of their own.
        every_n_steps: See :class:`~lightning_tuning._trainer.cadence.Cadence`.
        include: See :class:`~lightning_tuning._trainer.update_ratio.weight_updates.WeightUpdates`.

    Attributes:
        updates: What watches the optimizers.
        cadence: Which steps are measured.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        owner: Callback,
        *,
        every_n_steps: int | None,
        include: str | None,
    ) -> None:
        self.updates = WeightUpdates(trainer, module, include)
        self._trainer = trainer
        self._history = UpdateHistory()
        self.cadence = Cadence(trainer, every_n_steps)
        self._fresh = self.updates.tracked.fresh()
        self._pace = DrawingPace()
        self._suffix = tag_suffix(trainer, owner)
        self._first_step = self.cadence.step
        self._latest_due = self._first_step
        self._due = False
        self._told_non_finite = False
        chart(trainer, self._layout())

    def begin_batch(self) -> bool:
        """Watch this batch, if its step is to be measured; returns whether it is watched."""
        self._due = self.cadence.due()
        if self._due:
            self._latest_due = self.cadence.step
            self.updates.watch()
        elif self.updates.watching and self.cadence.step - self._latest_due > _MOST_BATCHES:
            self.updates.stop()
        return self.updates.watching

    def end_batch(self, outputs: object) -> tuple[Finding, ...]:
        """Log what was measured; return what must be said at once."""
        fit_losses(self._trainer).note(self._trainer, outputs)
        if not self.updates.watching:
            return ()
        if self._due:
            self.updates.tracked.note_fed()
        row = self.updates.collect(self.cadence.step)
        if row is None:
            return ()
        self._history.add(row)
        if real_loggers(self._trainer):
            log_scalars(self._trainer, self._scalars(row), row.step)
        return self._urgent()

    def draw_if_cheap(self) -> None:
        """Draw what there is, at most for 0.2 % of the time."""
        if not self._history.rows or not real_loggers(self._trainer):
            return
        # all processes must come to write, and their clocks differ
        if self._trainer.strategy.broadcast(self._pace.allows()):
            with self._pace.spending():
                self._draw(self._result())

    def finish(
        self, told: Sequence[Finding], *, interrupted: bool
    ) -> tuple[UpdateRatioResult, tuple[Finding, ...]]:
        """End; return all that was measured, and what there is to say beyond what was told.

        Args:
            told: What was said at once.
            interrupted: Whether other processes may not come here too, so that nothing that needs
                them all can be done.
        """
        self.updates.stop()
        result = self._result()
        alone = interrupted and self._trainer.world_size > 1
        findings = update_findings(self._evidence(result, alone=alone))
        findings = tuple(f for f in findings if f.code not in {told_one.code for told_one in told})
        return result, findings

    def show(self, findings: Sequence[Finding], *, interrupted: bool) -> None:
        """Report what :meth:`finish` gave, and draw it."""
        if interrupted and self._trainer.world_size > 1:
            return
        report(self._trainer, findings)
        result = self._result()
        if not self._history.rows:
            return
        self._draw(result)
        folder = run_folder(self._trainer)
        if folder is not None:
            (folder / f"{UPDATE_RATIO_MONITOR}{self._suffix}.json").write_text(result.to_json())

    def _draw(self, result: UpdateRatioResult) -> None:
        if real_loggers(self._trainer) and self._trainer.is_global_zero:
            tag, file = (
                f"update_ratio_map{self._suffix}/all",
                f"{UPDATE_RATIO_MONITOR}{self._suffix}",
            )
            log_figure(self._trainer, tag, result.plot, result.steps[-1], file=file)

    def _result(self) -> UpdateRatioResult:
        known = self.updates.tracked.known
        return self._history.result([t.name for t in known], [t.kind for t in known])

    def _evidence(self, result: UpdateRatioResult, *, alone: bool) -> UpdateEvidence:
        tracked, known = self.updates.tracked, self.updates.tracked.known
        losses: tuple[float, ...] = ()
        reason = "the fit was interrupted"
        if not alone:
            losses = tuple(fit_losses(self._trainer).read(self._trainer)[1])
            reason = why_the_loss_tells_nothing(self._trainer)
        reached = {place for row in self._history.rows for place in row.gradient_norms}
        return UpdateEvidence(
            result=result,
            course=fit_course(losses, reason=reason),
            losses=losses,
            fresh=self._fresh,
            eps=tuple(t.eps for t in known),
            groups=tuple(t.group for t in known),
            weight_decays=tuple(t.weight_decay for t in known),
            trainable=tuple(t.trainable for t in known),
            shapes=tuple(t.shape for t in known),
            left_out=tracked.left_out(),
            rest_fresh=tracked.rest_is_fresh(set(range(len(known))) - reached),
            unread=unread_flags(self._trainer, tracked.ids(self._driven())),
            scale_free=normalizes(self._trainer.lightning_module),
            steps=self.cadence.step - self._first_step,
            at=self.cadence.step,
        )

    def _driven(self) -> set[int]:
        """Return the indices of what had a gradient that is not zero."""
        rows = self._history.rows
        return {i for row in rows for i, norm in row.gradient_norms.items() if norm > 0}

    def _urgent(self) -> tuple[Finding, ...]:
        if self._told_non_finite:
            return ()
        names = [t.name for t in self.updates.tracked.known]
        findings = newly_non_finite(self._history.rows, names, at=self.cadence.step)
        self._told_non_finite = bool(findings)
        report(self._trainer, findings)
        return findings

    def _scalars(self, row: UpdateRow) -> dict[str, float]:
        known = self.updates.tracked.known
        kinds = self._history.kinds([t.kind for t in known])
        s = self._suffix
        values = {
            f"update_ratio{s}/{known[i].name}": ratio for i, ratio in row.log10_ratios.items()
        }
        middle = summary([row.log10_ratios.get(i, math.nan) for i in range(len(known))], kinds)
        values |= {f"update_ratio_summary{s}/{k}": v for k, v in (middle | _BAND).items()}
        for name, norms in (("before", row.before_clipping), ("after", row.after_clipping)):
            for i, norm in enumerate(norms):
                place = f"_{i}" if len(norms) > 1 else ""
                values[f"gradient_norm{s}/{name}_clipping{place}"] = norm
        return {tag: value for tag, value in values.items() if math.isfinite(value)}

    def _layout(self) -> dict[str, dict[str, list[object]]]:
        s = self._suffix
        part = f"update_ratio_summary{s}"
        here = s.replace("_", " ")
        names = ("median", "low", "high", "target", "band_low", "band_high")
        return {
            WELL: {
                f"log10 of update / weight{here}: median, extremes, band": [
                    "Multiline",
                    [f"{part}/{name}" for name in names],
                ],
                f"gradient norm{here}": ["Multiline", [f"gradient_norm{s}/.*"]],
            }
        }
