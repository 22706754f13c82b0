import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_tuning._trainer.loss_call_recorder import LossCallRecorder

OUTPUT, LABELS, VALUES = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(4, 3)

WAYS = {
    "module": (lambda: nn.CrossEntropyLoss()(OUTPUT, LABELS), ["cross_entropy"]),
    "function": (lambda: functional.cross_entropy(OUTPUT, LABELS), ["cross_entropy"]),
    "by name": (lambda: functional.cross_entropy(target=LABELS, input=OUTPUT), ["cross_entropy"]),
    "two steps": (
        lambda: functional.nll_loss(functional.log_softmax(OUTPUT, 1), LABELS),
        ["nll_loss"],
    ),
    "binary": (
        lambda: nn.BCEWithLogitsLoss()(OUTPUT, VALUES),
        ["binary_cross_entropy_with_logits"],
    ),
    "squared": (lambda: nn.MSELoss()(OUTPUT, VALUES), ["mse_loss"]),
    "two losses": (
        lambda: functional.mse_loss(OUTPUT, VALUES) + 0.1 * nn.L1Loss()(OUTPUT, VALUES),
        ["mse_loss", "l1_loss"],
    ),
    "of one's own": (lambda: torch.mean((OUTPUT - VALUES) ** 2), []),
}


@pytest.mark.parametrize("way", WAYS)
def test_calls_are_seen_however_they_are_written(way):
    act, names = WAYS[way]
    plain = act()
    with LossCallRecorder() as recorder:
        seen = act()
    assert torch.equal(seen, plain)
    calls = recorder.take()
    assert [call.name for call in calls] == names
    assert all(torch.equal(call.input, OUTPUT) for call in calls if call.name != "nll_loss")
    assert recorder.take() == []


def test_gradients_are_as_without_it():
    def gradient():
        leaf = OUTPUT.clone().requires_grad_()
        functional.cross_entropy(leaf, LABELS).backward()
        return leaf.grad

    plain = gradient()
    with LossCallRecorder():
        seen = gradient()
    assert torch.equal(seen, plain)


def test_an_error_of_the_program_passes():
    with LossCallRecorder() as recorder, pytest.raises(ValueError, match="batch_size"):
        functional.cross_entropy(OUTPUT, LABELS[:2])
    assert recorder.take() == []


def test_a_compiled_loss():
    compiled = torch.compile(
        lambda output: functional.cross_entropy(output, LABELS), backend="eager"
    )
    with LossCallRecorder() as recorder:
        first, second = compiled(OUTPUT), compiled(OUTPUT)
    assert torch.equal(first, second)
    assert [call.name for call in recorder.take()] == ["cross_entropy"] * 2
