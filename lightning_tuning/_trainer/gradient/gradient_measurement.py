"""A gradient check inside the sandbox: burn in, cut a batch, compare, put everything back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_tuning._trainer.eagerly import eagerly
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.forward_only import no_steps
from lightning_tuning._trainer.gradient.gradient_loss import Gradients, RepeatedLoss
from lightning_tuning._trainer.gradient.gradient_precision import (
    first_examples,
    float_means_double,
    has_room,
    in_double,
)
from lightning_tuning._trainer.gradient.gradient_recorder import FunctionRecorder
from lightning_tuning._trainer.gradient.gradient_surface import ParameterSurface
from lightning_tuning._trainer.sandbox import Sandbox
from lightning_tuning._trainer.steps import _to_device
from lightning_tuning.functional.gradient.gradient_check import (
    GradientCheckResult,
    ParameterGradient,
)
from lightning_tuning.functional.gradient.gradient_function import check_calls
from lightning_tuning.functional.gradient.gradient_slopes import choose_entries, compare

_TENSORS = 256
"""Of a module with more parameter tensors, so many are compared, evenly spread."""
_CLOSELY = 12
"""So many tensors that disagree are looked at entry by entry."""
_BATCHES = 8
_PRECISIONS = ("double", "forced double", "own")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientSettings:
    """What a gradient check was asked to do; see ``GradientCheck`` for each."""

    num_entries: int
    eps: float
    num_samples: int
    burn_in_steps: int


def measure_gradients(
    trainer: Trainer, module: LightningModule, settings: GradientSettings
) -> GradientCheckResult:
    """Compare a program's gradients with differences of its loss; nothing of it stays.

    Args:
        trainer: A trainer in ``on_train_start``.
        module: Its module.
        settings: How many entries and examples, the step, the burn-in.

    Raises:
        CannotProbeError: The program can't be tried and put back, or gives no loss.
    """
    if any(type(p.data) is not Tensor for p in module.parameters()):
        raise CannotProbeError("the weights are sharded or of a type of their own")
    with eagerly(), Sandbox(trainer, module) as box:
        steps = _burn_in(box, settings.burn_in_steps)
        with no_steps(trainer), torch.random.fork_rng([]):
            return dataclasses.replace(_at_present_weights(box, settings), step=steps)


def _burn_in(box: Sandbox, steps: int) -> int:
    """Train a little; if that leads nowhere, stay at the start."""
    losses: list[Tensor] = []
    try:
        box.run(steps, after_step=lambda _, loss: losses.append(loss))
    except CannotProbeError:
        raise
    except Exception:  # a diverged program may say anything
        box.rewind()
        return 0
    finite = [p.detach().isfinite().all() for p in box.module.parameters()]
    if losses and not bool(torch.stack([*finite, torch.stack(losses).isfinite().all()]).all()):
        box.rewind()
        return 0
    box.trainer.training = True
    return len(losses)


def _at_present_weights(box: Sandbox, settings: GradientSettings) -> GradientCheckResult:
    problems: list[str] = []
    precisions: tuple[str, ...] = _PRECISIONS
    if box.trainer.world_size > 1:
        problems.append("the weights are shared with other processes")
        precisions = ("own",)
    elif not has_room(box.module):
        problems.append("double precision finds no room in memory here")
        precisions = ("own",)
    found: list[GradientCheckResult] = []
    for data, index, samples in _batches(box, settings.num_samples):
        for precision in precisions:
            if found and precision == "own":
                break
            try:
                with _precision(box.module, precision):
                    check = _Check(box, data, index, settings, precision)
                    result = check.result(problems)
            except Exception as error:  # somebody's code in another precision or batch size
                problems.append(_said(error, precision))
                continue
            found.append(dataclasses.replace(result, num_samples=samples))
            if all(p.agrees for p in result.parameters):
                return found[-1]
        if found:
            # single precision somewhere inside looks like a wrong gradient
            return min(found, key=lambda one: sum(not p.agrees for p in one.parameters))
    raise CannotProbeError(problems[0] if problems else "there is no batch")


@contextlib.contextmanager
def _precision(module: LightningModule, precision: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if precision != "own":
            stack.enter_context(in_double(module))
        if precision == "forced double":
            stack.enter_context(float_means_double())
        yield


def _said(error: Exception, precision: str) -> str:
    if isinstance(error, CannotProbeError):
        return str(error)
    raised = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
    where = "with these examples" if precision == "own" else "in double precision"
    return f"the program does not run {where} ({raised})"


def _batches(box: Sandbox, num_samples: int) -> Iterator[tuple[Any, int, int]]:
    """Yield a few examples of a batch, and the whole batch for programs that need it."""
    one_pass = box._batches.one_pass(epoch=box.trainer.current_epoch)
    for batch, _ in zip(one_pass, range(_BATCHES), strict=False):
        if batch.data is None:
            continue
        data = _to_device(box.trainer, batch.data, 0)
        few = first_examples(data, num_samples)
        if few is not None:
            yield few, batch.position, num_samples
        yield data, batch.position, 0
        return


class _Check:
    """A check of one program in one precision."""

    def __init__(
        self, box: Sandbox, data: Any, index: int, settings: GradientSettings, precision: str
    ) -> None:
        self._settings = settings
        self._double = precision != "own"
        self._forced = precision == "forced double"
        named = [(n, p) for n, p in box.module.named_parameters() if p.requires_grad]
        self._parameters = [(n, p) for n, p in named if p.is_floating_point()]
        self._loss = RepeatedLoss(box.trainer, box.module, data, index, double=self._double)

    def result(self, problems: Sequence[str]) -> GradientCheckResult:
        """Compare parameters where that is possible, and each Function by itself."""
        names = {id(p): n for n, p in self._parameters}
        try:
            with FunctionRecorder(names) as recorder:
                values, gradients = self._loss.gradients([p for _, p in self._parameters])
            if not values.isfinite().all():
                raise CannotProbeError("the loss is not finite")
            if self._double and not self._forced and self._loss.is_single:
                raise CannotProbeError("the loss is computed in single precision")
            reached = {key for of_loss in gradients for key in of_loss}
            starved = [name for key, name in names.items() if key not in reached]
            functions = check_calls(recorder.calls, eps=self._settings.eps, starved=starved)
            parameters: tuple[ParameterGradient, ...] = ()
            left_out, unchecked = 0, problems[0] if problems else ""
            if self._double:
                unchecked = "" if torch.equal(self._loss.values(), values) else _NOT_THE_SAME
            if self._double and not unchecked:
                self._loss.spare(values)
                parameters, left_out = self._compare(gradients, values)
            return GradientCheckResult(
                parameters=parameters, functions=functions, unchecked=unchecked, left_out=left_out
            )
        finally:
            self._loss.rewind()

    def _compare(
        self, gradients: Gradients, values: Tensor
    ) -> tuple[tuple[ParameterGradient, ...], int]:
        known = [(n, p) for n, p in self._parameters if any(id(p) in g for g in gradients)]
        spacing = max(len(known) / _TENSORS, 1.0)
        chosen = [known[int(k * spacing)] for k in range(min(len(known), _TENSORS))]
        found, closely = [], _CLOSELY
        for number, (name, parameter) in enumerate(chosen):
            surface = ParameterSurface(self._loss, parameter, gradients, values)
            generator = torch.Generator().manual_seed(number)
            entries = choose_entries(surface.gradients, self._settings.num_entries, generator)
            size = float(parameter.detach().square().mean().sqrt()) if parameter.numel() else 0.0
            step = self._settings.eps * (size or 1.0)
            if not len(entries):
                continue
            seen = compare(surface, entries, step, generator, closely=closely > 0)
            one = ParameterGradient(
                name=name,
                **dataclasses.asdict(seen.slope),
                entries=seen.entries,
                kinks=seen.kinks,
                depth=len(chosen) - number,
            )
            closely -= not one.agrees
            found.append(one)
        return tuple(found), len(known) - len(chosen)


_NOT_THE_SAME = "the loss is another one each time, although the random numbers are the same"
