"""How the outputs of a program meet its targets: shapes, ranges, classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.step_trace import Intercept, batch_size
from lightning_tuning._trainer.wiring.label_scan import LabelsMet, labels_seen
from lightning_tuning._trainer.wiring.meetings import Meeting, Meetings, spread_over_each_other
from lightning_tuning._trainer.wiring.seen_losses import SeenLoss, SeenStep, by_place, seen_steps
from lightning_tuning._trainer.wiring.target_reach import reaches_by_hand, reaches_of_losses
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.wiring import wiring_outputs as rules
from lightning_tuning.functional.wiring.wiring_outputs import Broadcast, OutputEvidence

_VALUES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss")


def measure(probe: Probe) -> OutputEvidence:
    """Trace a few steps, and look at each output that meets a target in them."""
    meetings, labels = Meetings(), LabelsMet()
    steps = seen_steps(probe, before=[labels], after=[meetings])
    places = by_place(steps)
    size = batch_size(steps[0].batch)
    met = [m for m in meetings.seen if m.result.grad is not None]
    broadcasts = [*_of_losses(steps), *_by_hand(met, size)]
    return OutputEvidence(
        broadcasts=tuple(_with_rescue(probe, seen, size) for seen in broadcasts),
        reaches=(*reaches_of_losses(places), *reaches_by_hand(met)),
        labels=labels_seen(probe, labels, [step.batch for step in steps]),
        batches=len(steps),
        error=next((step.error for step in steps if step.error), ""),
    )


def _of_losses(steps: Sequence[SeenStep]) -> Iterator[Broadcast]:
    for step in steps:
        for seen in step.trained:
            call = seen.call
            if call.name in _VALUES and _spread(seen):
                yield _broadcast(call.name, call.input, call.target, explicit=False)
                return


def _spread(seen: SeenLoss) -> bool:
    return spread_over_each_other(seen.call.input, seen.call.target, seen.batch_size)


def _by_hand(met: Sequence[Meeting], size: int | None) -> Iterator[Broadcast]:
    for meeting in met:
        if spread_over_each_other(meeting.output, meeting.target, size):
            yield _broadcast(
                meeting.name, meeting.output, meeting.target, explicit=meeting.explicit
            )
            return


def _broadcast(where: str, output: Tensor, target: Tensor, *, explicit: bool) -> Broadcast:
    return Broadcast(
        where=where,
        output=tuple(output.shape),
        target=tuple(target.shape),
        result=tuple((output.detach() + target).shape),
        explicit=explicit,
    )


def _with_rescue(probe: Probe, seen: Broadcast, size: int | None) -> Broadcast:
    """Train with the target in the output's shape, where the program may want all pairs."""
    if not seen.explicit:
        return seen
    own = ordinary_run(probe).run.losses
    run = probe.run(len(own), watch=[Intercept(_in_one_shape(size))])
    if not own or len(run.losses) < len(own):
        return seen
    last = len(own) // 5 + 1
    rescue = sum(run.losses[-last:]) / max(sum(own[-last:]), 1e-12)
    return Broadcast(**{**vars(seen), "rescue": rescue})


def _in_one_shape(size: int | None) -> Callable[..., Any]:
    def instead(
        function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        tensors = [a for a in args[:2] if isinstance(a, Tensor)]
        if len(tensors) == 2 and tensors[0].dim() and tensors[1].dim():
            first, second = tensors
            if first.is_floating_point() and spread_over_each_other(first, second, size):
                args = (first, second.reshape(first.shape), *args[2:])
        return function(*args, **kwargs)

    return instead


TOPIC = Topic(
    measure=measure,
    rules={
        "broadcast_mismatch": rules.broadcast_mismatch,
        "output_range_mismatch": rules.output_range_mismatch,
        "wrong_num_classes": rules.wrong_num_classes,
    },
)
