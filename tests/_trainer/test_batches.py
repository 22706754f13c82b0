"""Passes over copies of loaders."""

import pytest
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_tuning._trainer.batches import KeptBatches, ProbeBatches
from lightning_tuning._trainer.errors import CannotProbeError


def combined(*loaders, mode="max_size_cycle", limits=None):
    loader = CombinedLoader(loaders[0] if len(loaders) == 1 else list(loaders), mode)
    loader.limits = limits
    return loader


def numbers(count=5, batch_size=2, **settings):
    return DataLoader(TensorDataset(torch.arange(count)), batch_size, **settings)


def read(batches, epoch=0):
    return list(batches.one_pass(epoch=epoch))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield 1


class Counted(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def test_positions_and_the_last_batch():
    batches = ProbeBatches(combined(numbers()))
    for _ in range(2):
        found = read(batches)
        assert [b.position for b in found] == [0, 1, 2]
        assert [b.is_last for b in found] == [False, False, True]
    batches.close()


def test_the_last_batch_of_data_without_a_length():
    batches = ProbeBatches(combined(DataLoader(Counted(), 2)))
    assert [b.is_last for b in read(batches)] == [False, False, True]
    batches.close()


def test_limits():
    batches = ProbeBatches(combined(DataLoader(Endless()), limits=[4]))
    assert len(read(batches)) == 4
    batches = ProbeBatches(combined(numbers(), limits=[float("inf")]), limit=2)
    assert len(read(batches)) == 2
    batches = ProbeBatches(combined(numbers(), numbers(), mode="sequential"), limit=1)
    assert [b.dataloader_idx for b in read(batches)] == [0, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterator_under_way_goes_on(workers):
    loader = numbers(num_workers=workers, persistent_workers=workers > 0)
    fit = combined(loader)
    iterator = iter(fit)
    found = [next(iterator)[0][0].tolist()]
    batches = ProbeBatches(fit)
    read(batches)
    next(batches.one_pass(epoch=0))
    batches.close()
    found += [next(iterator)[0][0].tolist() for _ in range(2)]
    assert found == [[0, 1], [2, 3], [4]]
    fit.reset()


def test_close_before_and_after_a_pass_ends_all_workers():
    batches = ProbeBatches(combined(numbers(num_workers=1)))
    batches.close()
    one_pass = batches.one_pass(epoch=0)
    next(one_pass)
    one_pass.close()
    batches.close()
    batches.close()
    assert len(read(batches)) == 3
    batches.close()


def test_samplers_are_told_the_epoch():
    sampler = torch.utils.data.DistributedSampler(range(5), 1, 0)
    batches = ProbeBatches(combined(numbers(sampler=sampler)))
    read(batches, epoch=7)
    assert sampler.epoch == 7


def test_empty_data():
    with pytest.raises(CannotProbeError, match="no batch"):
        read(ProbeBatches(combined([])))


def test_data_that_can_be_read_once():
    with pytest.raises(CannotProbeError, match=r"the data loader is a list_iterator.*only once"):
        ProbeBatches(combined(iter([1])))


def test_kept_batches_are_not_changed_by_who_reads_them():
    kept = KeptBatches()
    kept.data.append({"x": [torch.ones(1)]})
    for batch in kept:
        batch["x"][0].add_(1)
        batch["x"].append(2)
    assert [batch["x"] for batch in kept] == [[torch.ones(1)]]
    assert len(kept) == 1
