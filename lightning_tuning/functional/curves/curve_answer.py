"""How a rule about curves answers."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_tuning.findings import Finding, Scalar, Verdict

LOSS_CURVE_DIAGNOSIS = "loss_curve_diagnosis"


def answer(
    code: str,
    verdict: Verdict,
    message: str,
    hint: str = "",
    *,
    step: int = 0,
    numbers: Mapping[str, Scalar] | None = None,
) -> Finding:
    """Return a finding of this diagnosis.

    Example:
        >>> answer("overfitting", "skip", "Nothing is known.").check
        'loss_curve_diagnosis'
    """
    return Finding(
        check=LOSS_CURVE_DIAGNOSIS,
        code=code,
        verdict=verdict,
        message=message,
        hint=hint,
        step=step,
        evidence=numbers or {},
    )
