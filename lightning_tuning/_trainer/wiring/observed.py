"""One training step without anything random or batch-wise, and what its losses compared."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.examples import leaves
from lightning_tuning._trainer.probe import Probe, Watch
from lightning_tuning._trainer.probe_mode import Mode
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.wiring.fixed_statistics import fixed_statistics
from lightning_tuning.functional.batch_links import Comparison, comparison, differs
from lightning_tuning.functional.loss_calls import LOSS_FUNCTIONS, LossCall

_GRADIENTS = (Tensor.backward, torch.autograd.grad, torch.autograd.backward)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What a step did.

    Attributes:
        comparisons: What its trained losses compared.
        output: What the network gave where no loss function was called: the last outermost module
            with a gradient.
        loss: The loss.
        random: The state of the random numbers afterwards.
        calls: The calls of the trained loss functions themselves.
    """

    comparisons: tuple[Comparison, ...]
    output: Tensor | None
    loss: Tensor | None
    random: Tensor
    calls: tuple[LossCall, ...]

    def same_course(self, other: Observed) -> bool:
        """Whether another step called the same losses and drew as many random numbers."""
        return len(self.comparisons) == len(other.comparisons) and torch.equal(
            self.random, other.random
        )

    def equals(self, other: Observed) -> bool:
        """Whether another step gave the same outputs and loss."""
        if not self.same_course(other):
            return False
        mine = [*(c.output for c in self.comparisons), self.output, self.loss]
        others = [*(c.output for c in other.comparisons), other.output, other.loss]
        return all(unchanged(a, b) for a, b in zip(mine, others, strict=True))


def unchanged(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors are the same up to rounding."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and not bool(differs(one, other).any())


def observe(
    probe: Probe,
    batch: ProbeBatch,
    *,
    mode: Mode = "eval",
    seed: int = 1,
    watch: Sequence[Watch] = (),
) -> Observed:
    """Run a step whose layers treat each example by itself.

    What comes after a gradient was taken depends on the whole batch by that gradient (MAML, SAM),
    and does not count.

    Raises:
        StepError: The program's step raised.
    """
    outermost, end = OutermostOutputs(), _RandomState()
    forward = BeforeBackward(outermost)
    step = probe.step(
        batch, mode=mode, seed=seed, watch=[fixed_statistics(), outermost, end, forward, *watch]
    )
    calls = tuple(call for call in step.calls if call.trained and forward.has(call.result))
    found = [comparison(call) for call in calls]
    return Observed(
        comparisons=tuple(c for c in found if c is not None),
        output=outermost.last,
        loss=step.loss,
        random=end.state,
        calls=calls,
    )


def working_mode(probe: Probe, batch: ProbeBatch) -> Mode:
    """Return the mode in which a batch can be observed: ``"eval"``, or else ``"silent"``.

    Raises:
        CannotProbeError: The step raises, or is another one each time it is run.
    """
    if not leaves(batch.data):
        raise CannotProbeError("a batch has no tensors")
    modes: tuple[Mode, ...] = ("eval", "silent")
    problem = "the step has no loss in evaluation mode"
    for mode in modes:
        try:
            seen = observe(probe, batch, mode=mode)
            if seen.loss is None:
                continue
            if seen.equals(observe(probe, batch, mode=mode)):
                return mode
            problem = "the same step gives another loss each time"
        except StepError as error:
            problem = str(error)
    raise CannotProbeError(problem)


class OutermostOutputs(contextlib.AbstractContextManager["OutermostOutputs"]):
    """Keeps what the last module gave that was called by no other module."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.stopped = False
        self._depth = 0

    def __enter__(self) -> OutermostOutputs:
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, _module: nn.Module, _inputs: Any) -> None:
        self._depth += 1

    def _leave_module(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth > 0 or self.stopped:
            return
        for tensor in _first_tensors(output):
            if tensor.requires_grad and tensor.dim() > 0:
                self.last = tensor.detach()


def _first_tensors(output: Any) -> Iterator[Tensor]:
    yield from leaves(output)[:1]


class BeforeBackward(TorchFunctionMode):
    """Notes which losses were called before a gradient was taken.

    Args:
        outputs: Is stopped then.
    """

    def __init__(self, outputs: OutermostOutputs) -> None:
        super().__init__()
        self._outputs = outputs
        self._losses: list[Tensor] = []

    def has(self, loss: Tensor) -> bool:
        """Whether the result of a loss function was there before."""
        return any(loss is known for known in self._losses)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function."""
        if func in _GRADIENTS:
            self._outputs.stopped = True
        result = func(*args, **kwargs or {})
        name = getattr(func, "__name__", "")
        if not self._outputs.stopped and LOSS_FUNCTIONS.get(name) is func:
            self._losses.append(result)
        return result


class _RandomState(contextlib.AbstractContextManager[None]):
    state: Tensor

    def __exit__(self, *_: object) -> None:
        states = [torch.get_rng_state()]
        if torch.cuda.is_available():
            states.append(torch.cuda.get_rng_state())
        self.state = torch.cat(states)
