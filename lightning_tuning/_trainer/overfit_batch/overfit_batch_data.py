"""A few examples of the training data as one batch, put together by the person's own loaders."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils._pytree import tree_unflatten
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_tuning._trainer.batches import ProbeBatch
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.examples import leaves
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from lightning_tuning._trainer.random_state import kept_random_state

_READ = 100_000
"""So many indices of a sampler are looked at."""
_POSITIONS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyBatch:
    """A tiny batch that the program's step takes.

    Attributes:
        data: The batch, on the host.
        samples: How many examples it has; None where that can't be told.
        repeats: The same batch at each position of a pass, since a step may go by the position.
    """

    data: Any
    samples: int | None
    repeats: tuple[ProbeBatch, ...]


def tiny_batch(probe: Probe, num_samples: int) -> TinyBatch:
    """Return about ``num_samples`` examples as one batch.

    They are collated anew from the data set, spread evenly over the sampler's order so that targets
    vary. Where a loader has no data set with indices, or the program does not take that batch, it
    is the loader's first batch, cut where all that it holds can be cut.

    Raises:
        CannotProbeError: The program takes none of these.
        StepError: The same, with the program's own error.
    """
    [first] = probe.batches(1)
    attempts: list[Callable[[], tuple[Any, int | None]]] = [
        lambda: _collated(probe, num_samples),
        lambda: _cut(first.data, num_samples),
        lambda: (first.data, _samples_of(first.data)),
    ]
    problem: CannotProbeError = CannotProbeError("there is no batch")
    for attempt in attempts:
        try:
            data, samples = attempt()
            # sequential loaders: this one is from the loader of the first batch
            batch = first._replace(data=data)
            if probe.step(batch, mode="silent").loss is None:
                continue
        except CannotProbeError as error:
            problem = error
            continue
        return TinyBatch(data=data, samples=samples, repeats=_repeats(probe, batch))
    raise problem


def _repeats(probe: Probe, batch: ProbeBatch) -> tuple[ProbeBatch, ...]:
    count = int(min(probe.trainer.num_training_batches, _POSITIONS))
    return tuple(
        batch._replace(position=position, is_last=position == count - 1)
        for position in range(max(count, 1))
    )


def _collated(probe: Probe, num_samples: int) -> tuple[Any, int | None]:
    """Collate examples of each loader's data set, in the structure of the loaders."""
    combined = probe.trainer.fit_loop._combined_loader
    assert isinstance(combined, CombinedLoader)
    loaders = combined.flattened[:1] if combined._mode == "sequential" else combined.flattened
    with kept_random_state():
        try:
            found = [_examples(loader, num_samples) for loader in loaders]
        except CannotProbeError:
            raise
        except Exception as error:  # a data set may only work in a worker of its own
            raise StepError(error, ()) from error
        finally:
            probe.rewind()
    data = [data for data, _ in found]
    samples = min(count for _, count in found)
    if combined._mode == "sequential":
        return data[0], samples
    return tree_unflatten(data, combined._spec), samples


def _examples(loader: Any, num_samples: int) -> tuple[Any, int]:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise CannotProbeError("the loader has no data set with indices")
    if loader.batch_sampler is None:
        raise CannotProbeError("the loader does not collate")
    indices = _indices(loader, num_samples)
    read_all = getattr(loader.dataset, "__getitems__", None)
    items = read_all(indices) if read_all is not None else [loader.dataset[i] for i in indices]
    return loader.collate_fn(items), len(indices)


def _indices(loader: DataLoader[Any], num_samples: int) -> list[Any]:
    sampler = loader.batch_sampler
    if type(sampler) is not BatchSampler:
        # what belongs together in its batches is only known to itself
        return list(next(iter(sampler)))[:num_samples] if sampler is not None else []
    if sampler.batch_size == 1:
        # a batch of its own, such as a graph, may not be put together with others
        return list(itertools.islice(sampler.sampler, 1))
    known = list(itertools.islice(sampler.sampler, _READ))
    step = max(len(known) // num_samples, 1)
    return known[::step][:num_samples]


def _cut(data: Any, num_samples: int) -> tuple[Any, int]:
    size = _samples_of(data)
    if size is None:
        raise CannotProbeError("the batch can't be cut")
    return apply_to_collection(data, Tensor, lambda leaf: leaf[:num_samples]), min(
        size, num_samples
    )


def _samples_of(data: Any) -> int | None:
    sizes = {leaf.size(0) if leaf.dim() else 0 for leaf in leaves(data)}
    return sizes.pop() if len(sizes) == 1 and 0 not in sizes else None


def with_leaves(data: Any, change: Callable[[Tensor], Tensor], which: Sequence[int]) -> Any:
    """Return the batch with some of its tensors changed, by their number.

    Example:
        >>> import torch
        >>> with_leaves([torch.ones(1), torch.ones(1)], torch.zeros_like, [1])
        [tensor([1.]), tensor([0.])]
    """
    numbers = itertools.count()
    return apply_to_collection(
        data, Tensor, lambda leaf: change(leaf) if next(numbers) in which else leaf
    )
