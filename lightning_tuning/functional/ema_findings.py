"""What there is to say about an average of weights."""

from __future__ import annotations

from lightning_tuning.findings import Finding, Verdict

_CHECK = "ema"


def half_life_finding(
    half_life: float, length: float | None, *, unit: str, decay: float, warmup: bool
) -> Finding:
    """Compare the half-life of an average with the length of the fit.

    Args:
        half_life: In ``unit``.
        length: Of the whole fit, in ``unit``; None if nobody knows it.
        unit: ``"optimizer steps"`` or ``"batches"``.
        decay: The decay of one of them.
        warmup: Whether early averages follow the weights.

    Example:
        >>> finding = half_life_finding(
        ...     693.0, 200, unit="optimizer steps", decay=0.999, warmup=False
        ... )
        >>> finding.verdict
        'warn'
    """
    verdict: Verdict = "pass"
    hint = ""
    if length is None:
        verdict, compared = "skip", "; it can't be compared with the fit, whose length is not known"
        hint = "Set `max_steps` or `max_epochs`, if it has one."
    elif half_life <= length * (1 + 1e-9):  # what is read back from a decay is rounded
        compared = f", in a fit of {length:.0f}"
    elif warmup:
        compared = (
            f", and its warm-up lasts longer than the fit of {length:.0f}: the average spans about"
            " the last tenth of it"
        )
    else:
        verdict = "warn"
        compared = (
            f", longer than the fit of {length:.0f}: the average stays near the first weights"
        )
        hint = "Take a smaller decay or half_life, or warmup=True."
    return Finding(
        check=_CHECK,
        code="ema_half_life",
        verdict=verdict,
        message=(
            f"The half-life of the average is {half_life:.3g} {unit} (decay {decay:.6g}){compared}."
        ),
        evidence={"half_life": half_life, "length": length, "decay": decay, "warmup": warmup},
        hint=hint,
    )


def not_started_finding(steps: int, update_after_step: int) -> Finding:
    """Say that a fit ended before its average began."""
    return Finding(
        check=_CHECK,
        code="ema_not_started",
        verdict="warn",
        message=(
            f"The average never began: {steps} optimizer steps were seen, and"
            f" update_after_step={update_after_step}. The weights are those of the training."
        ),
        evidence={"steps": steps, "update_after_step": update_after_step},
        hint="Lower update_after_step, or train longer.",
        step=steps,
    )


def started_from_weights_finding(step: int) -> Finding:
    """Say that the checkpoint of a resumed fit holds no average."""
    return Finding(
        check=_CHECK,
        code="ema_started_from_weights",
        verdict="warn",
        message=(
            "The checkpoint holds no average for this callback: it begins anew with the weights of"
            f" step {step}."
        ),
        evidence={"step": step},
        hint="Nothing to do if the checkpoint was made without EMAWeights.",
        step=step,
    )


def not_judging_finding(index: int) -> Finding:
    """Say that another instance puts its average into the module."""
    return Finding(
        check=_CHECK,
        code="ema_not_judging",
        verdict="skip",
        message=(
            "Another EMAWeights comes before this one, and one alone can put its average into the"
            " module."
        ),
        evidence={"index": index},
        hint=(
            "Reach this one's weights by `with callback.averaged():`, or in a checkpoint by"
            f" `checkpoint_weights(path, index={index})`."
        ),
    )


def one_pass_finding(reason: str) -> Finding:
    """Say that validation judges the averaged weights alone, though both were asked for."""
    return Finding(
        check=_CHECK,
        code="ema_not_both",
        verdict="skip",
        message=f"Validation judges the averaged weights alone: {reason}.",
        hint="Compare with a second fit that has validate='raw'.",
    )


def recalibrated_finding(batches: int) -> Finding:
    """Say that BatchNorm's statistics are those of the averaged weights."""
    return Finding(
        check=_CHECK,
        code="batch_norm_recalibrated",
        verdict="pass",
        message=f"BatchNorm's statistics are recomputed for the average over {batches} batches.",
        evidence={"batches": batches},
    )


def not_recalibrated_finding(reason: str) -> Finding:
    """Say that BatchNorm's statistics are still those of the training."""
    return Finding(
        check=_CHECK,
        code="batch_norm_recalibrated",
        verdict="skip",
        message=f"BatchNorm's statistics are those of the training: {reason}.",
        hint="Set recalibrate_batch_norm=False, or buffers='average'.",
    )
