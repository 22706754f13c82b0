"""The lowest value that a loss can have on given targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_tuning.functional.chance_loss import chance_level, class_dim
from lightning_tuning.functional.loss_calls import LossCall


def floor_level(call: LossCall, *, groups: Tensor | None = None) -> float | None:
    """Return the loss of the best output that there is for a call's targets.

    It is found by replaying the call with that output, so that label smoothing, soft targets,
    class weights and ignored targets count: cross-entropy ends at the entropy of its targets.

    Args:
        call: The call.
        groups: For each sample the number of its group, where samples of a group have the same
            input and must share one output; shape (samples,).

    Returns:
        The level, averaged over what the call returned; None for a loss without a known floor.

    Example:
        >>> from torch.nn import functional
        >>> from lightning_tuning.functional.loss_calls import bound_call
        >>> given, options = [torch.zeros(1, 2), torch.tensor([0])], {"label_smoothing": 0.5}
        >>> call = bound_call(functional.cross_entropy, given, options, torch.tensor(0.0))
        >>> round(floor_level(call), 4)  # the entropy of (0.75, 0.25)
        0.5623
    """
    best = _BEST.get(call.name)
    if best is None:
        return None
    return float(call.replay(best(call, groups).to(call.input)).double().mean())


def levels(
    calls: Sequence[LossCall],
    loss: float,
    *,
    accumulation: int = 1,
    groups: Tensor | None = None,
) -> tuple[float, float] | None:
    """Return the loss of the best constant output, and the lowest loss, of a whole step.

    Args:
        calls: The loss functions that the step called, after its backward pass.
        loss: The loss that it returned; it must be a sum of the calls' values with weights of
            their own.
        accumulation: Over how many batches the trainer accumulates; it divides the loss by that.
        groups: As for :func:`floor_level`.

    Returns:
        None where the loss is something else, or holds a call without known levels.

    Example:
        >>> from torch.nn import functional
        >>> from lightning_tuning.functional.loss_calls import bound_call
        >>> output = torch.zeros(2, 1, requires_grad=True)
        >>> target = torch.tensor([[1.0], [3.0]])
        >>> value = functional.mse_loss(output, target)
        >>> call = bound_call(functional.mse_loss, [output, target], {}, value)
        >>> (2 * value).backward()
        >>> levels([call], 10.0)  # the variance, twice
        (2.0, 0.0)
    """
    trained = [call for call in calls if call.trained]
    weights = [_weight(call, accumulation) for call in trained]
    if len(trained) == 1 and weights[0] is None and trained[0].value.numel() == 1:
        weights = [1.0]  # there was no backward pass
    total = high = low = 0.0
    for call, weight in zip(trained, weights, strict=True):
        chance, floor = chance_level([call]), floor_level(call, groups=groups)
        if weight is None or weight < 0 or chance is None or floor is None:
            return None
        total += weight * float(call.value.double().mean())
        high += weight * chance.low
        low += weight * floor
    if not trained or abs(total - loss) > 1e-3 * abs(loss):
        return None
    return high, low


def _weight(call: LossCall, accumulation: int) -> float | None:
    """Return how the step's loss rises with the call's mean value."""
    gradient = call.result.grad
    if gradient is None or not bool((gradient == gradient.flatten()[0]).all()):
        return None
    return accumulation * float(gradient.sum())


def _shared(wanted: Tensor, groups: Tensor | None) -> Tensor:
    """Average over the samples of each group."""
    if groups is None or wanted.dim() == 0 or len(wanted) != len(groups):
        return wanted
    groups = groups.to(wanted.device)
    sums = torch.zeros_like(wanted).index_add_(0, groups, wanted)
    counts = torch.bincount(groups, minlength=len(wanted)).clamp(min=1).to(wanted)
    return (sums / counts.reshape(-1, *[1] * (wanted.dim() - 1)))[groups]


def _distribution(call: LossCall, groups: Tensor | None) -> Tensor:
    """Return the targets as probabilities over the classes, of the shape of the output."""
    dim = class_dim(call)
    if call.target.is_floating_point():
        wanted = call.target.double()
    else:
        classes = call.input.size(dim)
        valid = (call.target >= 0) & (call.target < classes)
        indices = torch.where(valid, call.target, 0).unsqueeze(dim)
        wanted = torch.zeros(call.input.shape, dtype=torch.float64, device=call.target.device)
        wanted = wanted.scatter_(dim, indices, 1.0)
    return _shared(wanted, groups)


def _softmax_best(call: LossCall, groups: Tensor | None) -> Tensor:
    dim = class_dim(call)
    wanted = _distribution(call, groups)
    smoothing = float(call.options.get("label_smoothing", 0.0))
    wanted = (1 - smoothing) * wanted + smoothing / call.input.size(dim)
    weight = call.options.get("weight")
    if weight is not None:
        shape = [-1 if d == dim % wanted.dim() else 1 for d in range(wanted.dim())]
        wanted = wanted * weight.to(wanted).reshape(shape)
    return (wanted / wanted.sum(dim, keepdim=True).clamp(min=1e-30)).clamp(min=1e-30).log()


def _logit_best(call: LossCall, groups: Tensor | None) -> Tensor:
    wanted = _shared(call.target.double(), groups)
    positive = call.options.get("pos_weight")
    ones = wanted if positive is None else wanted * positive.to(wanted)
    return ones.clamp(min=1e-30).log() - (1 - wanted).clamp(min=1e-30).log()


def _mean_best(call: LossCall, groups: Tensor | None) -> Tensor:
    return _shared(call.target.double(), groups)


def _target_best(call: LossCall, _: Tensor | None) -> Tensor:
    return call.target


def _margin_best(call: LossCall, groups: Tensor | None) -> Tensor:
    return _distribution(call, groups) * 1e3


_BEST: Mapping[str, Callable[[LossCall, Tensor | None], Tensor]] = {
    "cross_entropy": _softmax_best,
    "nll_loss": _softmax_best,
    "binary_cross_entropy_with_logits": _logit_best,
    "multilabel_soft_margin_loss": _logit_best,
    "binary_cross_entropy": _mean_best,
    "mse_loss": _mean_best,
    "l1_loss": _target_best,
    "smooth_l1_loss": _target_best,
    "huber_loss": _target_best,
    "multi_margin_loss": _margin_best,
}
