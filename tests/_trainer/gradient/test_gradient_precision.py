from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_tuning._trainer.gradient.gradient_precision import (
    first_examples,
    float_means_double,
    in_batch,
    in_double,
)


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.head.weight = nn.Parameter(self.gru.weight_ih_l0.detach()[:3, :3].t().contiguous().t())
        self.tied = self.norm.weight
        self.plain = {"classes": [torch.ones(3)], "count": torch.arange(2)}


def test_all_is_double_and_then_as_before():
    net = Net()
    tensors = [*net.parameters(), *net.buffers(), net.plain["classes"][0]]
    before = [(t, t.data_ptr(), t.dtype, t.clone()) for t in tensors]
    net.norm.weight.grad = torch.ones(4)

    def use():
        assert all(t.dtype in (torch.float64, torch.int64) for t in tensors)
        assert torch.ones(1).dtype == torch.float64
        net.gru(torch.ones(2, 5, 3))[0].sum().backward()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), in_double(net):
        use()
    for tensor, place, dtype, values in before:
        assert (tensor.data_ptr(), tensor.dtype) == (place, dtype)
        assert torch.equal(tensor, values)
    assert torch.ones(1).dtype == torch.float32
    assert torch.equal(net.norm.weight.grad, torch.ones(4))
    assert net.gru.weight_ih_l0.grad is None
    assert net.plain["count"].dtype == torch.int64


def test_a_program_that_says_float_means_double():
    with float_means_double():
        made = [
            torch.arange(3).float(),
            torch.arange(3).to(torch.float32),
            torch.zeros(2, dtype=torch.float16),
            torch.ones(1, dtype=torch.float64).to("cpu", dtype=torch.bfloat16),
            torch.ones(1, dtype=torch.float64).half(),
            torch.ones(1, dtype=torch.float64).type(torch.float32),
        ]
        assert torch.zeros(2, dtype=torch.int32).dtype == torch.int32
    assert {value.dtype for value in made} == {torch.float64}
    assert torch.arange(3).float().dtype == torch.float32


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("batch", [
    [torch.arange(8.0), torch.arange(8)],
    {"x": torch.arange(8.0), "y": torch.arange(8)},
    Pair(torch.arange(8.0), torch.arange(8)),
    (torch.arange(8.0), {"y": [torch.arange(8)]}),
])  # fmt: skip
def test_a_batch_of_any_structure_is_cut(batch):
    cut = first_examples(batch, 3)
    assert type(cut) is type(batch)
    leaves = torch.utils._pytree.tree_leaves(cut)
    assert [leaf.tolist() for leaf in leaves] == [[0, 1, 2], [0, 1, 2]]
    doubled = torch.utils._pytree.tree_leaves(in_batch(cut, double=True))
    assert [leaf.dtype for leaf in doubled] == [torch.float64, torch.int64]


def test_what_is_not_as_long_as_the_batch_is_let_be():
    cut = first_examples([torch.zeros(8, 2), torch.zeros(3), list("abcdefgh"), "name", 8], 2)
    assert [getattr(part, "shape", part) for part in cut] == [(2, 2), (3,), ["a", "b"], "name", 8]
    assert first_examples([torch.zeros(2, 2)], 3) is None
    assert first_examples(["no tensor"], 3) is None
