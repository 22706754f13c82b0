import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_tuning.functional.loss_calls import LOSS_FUNCTIONS, bound_call

LOGITS, LABELS = torch.tensor([[2.0, 0.0, 1.0], [0.5, 0.1, 0.2]]), torch.tensor([0, 2])


def called(function, *args, **kwargs):
    return bound_call(function, args, kwargs, function(*args, **kwargs))


def test_arguments_are_known_by_name_wherever_they_stood():
    one = called(functional.cross_entropy, LOGITS, LABELS, torch.ones(3), label_smoothing=0.1)
    other = called(functional.cross_entropy, target=LABELS, input=LOGITS, weight=torch.ones(3))
    assert one.name == other.name == "cross_entropy"
    assert torch.equal(one.input, other.input)
    assert torch.equal(one.target, LABELS)
    assert set(one.options) == {"weight", "label_smoothing"}
    assert set(other.options) == {"weight"}
    assert one.reduction == "mean"


@pytest.mark.parametrize(
    ("old", "new"),
    [({"size_average": False}, "sum"), ({"reduce": False}, "none"), ({"reduce": True}, "mean")],
)
@pytest.mark.filterwarnings("ignore:.*size_average and reduce args will be deprecated")
def test_old_words_for_the_reduction(old, new):
    call = called(functional.mse_loss, torch.ones(3), torch.zeros(3), **old)
    assert call.reduction == new
    assert torch.equal(call.replay(torch.ones(3)), call.value)


@pytest.mark.parametrize("name", sorted(LOSS_FUNCTIONS))
def test_a_replay_with_the_same_output_gives_the_same(name):
    classes = ("cross_entropy", "nll_loss", "multi_margin_loss")
    target = LABELS if name in classes else torch.rand(2, 3)
    if name == "multilabel_margin_loss":
        target = torch.tensor([[0, 2, -1], [1, -1, -1]])
    output = LOGITS.sigmoid()
    more = {"gaussian_nll_loss": {"var": torch.ones(2, 3)}, "kl_div": {"reduction": "batchmean"}}
    call = called(LOSS_FUNCTIONS[name], output, target, **more.get(name, {}))
    assert torch.equal(call.replay(output), call.value)


def test_no_graph_is_kept():
    call = called(functional.cross_entropy, LOGITS.clone().requires_grad_(), LABELS)
    assert not call.input.requires_grad
    assert not call.value.requires_grad


def test_what_is_no_loss_is_not_a_call():
    assert bound_call(torch.sum, [LOGITS], {}, LOGITS.sum()) is None
    assert bound_call(nn.functional.relu, [LOGITS], {}, LOGITS) is None
