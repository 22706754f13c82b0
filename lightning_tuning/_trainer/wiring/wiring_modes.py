"""In which mode layers are in training, in validation, and in training after a validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.ordinary_run import within_time
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.before_step import BeforeStep
from lightning_tuning._trainer.wiring.fates import Fate
from lightning_tuning._trainer.wiring.mode_recorder import ModeCall, ModeRecorder
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning._trainer.wiring.watched_steps import stepping
from lightning_tuning.functional.wiring import wiring_modes as rules
from lightning_tuning.functional.wiring.wiring_modes import TrainingModes, ValidationModes

_STEPS = 8
_WHOLE = "the whole module"


def measure_training(probe: Probe) -> TrainingModes:
    """Watch layers in real steps, and in a step after a validation."""
    fates = stepping(probe).fates
    recorder = ModeRecorder(probe.module)
    run = probe.run(_STEPS, watch=[recorder], until=within_time(probe, 5.0))
    untracked = _pristine(probe.module)
    off = _always_off(recorder.calls)
    norms = [c for c in off if c.kind == "batch_norm" and c.layer in untracked]
    norms = [c for c in norms if _is_trained(c.layer, fates) or _has_no_weights(probe.module, c)]
    dropouts = [c for c in off if c.kind == "dropout" and _is_trained_part(probe.module, c, fates)]
    first = next(iter((*norms, *dropouts)), None)
    return TrainingModes(
        norms=_layers(norms),
        dropouts=_layers(dropouts),
        off_from=_WHOLE if first is None or not first.off_from else first.off_from,
        after_validation=_off_after_validation(probe, recorder.calls),
        steps=len(run.losses),
    )


def measure_validation(probe: Probe) -> ValidationModes:
    """Watch layers in validation, twice with other random numbers."""
    recorder = ModeRecorder(probe.module)
    one = probe.validate(
        watch=[BeforeStep(probe.module, "validation_step", recorder.begin), recorder, _Seeded(11)]
    )
    live = [c for c in recorder.calls if c.live]
    dropouts = [c for c in live if c.kind == "dropout" and (c.of_layer or not c.on_data)]
    norms = [c for c in live if c.kind == "batch_norm"]
    changed, name = 0.0, ""
    if dropouts and one:
        changed, name = _difference(one, probe.validate(watch=[_Seeded(12)]))
    return ValidationModes(
        dropouts=_layers(dropouts),
        norms=_layers(norms),
        changed=changed if one else None,
        changed_name=name,
        on_purpose=_purpose(probe.trainer, recorder),
    )


def _purpose(trainer: Trainer, recorder: ModeRecorder) -> str:
    if recorder.repeats:
        return "the network runs several times on the same input, as for an average over masks"
    if len(trainer.optimizers) > 1:
        return "generators are sampled so"
    return ""


def _always_off(calls: Sequence[ModeCall]) -> list[ModeCall]:
    recorded = [c for c in calls if c.with_grad]
    live = {(c.layer, c.kind) for c in recorded if c.live}
    return [c for c in recorded if (c.layer, c.kind) not in live and c.off_from is not None]


def _pristine(module: nn.Module) -> set[str]:
    """Return the BatchNorm layers whose statistics nothing has touched, by path."""
    return {
        path
        for path, part in module.named_modules()
        if isinstance(part, _BatchNorm)
        and isinstance(part.running_mean, Tensor)
        and isinstance(part.running_var, Tensor)
        and bool((part.running_mean == 0).all() & (part.running_var == 1).all())
    }


def _has_no_weights(module: nn.Module, norm: ModeCall) -> bool:
    layer = module.get_submodule(norm.layer)
    return next(layer.parameters(), None) is None and norm.off_from == ""


def _is_trained(path: str, fates: Sequence[Fate]) -> bool:
    return any(f.fed and f.holders and _within(f.layer, path) for f in fates)


def _is_trained_part(module: nn.Module, dropout: ModeCall, fates: Sequence[Fate]) -> bool:
    """Whether what is in evaluation mode has weights that learn, and none that learnt before."""
    root = dropout.off_from or ""
    inside = [f for f in fates if _within(f.layer, root)]
    known = [p for p, m in module.named_modules() if isinstance(m, _BatchNorm) and _within(p, root)]
    loaded = set(known) - _pristine(module)
    learning = [f for f in inside if f.fed and f.holders]
    return bool(learning) and not loaded and not any(f.fresh is False for f in inside)


def _within(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def _layers(calls: Sequence[ModeCall]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c.layer or "the step itself" for c in calls))


def _off_after_validation(probe: Probe, training: Sequence[ModeCall]) -> tuple[str, ...]:
    modes = _Modes(probe.module)
    before = modes.now()
    try:
        probe.validate(num_batches=1, watch=[modes])
    except CannotProbeError:
        return ()
    if not any(on and not modes.after.get(path, True) for path, on in before.items()):
        return ()
    recorder = ModeRecorder(probe.module)
    probe.step(probe.batches(1)[0], watch=[_GoesOn(probe.trainer, modes.after), recorder])
    live = {(c.layer, c.kind) for c in training if c.live and c.with_grad}
    return _layers([c for c in _always_off(recorder.calls) if (c.layer, c.kind) in live])


class _Modes:
    """Remembers the modes in which a validation leaves the modules."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.after: dict[str, bool] = {}

    def now(self) -> dict[str, bool]:
        return {path: part.training for path, part in self._module.named_modules()}

    def __enter__(self) -> None:
        """Nothing is remembered before."""

    def __exit__(self, *_: object) -> None:
        self.after = self.now()


class _GoesOn:
    """Begins an epoch with the modes that a validation has left."""

    def __init__(self, trainer: Trainer, modes: Mapping[str, bool]) -> None:
        self._trainer = trainer
        self._modes = modes

    def __enter__(self) -> None:
        for path, part in self._trainer.lightning_module.named_modules():
            part.training = self._modes.get(path, part.training)
        call._call_lightning_module_hook(self._trainer, "on_train_epoch_start")

    def __exit__(self, *_: object) -> None:
        """The step's own end puts everything back."""


class _Seeded:
    """Starts with other random numbers."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        torch.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        """The validation's own end puts the random numbers back."""


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[float, str]:
    worst, name = 0.0, ""
    for key in one.keys() & other.keys():
        a, b = float(one[key]), float(other[key])
        scale = max(abs(a), abs(b), 1e-12)
        relative = abs(a - b) / scale if math.isfinite(a - b) else 0.0
        worst, name = max((worst, name), (relative, key))
    return (worst, name) if worst > 1e-5 else (0.0, "")


TRAINING = Topic(
    measure=measure_training, rules={"eval_mode_in_training": rules.eval_mode_in_training}
)
VALIDATION = Topic(
    measure=measure_validation,
    rules={"train_mode_in_validation": rules.train_mode_in_validation},
)
