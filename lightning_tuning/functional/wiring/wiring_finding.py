"""How the rules of the wiring check speak."""

from __future__ import annotations

from lightning_tuning.findings import Finding, Scalar, Verdict

WIRING_CHECK = "wiring_check"


def wiring(
    verdict: Verdict,
    code: str,
    message: str,
    *,
    hint: str = "",
    where: str = "",
    **evidence: Scalar,
) -> tuple[Finding, ...]:
    """Return one finding of the wiring check.

    Args:
        verdict: ``"pass"``, ``"warn"``, ``"fail"`` or ``"skip"``.
        code: One of :data:`~lightning_tuning.findings.CODES`; the rule's name.
        message: One sentence with the numbers.
        hint: One next action.
        where: Path of the parameter or layer.
        **evidence: The numbers themselves.

    Example:
        >>> [finding] = wiring("skip", "nan_in_data", "There are no floating-point inputs.")
        >>> finding.check
        'wiring_check'
    """
    return (
        Finding(
            check=WIRING_CHECK,
            code=code,
            verdict=verdict,
            message=message,
            evidence=evidence,
            hint=hint,
            where=where,
        ),
    )
