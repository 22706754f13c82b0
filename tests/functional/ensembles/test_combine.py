"""How outputs are combined: closed forms, torch's own losses, and what changes nothing."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torchmetrics.functional import accuracy

from lightning_tuning.functional.ensembles.average import average_weights
from lightning_tuning.functional.ensembles.combine import combine, combine_outputs, disagreement


def logits(*shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 8, 4), 1), ((3, 8, 4, 6, 6), 1), ((3, 8, 6, 4), -1)]
)
def test_the_softmax_of_the_output_is_the_mean_of_the_probabilities(shape, dim):
    outputs = logits(*shape)
    over = dim + 1 if dim >= 0 else dim
    combined = combine(outputs, "probabilities", class_dim=dim)
    expected = outputs.softmax(over).mean(0)
    torch.testing.assert_close(combined.softmax(dim), expected)
    # it is the logarithm already, so that a second softmax changes nothing
    torch.testing.assert_close(combined.exp(), expected)


def test_cross_entropy_and_accuracy_are_those_of_the_averaged_probabilities():
    outputs, labels = logits(5, 64, 4), torch.arange(64) % 4
    combined = combine(outputs, "probabilities")
    probabilities = outputs.softmax(2).mean(0)
    loss = nn.functional.cross_entropy(combined, labels)
    torch.testing.assert_close(loss, nn.functional.nll_loss(probabilities.log(), labels))
    settings = {"task": "multiclass", "num_classes": 4}
    assert accuracy(combined, labels, **settings) == accuracy(probabilities, labels, **settings)


def test_the_loss_of_an_ensemble_is_at_most_the_mean_loss_of_its_members():
    outputs, labels = logits(5, 64, 4), torch.arange(64) % 4
    members = [nn.functional.cross_entropy(member, labels) for member in outputs]
    combined = nn.functional.cross_entropy(combine(outputs, "probabilities"), labels)
    assert combined < torch.stack(members).mean()


def test_independent_labels():
    outputs = logits(5, 16, 3)
    combined = combine(outputs, "binary_probabilities")
    torch.testing.assert_close(combined.sigmoid(), outputs.sigmoid().mean(0))
    far = torch.tensor([[[60.0]], [[60.0]], [[-60.0]]])
    assert combine(far, "binary_probabilities").item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("how", ["probabilities", "binary_probabilities", "mean"])
def test_one_member_and_equal_members_change_nothing(how):
    one = logits(1, 16, 3)
    same = combine(one.expand(4, -1, -1), how)
    if how == "probabilities":
        torch.testing.assert_close(combine(one, how).softmax(1), one[0].softmax(1))
        torch.testing.assert_close(same.softmax(1), one[0].softmax(1))
    else:
        torch.testing.assert_close(combine(one, how), one[0])
        torch.testing.assert_close(same, one[0])


@pytest.mark.parametrize("how", ["probabilities", "binary_probabilities", "mean"])
def test_the_order_of_members_does_not_matter_and_half_precision_stays(how):
    outputs = logits(4, 16, 3)
    torch.testing.assert_close(combine(outputs, how), combine(outputs.flip(0), how))
    assert combine(outputs.bfloat16(), how).dtype == torch.bfloat16


class Pair(NamedTuple):
    logits: torch.Tensor
    value: torch.Tensor


def test_dicts_tuples_and_named_tuples_by_name():
    outputs = [Pair(logits(8, 3) + i, torch.full((8, 1), float(i))) for i in range(3)]
    expected = combine(torch.stack([o.logits for o in outputs]), "probabilities")
    named = combine_outputs(outputs, {"0": "probabilities"})
    torch.testing.assert_close(named.logits, expected)
    assert torch.equal(named.value, torch.ones(8, 1))
    dicts = [{**o._asdict(), "size": 8, "mask": torch.arange(8)} for o in outputs]
    found = combine_outputs(dicts, {"logits": "probabilities"})
    torch.testing.assert_close(found["logits"], expected)
    assert found["size"] == 8
    assert torch.equal(found["mask"], torch.arange(8))
    lists = combine_outputs([list(o) for o in outputs], "mean")
    assert isinstance(lists, list)


@pytest.mark.parametrize(
    ("outputs", "how", "said"),
    [
        ([{"a": torch.ones(2), "b": torch.ones(2)}] * 2, "probabilities", "give it by name"),
        ([{"a": torch.ones(2)}] * 2, {"c": "mean"}, "no output 'c', there are 'a'"),
        ([torch.ones(2)] * 2, {"a": "mean"}, "the output is one tensor"),
        ([{"a": 1}, {"a": 2}], "mean", "differs between members"),
        ([3.0, 4.0], "mean", "type float cannot be averaged"),
    ],
)
def test_what_cannot_be_averaged_is_named(outputs, how, said):
    with pytest.raises(ValueError, match=said):
        combine_outputs(outputs, how)


@pytest.mark.parametrize("shape", [(3, 8, 1), (3, 8)])
def test_values_are_not_taken_for_classes(shape):
    with pytest.raises(ValueError, match="a regression needs combine='mean'"):
        combine(logits(*shape), "probabilities")


def test_disagreement_of_classes_is_the_share_of_pairs_that_differ():
    votes = nn.functional.one_hot(torch.tensor([[0, 1, 2], [0, 1, 1], [0, 2, 0]])).float()
    # of three pairs 0, 2 and 3 differ
    assert disagreement(votes, "probabilities").item() == pytest.approx((0 + 2 + 3) / 9)
    assert disagreement(votes[:1], "probabilities").item() == 0
    assert disagreement(votes[:1].expand(5, -1, -1), "probabilities").item() == 0


def test_disagreement_of_values_and_labels():
    values = torch.tensor([[0.0, 10.0], [2.0, 12.0]])
    assert disagreement(values, "mean").item() == pytest.approx(math.sqrt(2) / 5)
    scaled = disagreement(100 * values, "mean")
    assert scaled.item() == pytest.approx(math.sqrt(2) / 5)
    labels = torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]]])
    assert disagreement(labels, "binary_probabilities").item() == 0.5


def test_weights_are_averaged_in_single_precision_and_counts_are_the_last():
    members = [
        {"w": torch.full((2,), v, dtype=torch.bfloat16), "n": torch.tensor(n)}
        for v, n in ((256.0, 3), (1.0, 4), (1.0, 9))
    ]
    averaged = average_weights(members)
    assert averaged["w"].dtype == torch.bfloat16
    assert torch.equal(averaged["w"], torch.full((2,), 86.0, dtype=torch.bfloat16))
    assert averaged["n"] == 9
