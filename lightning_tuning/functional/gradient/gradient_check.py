"""Numerical against analytic gradients: how far apart, and what that means.

Source: CS231n, *Neural Networks 3: gradient checks* (Karpathy, Stanford). The formula and the bands
are its; so are a few entries of every parameter tensor, two or three examples, a burn-in, double
precision, random numbers held fixed, and kinks recognised by their winners.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Literal

Band = Literal["fine", "with kinks only", "doubtful", "wrong"]
Outcome = Literal["agrees", "differs", "by design", "not checked"]

FINE, WITH_KINKS, WRONG = 1e-7, 1e-4, 1e-2
"""CS231n's relative errors: happy below the first, wrong above the last; between the first two an
objective with kinks is in order."""
TINY = 1e-10
"""CS231n: gradients of about this size are too small to compare."""
_DEPTH = 10


def relative_error(analytic: float, numeric: float, *, noise: float = 0.0) -> float:
    """Return ``|a - n| / max(|a|, |n|)``, and 0 where both are zero.

    Symmetric, without a unit, between 0 and 2: 2 is a wrong sign, 1 a gradient that is zero on one
    side only, ``|1 - c|`` a gradient that is ``c < 1`` times the true one.

    Args:
        analytic: What the backward pass gave.
        numeric: The difference quotient.
        noise: A difference up to this is rounding in the quotient and counts as none.

    Example:
        >>> relative_error(1.0, -1.0), relative_error(0.0, 0.0), relative_error(0.5, 1.0)
        (2.0, 0.0, 0.5)
    """
    if not (math.isfinite(analytic) and math.isfinite(numeric)):
        return math.inf
    apart = abs(analytic - numeric) - noise
    return apart / max(abs(analytic), abs(numeric)) if apart > 0 else 0.0


def limit(depth: int = 1) -> float:
    """Return the relative error above which a gradient is wrong.

    1e-2, and in proportion more behind more than ten layers, as errors build up on the way.

    Example:
        >>> limit(), limit(30)
        (0.01, 0.03)
    """
    return WRONG * max(1.0, depth / _DEPTH)


def band(error: float, *, depth: int = 1) -> Band:
    """Return CS231n's opinion on a relative error.

    Args:
        error: The relative error.
        depth: So many layers lie between the loss and what was checked.

    Example:
        >>> [band(error) for error in (1e-9, 1e-5, 1e-3, 0.5)]
        ['fine', 'with kinks only', 'doubtful', 'wrong']
    """
    if error <= FINE:
        return "fine"
    if error <= WITH_KINKS:
        return "with kinks only"
    return "doubtful" if error <= limit(depth) else "wrong"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterGradient:
    """How the gradient of the loss in one parameter tensor compares with difference quotients.

    Attributes:
        name: Its path in the module.
        error: The largest relative error: over the checked entries, or along one direction through
            all of them where that agreed.
        analytic: What backward gave there.
        numeric: The difference quotient there.
        entries: So many entries were compared.
        kinks: So many more were left out, because a kink lies within their step.
        depth: The number of parameter tensors from here to the module's end, this one included.
    """

    name: str
    error: float
    analytic: float
    numeric: float
    entries: int
    kinks: int = 0
    depth: int = 1

    @property
    def agrees(self) -> bool:
        """Whether the error is below the limit for its depth."""
        return self.error <= limit(self.depth)

    @property
    def is_felt(self) -> bool:
        """Whether there is a gradient to speak of: one above 1e-10."""
        return max(abs(self.analytic), abs(self.numeric)) > TINY


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionGradient:
    """How the backward of one hand-written ``torch.autograd.Function`` compares with its forward.

    Attributes:
        name: The class.
        outcome: ``"agrees"``; ``"differs"``; ``"by design"``, where the two are not meant to agree;
            or ``"not checked"``.
        reason: Why it is by design, or could not be checked.
        input: Position of the worst argument of ``forward``.
        error: The largest relative error.
        analytic: What backward gave there.
        numeric: The difference quotient there.
        calls: So many of its calls were looked at.
        kinks: So many entries were left out, because they lie on a kink.
        parameters: The parameters whose gradient comes through the worst argument, nearest first.
    """

    name: str
    outcome: Outcome
    reason: str = ""
    input: int = 0
    error: float = 0.0
    analytic: float = 0.0
    numeric: float = 0.0
    calls: int = 1
    kinks: int = 0
    parameters: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientCheckResult:
    """What a gradient check measured.

    Attributes:
        parameters: One for each parameter tensor that gets a gradient and was checked.
        functions: One for each hand-written Function that the training step sends backward.
        unchecked: Why the parameters were not compared; empty where they were.
        left_out: So many parameter tensors were left out of a large module.
        num_samples: So many examples went into the loss; 0 where the batch could not be cut.
        step: Optimizer steps of the burn-in.

    Example:
        >>> result = GradientCheckResult(parameters=(), functions=())
        >>> GradientCheckResult.from_json(result.to_json()) == result
        True
    """

    parameters: tuple[ParameterGradient, ...]
    functions: tuple[FunctionGradient, ...]
    unchecked: str = ""
    left_out: int = 0
    num_samples: int = 0
    step: int = 0

    @property
    def errors(self) -> dict[str, float]:
        """The relative error of each parameter, by name."""
        return {p.name: p.error for p in self.parameters}

    @property
    def kinks(self) -> int:
        """The number of entries that were left out."""
        return sum(p.kinks for p in self.parameters) + sum(f.kinks for f in self.functions)

    def to_json(self) -> str:
        """Return all of it as JSON; an infinite error becomes null."""
        fields = dataclasses.asdict(self)
        for part in (*fields["parameters"], *fields["functions"]):
            for name in ("error", "analytic", "numeric"):
                part[name] = part[name] if math.isfinite(part[name]) else None
        return json.dumps(fields, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> GradientCheckResult:
        """Return the result that :meth:`to_json` wrote; null becomes infinite again."""
        fields = json.loads(text)
        for part in (*fields["parameters"], *fields["functions"]):
            for name in ("error", "analytic", "numeric"):
                part[name] = math.inf if part[name] is None else part[name]
        fields["parameters"] = tuple(ParameterGradient(**part) for part in fields["parameters"])
        fields["functions"] = tuple(
            FunctionGradient(**{**part, "parameters": tuple(part["parameters"])})
            for part in fields["functions"]
        )
        return cls(**fields)
