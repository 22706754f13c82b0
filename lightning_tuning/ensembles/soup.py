"""One model of several: their weights averaged."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from lightning_tuning._trainer.ensembles.averaged_forward import check_alike
from lightning_tuning.ensembles.ensemble_module import Member, weights_of
from lightning_tuning.functional.ensembles.average import average_weights

M = TypeVar("M", bound=LightningModule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup(Generic[M]):
    """A module with averaged weights.

    Attributes:
        model: The module; a copy of the one that was given.
        members: Which members are in it, by their place in the list.
        scores: The score of each member alone; empty for a uniform soup.
        score: That of the soup; None for a uniform soup.
    """

    model: M
    members: tuple[int, ...]
    scores: tuple[float, ...] = ()
    score: float | None = None


def soup(
    model: M,
    members: Sequence[Member],
    *,
    score: Callable[[M], float] | None = None,
    loader: Iterable[Any] | None = None,
    weights_only: bool = True,
) -> Soup[M]:
    """Average the weights of several fits that began alike.

    Without ``score`` all members are averaged: a uniform soup, which is also what weights from
    along one fit are averaged to (Izmailov et al. 2018). With it the soup is greedy (Wortsman et
    al. 2022): members are tried from the best one down, and one stays in if the average with it
    scores no worse. Weights of fits that began from different random weights cannot be averaged;
    take :class:`~lightning_tuning.EnsembleModule` for those.

    Args:
        model: The module; it is not changed.
        members: Checkpoints (of ``EMAWeights`` the averaged weights), state dicts or modules.
        score: Judges a module on validation data; larger is better. For example
            ``lambda m: trainer.validate(m, loader, verbose=False)[0]["val_accuracy"]``.
        loader: Training batches, for models with BatchNorm: the statistics of averaged weights are
            measured anew by ``torch.optim.swa_utils.update_bn``, which gives the first entry of a
            batch to the model.
        weights_only: Load only tensors and plain values from checkpoints.

    Raises:
        ValueError: There are no members, they are of different architectures, or the model has
            BatchNorm and there is no loader.

    Example:
        >>> import torch
        >>> class Net(LightningModule):
        ...     def __init__(self, value):
        ...         super().__init__()
        ...         self.weight = torch.nn.Parameter(torch.tensor(value))
        >>> soup(Net(0.0), [Net(1.0), Net(3.0)]).model.weight.item()
        2.0
        >>> greedy = soup(Net(0.0), [Net(1.0), Net(9.0)], score=lambda m: -abs(m.weight.item()))
        >>> greedy.members
        (0,)
    """
    if not members:
        raise ValueError("members=[] makes no soup; give at least one")
    has_statistics = any(isinstance(part, _BatchNorm) for part in model.modules())
    if has_statistics and loader is None:
        raise ValueError(
            f"loader=None, but {type(model).__name__} has BatchNorm: its statistics don't fit"
            " averaged weights; give the training loader"
        )
    batches = loader if has_statistics else None
    weights = [weights_of(member, weights_only=weights_only) for member in members]
    check_alike(weights)
    if score is None:
        averaged = _with(model, average_weights(weights), batches)
        return Soup(model=averaged, members=tuple(range(len(members))))
    alone = [score(_with(model, member, None)) for member in weights]
    return _greedy(model, weights, alone, score, batches)


def _greedy(
    model: M,
    weights: Sequence[dict[str, Tensor]],
    alone: Sequence[float],
    score: Callable[[M], float],
    loader: Iterable[Any] | None,
) -> Soup[M]:
    first, *others = sorted(range(len(weights)), key=lambda index: -alone[index])
    chosen, best, reached = [first], _with(model, weights[first], None), alone[first]
    for index in others:
        tried = [*chosen, index]
        candidate = _with(model, average_weights([weights[i] for i in tried]), loader)
        scored = score(candidate)
        if scored >= reached:
            chosen, best, reached = tried, candidate, scored
    return Soup(model=best, members=tuple(chosen), scores=tuple(alone), score=reached)


def _with(model: M, weights: dict[str, Tensor], loader: Iterable[Any] | None) -> M:
    """Return a copy of a module with other weights, its statistics measured anew."""
    made = copy.deepcopy(model)
    made.load_state_dict(weights)
    if loader is not None:
        update_bn(loader, made)
    return made
