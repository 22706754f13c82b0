"""The loss of a predictor that knows nothing of its input."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_tuning.functional.loss_calls import LossCall


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChanceLevel:
    """What a loss is before anything has been learnt.

    Attributes:
        uniform: Of a predictor that holds everything for equally likely; for values, of one that
            gives zero.
        prior: Of the best constant predictor, which knows how often each target occurs.
        what: The uniform level in words, such as ``"ln 10"``.
    """

    uniform: float
    prior: float
    what: str

    @property
    def high(self) -> float:
        """The larger of the two."""
        return max(self.uniform, self.prior)

    @property
    def low(self) -> float:
        """The smaller of the two."""
        return min(self.uniform, self.prior)


def chance_level(calls: Sequence[LossCall]) -> ChanceLevel | None:
    """Return the loss at chance for one place of the program, over several batches.

    It is found by replaying the calls with constant outputs, so that class weights, label
    smoothing, ignored targets, margins and reductions count as they do for the program.

    Args:
        calls: Of the same loss function, one for each batch.

    Returns:
        The level, averaged over the calls; None for a loss without a known level.

    Example:
        >>> from torch.nn import functional
        >>> from lightning_tuning.functional.loss_calls import bound_call
        >>> given = [torch.randn(4, 10), torch.tensor([0, 1, 2, 3])]
        >>> call = bound_call(functional.cross_entropy, given, {}, torch.tensor(0.0))
        >>> round(chance_level([call]).uniform, 3)
        2.303
    """
    constants = _CONSTANTS.get(calls[0].name)
    if constants is None:
        return None
    uniform, prior, what = constants(calls)
    return ChanceLevel(
        uniform=_mean_of_replays(calls, uniform),
        prior=_mean_of_replays(calls, prior),
        what=what,
    )


_Constants = Callable[[Sequence[LossCall]], tuple[Tensor, Tensor, str]]


def class_dim(call: LossCall) -> int:
    """Return the dimension of the classes in the output of a classification loss."""
    return 0 if call.input.dim() == 1 else 1


def class_frequencies(calls: Sequence[LossCall]) -> Tensor:
    """Return how often each class occurs among the targets that count, shape (C,).

    Targets may be indices or probabilities.
    """
    first = calls[0]
    classes = first.input.size(class_dim(first))
    counts = torch.zeros(classes, dtype=torch.float64)
    for call in calls:
        target = call.target
        if target.is_floating_point():
            other = [dim for dim in range(target.dim()) if dim != class_dim(call)]
            counts += target.cpu().double().sum(other) if other else target.cpu().double()
        else:
            valid = target[(target >= 0) & (target < classes)]
            valid = valid[valid != call.options.get("ignore_index", -100)]
            counts += torch.bincount(valid.flatten().cpu(), minlength=classes)
    return counts / counts.sum().clamp(min=1)


def _softmax_constants(calls: Sequence[LossCall]) -> tuple[Tensor, Tensor, str]:
    frequencies = class_frequencies(calls)
    classes = len(frequencies)
    smoothing = float(calls[0].options.get("label_smoothing", 0.0))
    weight = calls[0].options.get("weight")
    # the minimum of the weighted and smoothed loss over all constant predictions
    best = (1 - smoothing) * frequencies + smoothing / classes
    if weight is not None:
        best = best * weight.cpu().double()
    # a class that did not occur in these batches has a small share nevertheless
    prior = (best / best.sum().clamp(min=1e-12)).clamp(min=1e-9).log()
    uniform = torch.full_like(prior, -math.log(classes))
    return uniform, prior, f"ln {classes}"


def _logit_constants(calls: Sequence[LossCall]) -> tuple[Tensor, Tensor, str]:
    p = _mean_target(calls).clamp(1e-6, 1 - 1e-6)
    return torch.zeros_like(p), (p / (1 - p)).log(), "ln 2 for each label"


def _probability_constants(calls: Sequence[LossCall]) -> tuple[Tensor, Tensor, str]:
    p = _mean_target(calls).clamp(1e-6, 1 - 1e-6)
    return torch.full_like(p, 0.5), p, "ln 2 for each label"


def _mean_constants(calls: Sequence[LossCall]) -> tuple[Tensor, Tensor, str]:
    mean = _mean_target(calls)
    return torch.zeros_like(mean), mean, "that of the targets' own spread"


def _median_constants(calls: Sequence[LossCall]) -> tuple[Tensor, Tensor, str]:
    median = _together(calls).quantile(0.5, dim=0)
    return torch.zeros_like(median), median, "that of the targets' own spread"


def _margin_constants(calls: Sequence[LossCall]) -> tuple[Tensor, Tensor, str]:
    classes = calls[0].input.size(class_dim(calls[0]))
    zeros = torch.zeros(classes, dtype=torch.float64)
    return zeros, zeros, f"the margin for each of {classes} classes"


def _mean_target(calls: Sequence[LossCall]) -> Tensor:
    """Return the mean target over samples, of the shape of one sample's target."""
    return _together(calls).mean(0)


def _together(calls: Sequence[LossCall]) -> Tensor:
    """Return the targets of all calls, shape (samples, ...), or (values,) if samples differ."""
    targets = [call.target.cpu().double() for call in calls]
    if len({target.shape[1:] for target in targets}) == 1 and targets[0].dim() > 0:
        return torch.cat(targets)
    return torch.cat([target.flatten() for target in targets])


def _mean_of_replays(calls: Sequence[LossCall], constant: Tensor) -> float:
    losses = []
    for call in calls:
        output = call.input
        shape = [1] * output.dim()
        if constant.dim() == 1 and constant.numel() == output.size(class_dim(call)):
            shape[class_dim(call)] = -1
            spread = constant.reshape(shape)
        else:
            spread = constant
        given = spread.to(output.dtype).to(output.device).expand_as(output)
        losses.append(call.replay(given).cpu().double().mean())
    return float(torch.stack(losses).mean())


_CONSTANTS: Mapping[str, _Constants] = {
    "cross_entropy": _softmax_constants,
    "nll_loss": _softmax_constants,
    "binary_cross_entropy_with_logits": _logit_constants,
    "multilabel_soft_margin_loss": _logit_constants,
    "binary_cross_entropy": _probability_constants,
    "mse_loss": _mean_constants,
    "l1_loss": _median_constants,
    "smooth_l1_loss": _median_constants,
    "huber_loss": _median_constants,
    "multi_margin_loss": _margin_constants,
}
