"""Rules about a learning rate that is gone before the fit is over, and about momentum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_tuning.findings import Finding, Scalar
from lightning_tuning.functional.curves.curve_answer import answer
from lightning_tuning.functional.curves.curve_reading import Reading

_SPENT = 0.98
_NOTHING = 1e-3
_UNFINISHED = 0.85
_MOMENTUM = 0.98
_OF_LONG_STEPS = ("loss_diverging", "lr_too_high", "loss_oscillation")


def momentum_too_high(r: Reading, findings: Sequence[Finding]) -> Finding:
    """Judge an unusual momentum by what the other rules say of steps that are too long.

    With a momentum of m the steps of one gradient add up to 1 / (1 - m) of it.

    Args:
        r: The curves.
        findings: Those of the other rules.
    """
    momentum = r.curves.momentum
    numbers: dict[str, Scalar] = {"momentum": momentum}
    loud = [f for f in findings if f.code in _OF_LONG_STEPS and f.verdict in ("warn", "fail")]
    if momentum >= _MOMENTUM and loud:
        return answer(
            "momentum_too_high",
            "warn",
            f"With a momentum of {momentum:.4g} each gradient goes into steps of"
            f" {1 / (1 - momentum):.0f} times its length in the end. {loud[0].message}",
            "Lower the momentum (Adam: beta1) before the learning rate; 0.9 is usual.",
            step=loud[0].step,
            numbers=numbers,
        )
    told = f"The momentum is {momentum:.4g}" if momentum else "There is no momentum"
    return answer("momentum_too_high", "pass", f"{told}.", numbers=numbers)


def lr_decayed_too_fast(r: Reading) -> Finding:
    """Judge a rate that is all but spent in the first half, of a loss that was still falling."""
    rates, losses = r.rates, r.losses
    total = float(rates.sum())
    if r.progress is None or total <= 0 or np.ptp(rates) <= 0.5 * rates.max():
        why = "The rate does not decay." if total > 0 else "The rate is zero."
        return answer("lr_decayed_too_fast", "skip" if r.progress is None else "pass", why)
    spent = min(int(np.searchsorted(np.cumsum(rates) / total, _SPENT)) + 1, len(rates))
    share = spent / len(rates)
    numbers: dict[str, Scalar] = {
        "peak": float(rates.max()),
        "last": float(rates[-1]),
        "share": share,
        "end": r.end,
    }
    told = (
        f"{_SPENT:.0%} of all learning rate is spent in the first {share:.0%} of the fit; it ends"
        f" at {rates[-1]:.2g}"
    )
    ends = r.curves.epoch_ends
    # spent before all examples came twice, in a fit of many epochs: counted in steps for epochs
    in_steps = len(ends) >= 5 and r.curves.train.steps[spent - 1] <= ends[1] and share <= 0.3
    # what a rate of nothing has not learnt, it never will, however good a metric is by then
    gone = rates[-1] < _NOTHING * rates.max() and r.progress < _UNFINISHED
    if in_steps and r.curves.chance is not None and (gone or r.bad(0.8)):
        return answer(
            "lr_decayed_too_fast",
            "warn",
            f"{told}, before all examples came twice, and the loss ends at {r.end:.4g}.",
            "See whether the scheduler counts steps for epochs, and let it decay over the whole"
            " fit.",
            numbers=numbers,
        )
    if share <= 0.6 and spent >= 10 and len(losses) - spent >= 20 and r.bad(0.8):
        while_high = losses[: max(spent // 2, 5)]
        least, most = r.falls(while_high)
        _, after = r.falls(losses[spent:])
        fell = least > 0 and most > 0
        if fell and after < 0.1 * max(r.end, 1e-12):
            return answer(
                "lr_decayed_too_fast",
                "warn",
                f"{told}, and the loss has stayed at {r.end:.4g} since.",
                "Let it decay over the whole fit, for example with a cosine.",
                numbers=numbers,
            )
    return answer("lr_decayed_too_fast", "pass", f"{told}.", numbers=numbers)
