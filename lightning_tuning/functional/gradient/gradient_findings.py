"""What there is to say about a gradient check."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_tuning.findings import Finding, Verdict
from lightning_tuning.functional.gradient.gradient_check import (
    FunctionGradient,
    GradientCheckResult,
    ParameterGradient,
    band,
)

CHECK = "gradient_check"
_NAMED = 8


def said(result: GradientCheckResult) -> tuple[Finding, ...]:
    """Return the findings of a check: wrong Functions first.

    A parameter whose gradient differs from the numerical one is at fault only where a Function
    behind it is: else a ``detach``, a hook or a rounding may mean it so.

    Example:
        >>> function = FunctionGradient(
        ...     name="Sine", outcome="differs", error=2.0, analytic=-1.0, numeric=1.0,
        ...     parameters=("l1.weight",),
        ... )
        >>> result = GradientCheckResult(parameters=(), functions=(function,))
        >>> worst = said(result)[0]
        >>> worst.code, worst.verdict, worst.where
        ('wrong_gradient', 'fail', 'l1.weight')
    """
    apart = [p for p in result.parameters if not p.agrees]
    wrong = [f for f in result.functions if f.outcome == "differs"]
    found = [_wrong(function, apart) for function in wrong]
    to_blame = {name for function in wrong for name in function.parameters}
    unexplained = [p for p in apart if p.name not in to_blame]
    if unexplained:
        found.append(_by_design(unexplained))
    silent = [f for f in result.functions if f.outcome in ("by design", "not checked")]
    found += [_silent(function) for function in silent]
    if result.unchecked:
        found.append(skipped(f"the parameters were not compared: {result.unchecked}"))
    elif not any(p.is_felt for p in result.parameters):
        found.append(skipped("no parameter gets a gradient above 1e-10 here"))
    if not wrong:
        found += _passed(result)
    return tuple(found)


def skipped(reason: str) -> Finding:
    """Say why something was not checked."""
    return Finding(
        check=CHECK,
        code="gradient_not_checked",
        verdict="skip",
        message=f"Not checked: {reason}.",
        hint="If it is your own code, compare it with torch.autograd.gradcheck.",
    )


def _wrong(function: FunctionGradient, apart: Sequence[ParameterGradient]) -> Finding:
    errors = {p.name: p.error for p in apart}
    # nearest first; where the loss was compared too, those that it shows to be wrong
    names = [n for n in function.parameters if n in errors] or list(function.parameters)
    verdict: Verdict = "fail" if band(function.error) == "wrong" else "warn"
    reaches = f" It is part of the gradient of {_listed(names)}." if names else ""
    return Finding(
        check=CHECK,
        code="wrong_gradient",
        verdict=verdict,
        where=names[0] if names else function.name,
        message=f"{function.name}.backward gives {function.analytic:.4g} for input "
        f"{function.input} where its forward has the slope {function.numeric:.4g} "
        f"(relative error {function.error:.2g}).{reaches}",
        hint=f"Derive {function.name}.backward anew, and try it with torch.autograd.gradcheck.",
        evidence={
            "function": function.name,
            "input": function.input,
            "relative_error": function.error,
            "analytic": function.analytic,
            "numeric": function.numeric,
            "parameter_error": errors.get(names[0]) if names else None,
            "parameters": ", ".join(names[:_NAMED]),
            "calls": function.calls,
        },
    )


def _by_design(apart: Sequence[ParameterGradient]) -> Finding:
    worst = max(apart, key=lambda p: p.error)
    return Finding(
        check=CHECK,
        code="gradient_not_checked",
        verdict="skip",
        where=worst.name,
        message=f"The gradient of {_listed([p.name for p in apart])} is not the slope of the loss, "
        "and no hand-written Function is wrong: something is detached, rounded or hooked on the "
        f"way (worst relative error {worst.error:.2g}).",
        hint="Nothing to do if that is meant; else look for detach, no_grad and hooks.",
        evidence={
            "parameters": len(apart),
            "relative_error": worst.error,
            "analytic": worst.analytic,
            "numeric": worst.numeric,
        },
    )


def _silent(function: FunctionGradient) -> Finding:
    return Finding(
        check=CHECK,
        code="gradient_not_checked",
        verdict="skip",
        where=function.name,
        message=f"{function.name}.backward was not judged: {function.reason}.",
        hint="Nothing to do if that is meant so.",
        evidence={"function": function.name, "relative_error": function.error},
    )


def _passed(result: GradientCheckResult) -> list[Finding]:
    good = [p for p in result.parameters if p.agrees and p.is_felt]
    agreeing = [f for f in result.functions if f.outcome == "agrees"]
    if not good and not agreeing:  # all that there is to say is said
        return []
    parts, worst = [], max((f.error for f in agreeing), default=0.0)
    if good:
        entries = sum(p.entries for p in good)
        parts.append(f"{entries} entries of {len(good)} parameter tensors")
        worst = max(worst, *(p.error for p in good))
    if agreeing:
        plural = "s" if len(agreeing) > 1 else ""
        parts.append(f"{len(agreeing)} hand-written Function{plural}")
    left = f", {result.left_out} more tensors left out for time" if result.left_out else ""
    size = f"worst relative error {worst:.1e}" if worst else "no difference above rounding"
    return [
        Finding(
            check=CHECK,
            code="gradient_checked",
            verdict="pass",
            message=f"{' and '.join(parts)} have the gradient that differences show ({size}; "
            f"{result.kinks} entries left out at kinks{left}).",
            evidence={
                "entries": sum(p.entries for p in good),
                "parameters": len(good),
                "functions": len(agreeing),
                "relative_error": worst,
                "kinks": result.kinks,
                "left_out": result.left_out,
                "samples": result.num_samples,
                "step": result.step,
            },
        )
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
