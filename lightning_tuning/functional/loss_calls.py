"""A call of one of torch's loss functions: what went in, how, and what came out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.nn._reduction import legacy_get_string

from lightning_tuning.functional.origins import Origin, Origins

_NAMES = (
    *("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "gaussian_nll_loss"),
    *("poisson_nll_loss", "kl_div", "multi_margin_loss", "multilabel_margin_loss"),
    *("multilabel_soft_margin_loss", "soft_margin_loss"),
)
LOSS_FUNCTIONS: Mapping[str, Callable[..., Any]] = {n: getattr(functional, n) for n in _NAMES}
"""The functions of ``torch.nn.functional`` that compare an output with a target."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LossCall:
    """One call of a loss function.

    Attributes:
        name: Its name in ``torch.nn.functional``.
        input: What the model gave.
        target: What it is compared with.
        options: All other arguments, by name.
        value: What came out, detached.
        result: The same, in the program's graph.
        origin: The activation that ``input`` is the result of.
    """

    name: str
    input: Tensor
    target: Tensor
    options: Mapping[str, Any]
    value: Tensor
    result: Tensor
    origin: Origin | None = None

    @property
    def trained(self) -> bool:
        """Whether its value depends on something that learns."""
        return self.result.requires_grad

    @property
    def slope(self) -> float | None:
        """How the loss that went backward rises with this value; None if it does not at all.

        Known after a backward pass of a recorded step.
        """
        return None if self.result.grad is None else float(self.result.grad.sum())

    @property
    def reduction(self) -> str:
        """``"mean"``, ``"sum"``, ``"none"`` or ``"batchmean"``."""
        return str(self.options.get("reduction", "mean"))

    def replay(self, output: Tensor, *, target: Tensor | None = None) -> Tensor:
        """Return the loss that another output would have had, with the same options.

        Args:
            output: In the place of ``input``.
            target: In the place of ``target``; None for the same.

        Example:
            >>> import torch
            >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
            >>> value = functional.cross_entropy(logits, labels)
            >>> call = bound_call(functional.cross_entropy, [logits, labels], {}, value)
            >>> call.replay(torch.zeros(1, 2))
            tensor(0.6931)
        """
        function = LOSS_FUNCTIONS[self.name]
        result: Tensor = function(output, self.target if target is None else target, **self.options)
        return result


def bound_call(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    value: Any,
    origins: Origins | None = None,
) -> LossCall | None:
    """Return what a call of a loss function was; None if it is no loss function, or malformed.

    Tensors are detached, and share their memory with the program's.

    Args:
        function: What was called.
        args: Its arguments.
        kwargs: Its arguments by name.
        value: What it returned.
        origins: The activations of the step so far.
    """
    name = getattr(function, "__name__", "")
    if LOSS_FUNCTIONS.get(name) is not function or not isinstance(value, Tensor):
        return None
    bound = inspect.signature(function).bind(*args, **kwargs)
    options = {key: _detached(given) for key, given in bound.arguments.items()}
    output, target = options.pop("input"), options.pop("target")
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return None
    origin = None if origins is None else origins.of(bound.arguments["input"])
    average, reduce = options.pop("size_average", None), options.pop("reduce", None)
    if average is not None or reduce is not None:
        options["reduction"] = legacy_get_string(average, reduce, emit_warning=False)
    if value.requires_grad and not value.is_leaf:
        value.retain_grad()
    return LossCall(
        name=name,
        input=output,
        target=target,
        options=options,
        value=value.detach(),
        result=value,
        origin=origin,
    )


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
