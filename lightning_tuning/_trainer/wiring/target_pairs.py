"""Outputs of hand-written losses and their targets, and how well the two agree."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lightning_tuning._trainer.step_trace import DATA, MODEL, TracedCall
from lightning_tuning._trainer.wiring.meetings import Meeting, Meetings

_PROBABILITIES = ("softmax", "log_softmax", "sigmoid", "logsigmoid", "log")
_SCORES = {"cosine_similarity": 1.0, "pairwise_distance": -1.0}
_SMALL = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Pick:
    """Values of an output that labels picked: ``gather(1, y[:, None])``, ``logp[arange, y]``."""

    source: Tensor
    result: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Score:
    """What a function of torch says of how near an output is to its target."""

    result: Tensor
    nearer: float


class TargetPairs:
    """Notes the pairs of output and target in a step, for a :class:`StepTrace`."""

    def __init__(self) -> None:
        self._meetings = Meetings()
        self._picks: list[_Pick] = []
        self._scores: list[_Score] = []

    def __call__(self, call: TracedCall) -> None:
        """Note the call if it brings an output and a target together."""
        self._meetings(call)
        if call.name in ("gather", "getitem", "take_along_dim") and _is_pick(call):
            call.value.retain_grad()
            self._picks.append(_Pick(source=call.argument(0, "input"), result=call.value))
        if call.name in _SCORES and _is_score(call):
            call.value.retain_grad()
            self._scores.append(_Score(result=call.value, nearer=_SCORES[call.name]))

    def take(self) -> TargetPairs:
        """Return what was seen since the last call."""
        taken = TargetPairs()
        taken._meetings.seen, self._meetings.seen = self._meetings.seen, []
        taken._picks, self._picks = self._picks, []
        taken._scores, self._scores = self._scores, []
        self._meetings = Meetings()
        return taken

    def towards(self) -> list[float]:
        """Return how the loss rises, for each pair, as the output comes closer; from -1 to 1.

        Known after the backward pass.
        """
        slopes = [
            _cosine(pick.result.grad, torch.ones_like(pick.result))
            for pick in self._picks
            if pick.result.grad is not None
        ]
        slopes += [
            score.nearer * _cosine(score.result.grad, torch.ones_like(score.result))
            for score in self._scores
            if score.result.grad is not None
        ]
        for meeting in self._counted():
            grad, result = meeting.result.grad, meeting.result.detach()
            if grad is None:
                continue
            closer = -result if meeting.name in ("sub", "rsub") else meeting.target.to(result)
            slopes.append(_cosine(grad, closer.expand_as(grad)))
        return [slope for slope in slopes if abs(slope) > _SMALL]

    def agreement(self) -> Tensor | None:
        """Return how well the pairs agree: larger is better; None where there is no pair."""
        values = [_rank(pick) for pick in self._picks]
        values += [score.nearer * score.result.detach().mean() for score in self._scores]
        for meeting in self._counted():
            result = meeting.result.detach()
            if meeting.name in ("sub", "rsub"):
                values.append(-result.square().mean())
            else:
                values.append(_lift(meeting))
        return torch.stack([v.float() for v in values]).mean() if values else None

    def _counted(self) -> list[Meeting]:
        """Return the meetings that are surely of an output and its target."""
        return [m for m in self._meetings.seen if _is_difference(m) or _is_likelihood(m)]


def _is_pick(call: TracedCall) -> bool:
    source, trace = call.argument(0, "input"), call.trace
    if not isinstance(call.value, Tensor) or not call.value.requires_grad:
        return False
    if trace.marks(source) != MODEL | DATA:
        return False
    if call.name == "getitem":
        index = call.args[1]
        labels = index[-1] if isinstance(index, tuple) and len(index) > 1 else None
    else:
        labels = call.argument(2 if call.name == "gather" else 1, "index")
    if not isinstance(labels, Tensor) or labels.dtype not in (torch.long, torch.int):
        return False
    return trace.marks(labels) == DATA


def _is_score(call: TracedCall) -> bool:
    """Whether an output is measured against the batch, not against another output."""
    if not call.value.requires_grad or call.value.is_leaf:
        return False
    marks = [call.trace.marks(call.argument(i, name)) for i, name in ((0, "x1"), (1, "x2"))]
    return sorted(marks) == [DATA, MODEL | DATA]


def _is_difference(meeting: Meeting) -> bool:
    same = meeting.output.shape == meeting.target.shape
    from_data = meeting.target_marks == DATA
    return meeting.name in ("sub", "rsub") and meeting.distance and same and from_data


def _is_likelihood(meeting: Meeting) -> bool:
    if meeting.name not in ("mul", "rmul") or meeting.target_marks != DATA:
        return False
    if meeting.origin is None or meeting.origin.name not in _PROBABILITIES:
        return False
    target = meeting.target
    return meeting.output.shape == target.shape and bool(((target == 0) | (target == 1)).all())


def _rank(pick: _Pick) -> Tensor:
    """Return the share of an example's entries that lie below the one that its label picked."""
    source, picked = pick.source.detach(), pick.result.detach()
    if source.dim() == 2 and picked.numel() == len(source):
        return (source < picked.reshape(-1, 1)).float().mean()
    return picked.mean() - source.mean()


def _lift(meeting: Meeting) -> Tensor:
    """Return the output's mean where the target is 1, less that where it is 0."""
    output, target = meeting.output.detach().float(), meeting.target.float()
    ones = (output * target).sum() / target.sum().clamp(min=1)
    return ones - (output * (1 - target)).sum() / (1 - target).sum().clamp(min=1)


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten().float(), b.detach().flatten().float()
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0, eps=1e-30))
