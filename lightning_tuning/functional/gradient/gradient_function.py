"""One call of a hand-written ``torch.autograd.Function``, checked by itself.

Some Functions are not meant to be the derivative of their forward: a straight-through estimator, a
gradient reversal. They are told from wrong ones by what their forward does:

- it hands its input on unchanged: the backward is a wish (reversal, scaling, clipping);
- it jumps somewhere: a rounding, a choice, a spike with a surrogate gradient;
- it does not move at all where backward gives a gradient: a straight-through estimator;
- the backward is not linear in what comes in: it clips or rounds gradients;
- it is given a function or a module to run: its gradient may be an approximation (implicit layers).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_tuning.functional.gradient.gradient_alone import (
    Alone,
    FunctionCall,
    InputSurface,
    NotCheckableError,
)
from lightning_tuning.functional.gradient.gradient_check import WITH_KINKS, FunctionGradient
from lightning_tuning.functional.gradient.gradient_slopes import (
    Slope,
    Surface,
    best,
    centred,
    crosses_kink,
)

_DIRECTIONS = 3
_ROUNDS = 8
_SCREEN = 1e-6
_LARGE = 2**24
_SATURATED = 1e-3


def check_calls(
    calls: Sequence[FunctionCall], *, eps: float, starved: Sequence[str] = ()
) -> tuple[FunctionGradient, ...]:
    """Compare some calls, and give one answer for each Function.

    Args:
        calls: Of any Functions. If one of a Function's calls tells that it is not meant as the
            derivative, this holds for all of them; else the worst counts.
        eps: As for :func:`check_call`.
        starved: As for :func:`check_call`.
    """
    found: dict[type[torch.autograd.Function], list[FunctionGradient]] = {}
    for number, call in enumerate(calls):
        one = check_call(call, eps=eps, seed=number, starved=starved)
        found.setdefault(call.function, []).append(one)
    return tuple(map(_of_one_function, found.values()))


def check_call(
    call: FunctionCall,
    *,
    eps: float = 1e-5,
    seed: int = 0,
    starved: Sequence[str] = (),
) -> FunctionGradient:
    """Compare the backward of one call with differences of its forward, in float64 if it can.

    Args:
        call: The call.
        eps: Step of the differences, in units of each input's root mean square.
        seed: Of the directions, and of whatever the Function itself draws.
        starved: Names of parameters that get no gradient at all.

    Example:
        >>> class Cube(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x**3
        ...     @staticmethod
        ...     def backward(ctx, grad):
        ...         return 2 * grad * ctx.saved_tensors[0] ** 2
        >>> args, ones = (torch.tensor([1.0, 2.0]),), (torch.ones(2),)
        >>> call = FunctionCall(
        ...     function=Cube, args=args, wanted=(0,), cotangents=ones, reached=((),)
        ... )
        >>> check_call(call).outcome, round(check_call(call).error, 3)
        ('differs', 0.333)
    """
    name = call.function.__name__
    if sum(t.numel() for t in call.args if isinstance(t, Tensor)) > _LARGE:
        return FunctionGradient(name=name, outcome="not checked", reason="its inputs are too large")
    problem = ""
    devices = {t.device.index for t in call.args if isinstance(t, Tensor) and t.is_cuda}
    with torch.random.fork_rng(sorted(devices)):
        for dtype in (torch.float64, None):
            try:
                return _judge(Alone(call, dtype, seed), call, eps, seed, starved)
            except NotCheckableError as error:  # noqa: PERF203
                return FunctionGradient(name=name, outcome="not checked", reason=str(error))
            except Exception as error:  # somebody's code, alone or in another precision
                problem = f"by itself it raises {type(error).__name__}: {error}".splitlines()[0]
    return FunctionGradient(name=name, outcome="not checked", reason=problem)


def _judge(
    alone: Alone, call: FunctionCall, eps: float, seed: int, starved: Sequence[str]
) -> FunctionGradient:
    gradients = alone.backward()
    if not all(bool(g.isfinite().all()) for g in gradients if g is not None):
        raise NotCheckableError("its gradient is not finite")
    generator = torch.Generator().manual_seed(seed)
    # single precision needs a longer step, and can't tell as much
    eps = max(eps, 2 * alone.resolution ** (1 / 3))
    found = FunctionGradient(name=call.function.__name__, outcome="agrees")
    tolerated = WITH_KINKS if alone.resolution < 1e-12 else 0.1
    for position, gradient in zip(alone.wanted, gradients, strict=True):
        surface = InputSurface(alone, position, gradient)
        worst, kinks, flat = _search(surface, eps, generator, tolerated)
        behind = call.reached[call.wanted.index(position)]
        if gradient is None and worst.error > tolerated and not set(behind) & set(starved):
            return _by_design(found, "it gives one argument no gradient, as a detach would")
        if flat:
            return _by_design(found, "its forward does not move where it gives a gradient")
        found = dataclasses.replace(found, kinks=found.kinks + kinks)
        if worst.error > found.error:
            found = dataclasses.replace(
                found, input=position, parameters=behind, **dataclasses.asdict(worst)
            )
    if found.error <= tolerated:
        return found
    reason = _why_by_design(alone, gradients, generator, eps)
    return _by_design(found, reason) if reason else dataclasses.replace(found, outcome="differs")


def _of_one_function(found: Sequence[FunctionGradient]) -> FunctionGradient:
    order = ("by design", "differs", "agrees", "not checked")
    first = min(found, key=lambda one: (order.index(one.outcome), -one.error))
    return dataclasses.replace(first, calls=len(found), kinks=sum(one.kinks for one in found))


def _search(
    surface: InputSurface, eps: float, generator: torch.Generator, tolerated: float
) -> tuple[Slope, int, bool]:
    """Look for an entry at which backward is wrong; return it, the kinks, whether it is flat."""
    flat_argument = surface.argument.detach().flatten()
    size = float(flat_argument.double().square().mean().sqrt()) if flat_argument.numel() else 0.0
    step = eps * (size or 1.0)
    left = torch.arange(flat_argument.numel())
    worst, kinks, clean = Slope(analytic=0.0, numeric=0.0, error=0.0), 0, 0
    for _ in range(_ROUNDS):
        if not len(left) or clean == _DIRECTIONS:
            break
        left = left[torch.randperm(len(left), generator=generator)]
        direction = torch.empty(len(left), dtype=torch.float64)
        direction.uniform_(0.5, 1.5, generator=generator)
        direction *= torch.randint(2, (len(left),), generator=generator) * 2 - 1
        together = centred(surface, left, direction, step)
        if together.error <= max(_SCREEN, tolerated if tolerated > WITH_KINKS else 0.0):
            clean += 1
            worst = max(worst, together, key=lambda slope: slope.error)
            continue
        entry = _locate(surface, left, direction, step)
        slope = best(surface, entry, torch.ones(1, dtype=torch.float64), step)
        if slope.error <= tolerated:
            clean += 1
        elif _is_kink(surface, entry, step):
            kinks += 1
        elif surface.is_flat(entry, torch.full((1,), step, dtype=torch.float64)):
            return worst, kinks, True
        else:
            worst = max(worst, slope, key=lambda slope: slope.error)
        # what has the very same value (the zeros of a padding) lies on the same kink
        value = flat_argument[entry.to(flat_argument.device)]
        left = left[(flat_argument[left.to(flat_argument.device)] != value).cpu()]
    return worst, kinks, False


def _locate(surface: Surface, entries: Tensor, direction: Tensor, step: float) -> Tensor:
    """Return the entry that differs, by halving."""
    while len(entries) > 1:
        middle = len(entries) // 2
        halves = [(entries[:middle], direction[:middle]), (entries[middle:], direction[middle:])]
        apart = []
        for places, part in halves:
            slope = centred(surface, places, part, step)
            apart.append(abs(slope.analytic - slope.numeric))
        entries, direction = halves[int(apart[1] > apart[0])]
    return entries


def _is_kink(surface: InputSurface, entry: Tensor, step: float) -> bool:
    """Whether the slopes to both sides differ, or some winner does."""
    one = torch.ones(1, dtype=torch.float64)
    if crosses_kink(surface, entry, one, step):
        return True
    here = surface.values(entry, 0 * one)
    right = (surface.values(entry, step * one) - here) / step
    left = (here - surface.values(entry, -step * one)) / step
    noise = 64 * surface.resolution * here.abs() / step
    return bool((right - left).abs() > 1e-2 * torch.maximum(right.abs(), left.abs()) + noise)


def _why_by_design(
    alone: Alone, gradients: Sequence[Tensor | None], generator: torch.Generator, eps: float
) -> str:
    inputs = [arg for arg in alone.args if isinstance(arg, Tensor)]
    if all(any(_same_numbers(out, arg) for arg in inputs) for out in alone.outputs):
        return "its forward hands its input on, so its backward is a wish"
    if any(callable(arg) for arg in tree_leaves(alone.args)):
        return "it runs a function that it is given, and may approximate its gradient"
    if any(alone.jumps(generator) for _ in range(_DIRECTIONS)):
        return "its forward jumps, so its backward stands in for a derivative"
    if _from_still_outputs(alone, gradients, generator, eps):
        return "outputs that do not move give a gradient"
    pairs = zip(gradients, alone.backward(2.0), alone.backward(-1.0), strict=True)
    known = [
        (g, double, minus)
        for g, double, minus in pairs
        if g is not None and double is not None and minus is not None
    ]
    linear = all(torch.allclose(2 * g, d) and torch.allclose(-g, m) for g, d, m in known)
    ignored = all(torch.equal(g, d) and torch.equal(g, m) for g, d, m in known)
    return "" if linear or ignored else "its backward changes gradients by their size"


def _from_still_outputs(
    alone: Alone, gradients: Sequence[Tensor | None], generator: torch.Generator, step: float
) -> bool:
    pairs = zip(alone.outputs, alone.moved(generator, step), strict=True)
    still = [out == moved for out, moved in pairs]
    if not any(bool(entries.any()) for entries in still):
        return False
    of_still = [float(g.abs().max()) for g in alone.backward(only=still) if g is not None]
    whole = [float(g.abs().max()) for g in gradients if g is not None]
    # what is saturated may have a tiny gradient that is right
    return max(of_still, default=0.0) > _SATURATED * max(whole, default=0.0)


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.flatten(), other.flatten().to(one))


def _by_design(found: FunctionGradient, reason: str) -> FunctionGradient:
    return dataclasses.replace(found, outcome="by design", reason=reason)
