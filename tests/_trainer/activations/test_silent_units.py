"""Units that are silent for a window of steps."""

import torch

from lightning_tuning._trainer.activations.one_transfer import OneTransfer
from lightning_tuning._trainer.activations.silent_units import SilentUnits, window


def test_a_unit_is_dead_after_a_window_of_silent_steps_and_alive_when_it_speaks():
    units = SilentUnits()
    spoken = torch.rand(30, 12, generator=torch.Generator().manual_seed(1)) < 0.3
    spoken[:, 4] = False
    for step in range(30):
        dead = int(units.update([("a", spoken[step].float())], 5)[0])
        expected = sum(not spoken[max(0, step - 4) : step + 1, unit].any() for unit in range(12))
        assert dead == (expected if step >= 4 else 0)


def test_layers_are_counted_apart_and_may_come_and_go():
    units, silent, loud = SilentUnits(), torch.zeros(3), torch.ones(2)
    for _ in range(4):
        assert units.update([("a", silent), ("b", loud)], 5).tolist() == [0, 0]
    assert units.update([("b", loud), ("a", silent)], 5).tolist() == [0, 3]
    assert units.update([("b", loud)], 5).tolist() == [0]
    assert units.update([("a", silent), ("b", loud)], 5).tolist() == [3, 0]
    # another number of units is another layer
    assert units.update([("a", torch.zeros(4)), ("b", loud)], 5).tolist() == [0, 0]
    assert units.seen == {"a": 1, "b": 8}


def test_small_batches_have_longer_windows():
    assert [window(n) for n in (1, 8, 32, 64, 10**6, 0)] == [15, 15, 8, 5, 5, 15]


def test_one_transfer_returns_everything_in_its_place():
    first = [torch.tensor(1.5), torch.tensor(7), torch.tensor(2.0).double()]
    second = [torch.tensor(0.5).bfloat16(), torch.tensor(3.25)]
    arrays = [torch.randn(2, 3), torch.zeros(0), torch.arange(4)]
    transfer = OneTransfer()
    places = transfer.put(first), transfer.put([]), transfer.put(second)
    rows = [transfer.put_array(array) for array in arrays]
    scalars, found = transfer.fetch()
    assert [scalars[place] for place in places] == [[1.5, 7.0, 2.0], [], [0.5, 3.25]]
    for row, array in zip(rows, arrays, strict=True):
        assert found[row].tolist() == array.double().tolist()
    assert OneTransfer().fetch() == ([], [])
