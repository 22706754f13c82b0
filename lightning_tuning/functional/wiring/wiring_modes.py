"""Layers in the wrong mode, as rules about the calls that training and validation make."""

from __future__ import annotations

import dataclasses

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring
from lightning_tuning.functional.wiring.wiring_parameters import listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingModes:
    """Layers that do in training what they do in evaluation.

    Attributes:
        norms: BatchNorm layers in evaluation mode at every step, whose statistics are still 0 and 1
            and whose network is trained.
        dropouts: Dropout layers that are off at every step in a part that is trained, and where.
        off_from: The outermost module that is in evaluation mode, ``"the whole module"`` for all.
        after_validation: Layers that are off in the step after a validation, and only there.
        steps: Number of real steps.
    """

    norms: tuple[str, ...]
    dropouts: tuple[str, ...]
    off_from: str
    after_validation: tuple[str, ...]
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationModes:
    """Layers that do in validation what they do in training.

    Attributes:
        dropouts: Layers with dropout that is on.
        norms: BatchNorm layers that normalise by the batch, though they keep statistics.
        changed: Largest relative difference between logged values of two validations with the same
            batches and other random numbers; None where nothing was logged.
        changed_name: The value that differed most.
        on_purpose: Why dropout or batch statistics may be meant; empty where nothing speaks for it.
    """

    dropouts: tuple[str, ...]
    norms: tuple[str, ...]
    changed: float | None
    changed_name: str
    on_purpose: str


def eval_mode_in_training(evidence: TrainingModes) -> tuple[Finding, ...]:
    """Judge the mode of layers in training."""
    code = "eval_mode_in_training"
    if evidence.norms:
        return wiring(
            "fail",
            code,
            f"{listed(evidence.norms)} {_be(evidence.norms)} in evaluation mode in all of "
            f"{evidence.steps} training steps, with statistics still at mean 0 and variance 1: "
            "nothing is normalised.",
            hint=f"Call train() on {evidence.off_from} before training goes on.",
            where=evidence.norms[0],
            layers=len(evidence.norms),
        )
    if evidence.dropouts:
        return wiring(
            "fail",
            code,
            f"Dropout is off in all of {evidence.steps} training steps in "
            f"{listed(evidence.dropouts)}, because {evidence.off_from} is in evaluation mode.",
            hint=f"Call train() on {evidence.off_from} before training goes on.",
            where=evidence.dropouts[0],
            layers=len(evidence.dropouts),
        )
    if evidence.after_validation:
        return wiring(
            "fail",
            code,
            f"After a validation {listed(evidence.after_validation)} "
            f"{_be(evidence.after_validation)} still in evaluation mode when training goes on.",
            hint="Call train() at the end of validation, or leave the modes to Lightning.",
            where=evidence.after_validation[0],
            layers=len(evidence.after_validation),
        )
    return wiring("pass", code, "Dropout and BatchNorm of what is trained are in training mode.")


def train_mode_in_validation(evidence: ValidationModes) -> tuple[Finding, ...]:
    """Judge the mode of layers in validation."""
    code = "train_mode_in_validation"
    live = (*evidence.norms, *evidence.dropouts)
    if not live:
        return wiring("pass", code, "Validation runs without dropout and batch statistics.")
    if evidence.on_purpose:
        text = f"{listed(live)} {_be(live)} live in validation; {evidence.on_purpose}."
        return wiring("pass", code, text)
    if not evidence.norms and evidence.changed == 0:
        text = f"Dropout of {listed(live)} is on in validation, but changes nothing that is logged."
        return wiring("pass", code, text)
    what = "BatchNorm uses the batch's own statistics" if evidence.norms else "Dropout is on"
    names = evidence.norms or evidence.dropouts
    proof = (
        f"; {evidence.changed_name} of the same batches differs by {evidence.changed:.2%} from one "
        "pass to the next"
        if evidence.changed
        else ""
    )
    return wiring(
        "fail",
        code,
        f"{what} in validation in {listed(names)}{proof}.",
        hint="Don't call train() in validation; give functional dropout training=self.training.",
        where=names[0],
        layers=len(live),
        changed=evidence.changed,
    )


def _be(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"
