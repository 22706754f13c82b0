"""What a tiny batch says about a program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lightning_tuning.findings import Finding, Scalar, Verdict
from lightning_tuning.functional.overfit_batch import OverfitBatchResult, share_done

OVERFIT_BATCH_CHECK = "overfit_batch_check"
HARDLY = 0.3
"""So much of the way from chance to the floor is too little, whatever the capacity."""
_NEXT_TO_NOTHING = 0.02
_NEEDED_RATES = 7
_CAPACITY = 2
"""So many parameters for each value to be learnt by heart are enough for any network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverfitEvidence:
    """What is known when a tiny batch is judged.

    Attributes:
        result: What was measured.
        asked: Whether the person named the loss to reach.
        trains_badly: Whether a hundred ordinary steps learn next to nothing.
        judgeable: Whether the loss tells how well the program learns: one optimizer, and targets
            that do not come from the network itself.
        parameters: Numbers that are trained.
        values: Numbers among the targets of the batch.
        features: Numbers that the inputs of one example are; None where that is not known.
        unclear: Why inputs can't be told from targets; empty where they can.
        ignored: Whether the network's output depends on nothing in the batch, at any weights.
        unconditional: Whether nothing in the batch is an input.
        setting: The code of the setting that is known to spoil the training; empty if none is.
    """

    result: OverfitBatchResult
    asked: bool = False
    trains_badly: bool = False
    judgeable: bool = True
    parameters: int = 0
    values: int = 0
    features: int | None = None
    unclear: str = ""
    ignored: bool = False
    unconditional: bool = False
    setting: str = ""


def speak(
    verdict: Verdict,
    code: str,
    message: str,
    *,
    evidence: Mapping[str, Scalar] | None = None,
    hint: str = "",
) -> tuple[Finding, ...]:
    """Return one finding of the overfit check.

    Example:
        >>> [finding] = speak("skip", "input_ignored", "There are no inputs.")
        >>> finding.check
        'overfit_batch_check'
    """
    return (
        Finding(
            check=OVERFIT_BATCH_CHECK,
            code=code,
            verdict=verdict,
            message=message,
            evidence=evidence or {},
            hint=hint,
        ),
    )


def batch_overfitted(evidence: OverfitEvidence) -> tuple[Finding, ...]:
    """Judge whether the tiny batch was driven to its floor."""
    result = evidence.result
    best = result.best
    numbers: dict[str, Scalar] = {
        "samples": result.samples,
        "start": result.start,
        "chance": result.chance,
        "floor": result.floor,
        "reached": best.reached,
        "share": result.share,
        "rate": best.rate,
        "steps": len(best.losses),
    }
    if not result.runs[0].losses or not math.isfinite(result.start):
        first = result.runs[0]
        problem = first.error or f"the loss of the first step is {result.start}"
        return speak("skip", "overfit_not_judged", f"Nothing was learnt: {problem}.")
    if result.overfitted and (evidence.judgeable or evidence.asked):
        return speak("pass", "batch_overfitted", _success(result), evidence=numbers)
    if not all(run.whole for run in result.runs):
        text = f"{_tried(result)}; time was over before it was done."
        hint = "Give it fewer examples (num_samples)."
        return speak("skip", "overfit_not_judged", text, hint=hint, evidence=numbers)
    if evidence.asked or _blames(evidence):
        verdict: Verdict = "fail" if evidence.asked or result.chance is not None else "warn"
        hint = (
            "Something between data and loss is broken: follow the other findings first, then "
            "look at one example's input, output and target by eye."
        )
        text = f"A tiny batch can't be learnt by heart: {_tried(result)}."
        return speak(verdict, "cannot_overfit_batch", text, hint=hint, evidence=numbers)
    text = f"{_tried(result)}. That is not judged: {_excuse(evidence)}."
    hint = "Name the loss that it should reach (target_loss), or give it more steps (max_steps)."
    return speak("skip", "overfit_not_judged", text, hint=hint, evidence=numbers)


def input_heeded(evidence: OverfitEvidence) -> tuple[Finding, ...]:
    """Judge whether the inputs matter, by the same with zeros for inputs."""
    result, code = evidence.result, "input_ignored"
    if evidence.ignored and evidence.trains_badly and result.share < HARDLY:
        return speak(
            "fail",
            code,
            "The output of the network does not depend on its inputs: exchanged between examples "
            f"they change not one bit of it, whatever the weights are; {_tried(result)}.",
            hint="Follow the input through forward: the result of a layer is dropped, or the "
            "wrong part of it goes on.",
            evidence={"reached": result.best.reached, "chance": result.chance},
        )
    if evidence.unclear or evidence.unconditional or result.zeroed is None:
        reason = evidence.unclear or "no tensor of the batch is an input alone"
        return speak("skip", code, f"Inputs were not replaced by zeros: {reason}.")
    real, zeroed = result.best.reached, result.zeroed.reached
    text = f"With zeros for inputs the tiny batch reaches {zeroed:.4g}, with its inputs {real:.4g}"
    numbers = {"reached": real, "zeroed": zeroed}
    if _share(result, real) - _share(result, zeroed) > 0.1:
        return speak("pass", code, f"{text}.", evidence=numbers)
    return speak(
        "skip", code, f"{text}: too little to tell whether inputs matter.", evidence=numbers
    )


def _blames(evidence: OverfitEvidence) -> bool:
    """Whether nothing but a fault explains what was reached."""
    result = evidence.result
    tried = evidence.trains_badly and evidence.judgeable and len(result.runs) >= _NEEDED_RATES
    if not tried or evidence.ignored or evidence.setting or _breaks_down(result):
        return False
    if result.chance is None:
        return 0 < result.start < math.inf and _share(result, result.best.reached) < 0.01
    return result.share < _too_little(evidence) and evidence.parameters >= _needed(evidence)


def _too_little(evidence: OverfitEvidence) -> float:
    """Return the share below which no lack of capacity is an excuse."""
    known = evidence.features is not None and evidence.result.samples is not None
    # a linear model of few features can't fit more examples than that, however many weights
    enough = known and (evidence.features or 0) >= (evidence.result.samples or 0)
    return HARDLY if enough else _NEXT_TO_NOTHING


def _needed(evidence: OverfitEvidence) -> int:
    """Return how many parameters learn the targets of the batch by heart in any network."""
    return _CAPACITY * evidence.values


def _breaks_down(result: OverfitBatchResult) -> bool:
    return not any(all(map(math.isfinite, run.losses)) for run in result.runs)


def _excuse(evidence: OverfitEvidence) -> str:
    """Return the first reason that applies for not blaming the program."""
    result = evidence.result
    reasons = (
        (evidence.setting or evidence.ignored, f"see {evidence.setting or 'input_ignored'}"),
        (_breaks_down(result), "at every rate the loss ends as no number"),
        (
            not evidence.judgeable,
            "several optimizers, or targets that the network makes itself, move the floor",
        ),
        (result.chance is None, "the floor of this loss is not known"),
        (
            not evidence.trains_badly,
            "the program itself trains well, so that capacity or steps are the limit",
        ),
        (
            evidence.parameters < _needed(evidence),
            f"{evidence.parameters} parameters may be too few for {evidence.values} target values",
        ),
    )
    found = next((text for applies, text in reasons if applies), "")
    return found or "it learns more than chance, and capacity or noise may be the limit"


def _success(result: OverfitBatchResult) -> str:
    best, first = result.best, result.runs[0]
    steps = next(i for i, loss in enumerate(best.losses, 1) if loss <= result.target)
    text = (
        f"{_examples(result)} learnt by heart: the loss fell from {result.start:.4g} to "
        f"{best.losses[steps - 1]:.4g} in {steps} steps at a learning rate of {best.rate:.2g}"
    )
    if best.factor != first.factor:
        text += f", not at {first.rate:.2g}, where {len(first.losses)} steps reach "
        text += f"{first.reached:.4g}"
    return f"{text}."


def _tried(result: OverfitBatchResult) -> str:
    best, rates = result.best, [run.rate for run in result.runs]
    text = (
        f"{len(best.losses)} steps on {_examples(result)} bring the loss from {result.start:.4g} "
        f"to {best.reached:.4g}"
    )
    if len(rates) > 1:
        text += f" at the best of {len(rates)} learning rates ({min(rates):.2g} to "
        text += f"{max(rates):.2g})"
    if result.chance is not None:
        text += f"; chance is {result.chance:.4g} and the floor {result.floor:.4g}"
    return text


def _examples(result: OverfitBatchResult) -> str:
    if result.samples is None:
        return "one batch"
    return "1 example" if result.samples == 1 else f"{result.samples} examples"


def _share(result: OverfitBatchResult, reached: float) -> float:
    return share_done(reached, start=result.start, chance=result.chance, floor=result.floor)
