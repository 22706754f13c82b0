"""The loss functions that a program calls, seen as it calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

from lightning_tuning.functional.loss_calls import LossCall, bound_call
from lightning_tuning.functional.origins import Origins


class LossCallRecorder(TorchFunctionMode):
    """Notes each call of a loss function while it is active, however the program wrote it.

    A call inside of another (``nll_loss`` inside ``cross_entropy``) is not seen; one in a compiled
    graph is seen when the graph is traced.

    Example:
        >>> import torch
        >>> loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        >>> with LossCallRecorder() as recorder:
        ...     _ = loss(torch.zeros(2, 3), torch.tensor([0, 1]))
        >>> [call] = recorder.take()
        >>> call.name, call.options["label_smoothing"]
        ('cross_entropy', 0.1)
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[LossCall] = []
        self._origins = Origins()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, and note the call if it is one of a loss."""
        kwargs = kwargs or {}
        value = self._origins.note(func, args, kwargs, func(*args, **kwargs))
        call = bound_call(func, args, kwargs, value, self._origins)
        if call is not None:
            self._calls.append(call)
        return value

    def take(self) -> list[LossCall]:
        """Return the calls since the last time, in their order."""
        calls, self._calls = self._calls, []
        self._origins = Origins()
        return calls
