"""Plain Python state: remembered by walking, written back in place."""

import array
import collections
import functools
import itertools
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning._trainer import object_state
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.object_state import ObjectState


class Holder:
    def __init__(self, **attributes):
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: [1, [2]], lambda x: x[1].append(3)),
        (lambda: {"a": {"b": 1}}, lambda x: x["a"].update(b=2, c=3)),
        (lambda: collections.OrderedDict(a=1, b=2), lambda x: x.move_to_end("a")),
        (lambda: collections.defaultdict(list), lambda x: x["new"].append(1)),
        (lambda: collections.Counter("ab"), lambda x: x.update("b")),
        (lambda: collections.deque([1, 2], maxlen=2), lambda x: x.append(3)),
        (lambda: {1, 2}, lambda x: x.add(3)),
        (lambda: ([1],), lambda x: x[0].clear()),
        (lambda: bytearray(b"ab"), lambda x: x.extend(b"c")),
        (lambda: array.array("d", [1.0]), lambda x: x.append(2.0)),
    ],
)
def test_containers(make, change):
    value, expected = make(), make()
    state = ObjectState([value])
    for _ in range(2):
        change(value)
        assert value != expected or list(value) != list(expected)
        state.restore()
        assert value == expected
        assert list(value) == list(expected)


def test_identity_of_what_is_held_is_kept():
    inner = [1]
    holder = Holder(inner=inner, other={"same": inner})
    state = ObjectState([holder])
    holder.inner = [2]
    inner.append(3)
    holder.new = 1
    state.restore()
    assert holder.inner is inner is holder.other["same"]
    assert inner == [1]
    assert not hasattr(holder, "new")


@dataclass(slots=True)
class Slotted:
    count: int
    items: list
    unset: int = 0


class More(Slotted):
    """Slots, and attributes besides."""


@pytest.mark.parametrize("kind", [Slotted, More])
def test_slots(kind):
    obj = kind(1, [])
    del obj.unset
    state = ObjectState([obj])
    obj.count, obj.unset = 2, 3
    obj.items.append(1)
    state.restore()
    assert (obj.count, obj.items) == (1, [])
    assert not hasattr(obj, "unset")


def test_read_only_slots_of_c_types_are_left_alone():
    class Mine(functools.partial):
        pass

    counts = []
    mine = Mine(print, counts)
    state = ObjectState([mine])
    counts.append(1)
    state.restore()
    assert counts == []


def test_objects_behind_methods_and_partials():
    first, second = Holder(x=1), [1]
    state = ObjectState([{"a": [first.__init__], "b": functools.partial(print, second)}])
    first.x = 2
    second.append(2)
    state.restore()
    assert first.x == 1
    assert second == [1]


def test_arrays_and_tensors_in_place():
    table, tensor = np.zeros(2), torch.zeros(2)
    view = table[:1]
    state = ObjectState([Holder(table=table, tensor=tensor)])
    table += 1
    tensor += 1
    state.restore()
    assert view[0] == 0
    assert torch.equal(tensor, torch.zeros(2))


def test_read_only_arrays():
    table = np.zeros(2)
    table.flags.writeable = False
    state, holder = ObjectState([Holder(table=table)]), Holder(table=table)
    state.restore()
    assert holder.table is table
    assert table.tolist() == [0.0, 0.0]


def test_array_made_read_only_meanwhile():
    table = np.zeros(2)
    state = ObjectState([table])
    table[0] = 1
    table.flags.writeable = False
    state.restore()
    assert table[0] == 0


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand(1, generator=g).item()),
        (lambda: np.random.default_rng(1), lambda g: g.random()),
        (lambda: np.random.PCG64(1), lambda g: g.random_raw()),
        (lambda: np.random.RandomState(1), lambda g: g.rand()),
        (lambda: random.Random(1), lambda g: g.random()),
        (lambda: torch.quasirandom.SobolEngine(1, True, 1), lambda g: g.draw().item()),
    ],
)
def test_generators(make, draw):
    generator = make()
    state = ObjectState([Holder(generator=generator)])
    first = draw(generator)
    state.restore()
    assert draw(generator) == first


def test_generator_of_the_system_has_no_state():
    system = random.SystemRandom()
    holder = Holder(source=system, count=1)
    state = ObjectState([holder])
    holder.count = 2
    state.restore()
    assert (holder.source, holder.count) == (system, 1)


def test_data_are_not_copied_but_small_tables_are(monkeypatch):
    monkeypatch.setattr(object_state, "_SMALL", 40)
    data = torch.utils.data.TensorDataset(torch.zeros(100))
    data.counts = torch.zeros(10)
    data.served = 0
    state = ObjectState([Holder(data=data)])
    data.counts += 1
    data.tensors[0].add_(1)
    data.served = 1
    state.restore()
    assert data.counts.sum() == 0
    assert data.served == 0
    assert data.tensors[0].sum() == 100


def test_small_tables_end_at_a_total(monkeypatch):
    monkeypatch.setattr(object_state, "_SMALL_ALTOGETHER", 100)
    tables = [torch.zeros(10) for _ in range(10)]
    state = ObjectState([], data=[tables])
    for table in tables:
        table.add_(1)
    state.restore()
    assert sum(table.sum() for table in tables) == 80


def test_module_in_eval_mode_and_with_new_hooks():
    module = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    module[1].eval()
    state = ObjectState([module])
    module.train()
    module[0].register_forward_hook(print)
    module.append(nn.ReLU())
    state.restore()
    assert [child.training for child in module] == [True, False]
    assert not module[0]._forward_hooks


@pytest.mark.parametrize("make", [itertools.count, lambda: iter([1]), lambda: (i for i in "a")])
def test_iterators_are_refused_by_name(make):
    with pytest.raises(CannotProbeError, match=r"Holder.*'numbers'"):
        ObjectState([[Holder(numbers=make())]])
    with pytest.raises(CannotProbeError, match="a list of the program"):
        ObjectState([[make()]])


def test_skipped_objects_are_not_walked_through():
    skipped = [1]
    state = ObjectState([[skipped]], skip=[skipped])
    skipped.append(2)
    state.restore()
    assert skipped == [1, 2]


def test_cycles_end():
    loop = []
    loop.append(loop)
    ObjectState([loop]).restore()
    assert loop[0] is loop
