"""Records the curves of a fit while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_tuning._trainer.cadence import Cadence
from lightning_tuning._trainer.curves.curve_chance import FirstCalls, dropout_of, regularization
from lightning_tuning._trainer.curves.curve_values import (
    accumulated,
    direction,
    examples_in_a_step,
    known_directions,
    largest_momentum,
    mean_over_ranks,
    on_host,
    the_loss,
    validation_values,
)
from lightning_tuning._trainer.curves.step_rates import StepRates
from lightning_tuning._trainer.fit_losses import fit_losses
from lightning_tuning.functional.curves.curve_record import CurveRecord
from lightning_tuning.functional.curves.loss_curves import Curve, Curves


class CurveRecorder:
    """Takes training losses, learning rates and validation metrics as they come.

    Args:
        trainer: A trainer in ``on_train_start``.
        module: Its module.
        train_metric: A logged metric; None for what ``training_step`` returned.
        val_metric: A logged validation metric; None to look for the loss.
        earlier: What was recorded before an interruption.
        unfinished: The steps of a point that was not complete then.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        train_metric: str | None,
        val_metric: str | None,
        earlier: Curves | None,
        unfinished: Sequence[Sequence[float]] = (),
    ) -> None:
        self.trainer = trainer
        self._train_metric = train_metric
        self._val_metric = val_metric
        self._cadence = Cadence(trainer, None)
        self._losses = fit_losses(trainer)
        self._calls = FirstCalls(module)
        self._step_rates = StepRates(trainer, self._cadence)
        self._rates: dict[int, float | Tensor] = {}
        self._taken = 0
        self._logged: list[tuple[int, Tensor | None, float | Tensor]] = []
        self._names: set[str] = set()
        self._val: dict[str, list[tuple[int, float]]] = {}
        self._directions: dict[str, bool] = {}
        self._epoch_ends: list[int] = []
        self._earlier = earlier
        self._record = CurveRecord()
        self._chance: tuple[float, float] | None = None
        self._settled = False
        self._alike = False
        self._dropout = dropout_of(module)
        self._momentum = largest_momentum(trainer.optimizers)
        if earlier is not None:
            self._go_on(earlier, unfinished)

    # ------------------------------------------------------------------------------ as it comes

    @property
    def starts_seen(self) -> bool:
        """Whether ``batch_start`` has nothing to do any more."""
        return self._calls.done and self._step_rates.hooked

    def batch_start(self) -> None:
        """Watch which loss functions the first batches call."""
        if not self._step_rates.hooked:
            self._step_rates.read()
        self._calls.begin_batch()

    def batch_end(self, outputs: Any) -> bool:
        """Note the loss; whether something was read from the device."""
        if not self._calls.done:
            self._calls.end_batch(outputs, accumulated(self.trainer))
        due = self._cadence.due()
        if self._train_metric is None:
            self._rates[self._cadence.step] = self._step_rates.rate
        elif due:
            self._note_logged(self._train_metric)
        self._losses.note(self.trainer, outputs)
        self._step_rates.follow()
        if due:
            self.read()
        return due

    def epoch_end(self) -> None:
        """Note the end of a training epoch."""
        step = self._cadence.step - 1
        if not self._epoch_ends or step > self._epoch_ends[-1]:
            self._epoch_ends.append(step)
        if self._train_metric is not None and not self._record.count:
            self._note_logged(self._train_metric)

    def validation_batch_start(self) -> None:
        """Watch which loss functions validation calls."""
        self._calls.begin_validation_batch()

    def validation_batch_end(self) -> None:
        """Take what they were."""
        self._calls.end_validation_batch()

    def validation_end(self) -> None:
        """Note what a validation has logged, unless it is the sanity check."""
        step = self._cadence.step
        self._directions |= known_directions(self.trainer)
        for name, value in validation_values(self.trainer).items():
            points = self._val.setdefault(name, [])
            if points and points[-1][0] == step:
                points.pop()
            points.append((step, value))

    def close(self) -> None:
        """Stop watching, whatever happened."""
        self._calls.close()
        self._step_rates.close()

    # ------------------------------------------------------------------------------------ results

    @property
    def record(self) -> CurveRecord:
        """The training loss as it was last read."""
        return self._record

    def read(self) -> None:
        """Bring what is new to the host; all ranks must call it."""
        if self._calls.done:
            self._settle()
        if self._train_metric is not None:
            logged, self._logged = self._logged, []
            values = mean_over_ranks(self.trainer, [value for _, value, _ in logged])
            known = [place for place, value in enumerate(values) if value is not None]
            self._record.extend(
                [logged[place][0] for place in known],
                [value for value in values if value is not None],
                on_host([logged[place][2] for place in known]),
            )
            return
        steps, losses = self._losses.read(self.trainer)
        new = list(steps[self._taken :])
        self._taken = len(steps)
        rates = on_host([self._rates.get(step, self._step_rates.rate) for step in new])
        self._rates.clear()
        self._record.extend(new, list(losses[len(losses) - len(new) :]), rates)

    def curves(self) -> Curves:
        """Return what is known so far."""
        record, name = self._record, self._train_metric or "the training loss"
        self._settle()
        self._alike = self._alike or self._calls.alike
        val, why = self._validation_loss()
        # a logged metric need not be the loss that was seen
        own = self._chance if self._train_metric is None else None
        chance = (None, None) if own is None else own
        return Curves(
            train=Curve(name=name, steps=record.steps, values=record.values),
            width=record.width,
            rates=record.rates,
            highs=record.highs,
            first=record.first,
            non_finite=record.non_finite,
            first_non_finite=record.first_non_finite,
            steps=record.count,
            val=None if val is None else self._curve(val),
            metrics=tuple(self._curve(other) for other in self._val if other != val),
            epoch_ends=tuple(self._epoch_ends),
            chance=chance[0],
            chance_high=chance[1],
            alike=self._alike,
            regularized=regularization(self.trainer, dropout=self._dropout),
            batch_size=examples_in_a_step(self.trainer),
            momentum=self._momentum,
            optimizers=len(self.trainer.optimizers),
            no_train="" if record.count else self._why_no_loss(),
            no_val=why,
        )

    def _settle(self) -> None:
        if not self._settled:
            self._settled = self._calls.done
            self._chance = self._calls.chance()
        if self._calls.done:
            self._calls.forget()

    def _curve(self, name: str) -> Curve:
        known = [(s, v) for s, v in self._val[name] if abs(v) < float("inf")]
        return Curve(
            name=name,
            steps=tuple(step for step, _ in known),
            values=tuple(value for _, value in known),
            higher_is_better=direction(name, self._directions),
        )

    def _validation_loss(self) -> tuple[str | None, str]:
        names = list(self._val)
        if self._val_metric is not None:
            if self._val_metric in names:
                return self._val_metric, ""
            told = ", ".join(map(repr, names)) or "nothing"
            return None, f"no validation logged {self._val_metric!r}; they logged {told}"
        before = self._earlier.val if self._earlier is not None else None
        if before is not None and before.name in names:
            return before.name, ""
        trained = set(self.trainer.callback_metrics) - set(names)
        return the_loss(names, self._calls.names if self._calls.alike else (), trained)

    def _why_no_loss(self) -> str:
        if self._train_metric is None:
            return "training_step returned no loss"
        told = ", ".join(map(repr, sorted(self._names))) or "nothing"
        return f"{self._train_metric!r} was not logged on the steps that are logged; {told} was"

    def _note_logged(self, name: str) -> None:
        metrics: Mapping[str, Any] = self.trainer.callback_metrics
        self._names |= set(metrics)
        value = metrics.get(name)
        known = value if isinstance(value, Tensor) and value.numel() == 1 else None
        taken = None if known is None else known.detach().clone()
        self._logged.append((self._cadence.step, taken, self._step_rates.rate))

    def _go_on(self, earlier: Curves, unfinished: Sequence[Sequence[float]]) -> None:
        train = earlier.train
        self._record = CurveRecord.of(
            train.steps,
            train.values,
            earlier.rates,
            earlier.highs,
            width=earlier.width,
            count=earlier.steps,
            unfinished=unfinished,
        )
        self._record.first = earlier.first
        self._record.non_finite = earlier.non_finite
        self._record.first_non_finite = earlier.first_non_finite
        for curve in (earlier.val, *earlier.metrics):
            if curve is not None:
                self._val[curve.name] = list(zip(curve.steps, curve.values, strict=True))
                if curve.higher_is_better is not None:
                    self._directions[curve.name] = curve.higher_is_better
        self._epoch_ends = list(earlier.epoch_ends)
        if earlier.chance is not None and earlier.chance_high is not None:
            self._chance = earlier.chance, earlier.chance_high
            self._settled = True
        self._alike = earlier.alike
