import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_tuning._trainer.loss_call_recorder import LossCallRecorder

LOGITS, LABELS = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
CHAINS = {
    "module": (nn.Softmax(1), ("softmax",)),
    "function": (lambda x: functional.softmax(x, dim=-1), ("softmax",)),
    "method": (lambda x: x.softmax(1), ("softmax",)),
    "torch's own": (lambda x: torch.softmax(x, 1), ("softmax",)),
    "in place": (lambda x: x.clone().sigmoid_(), ("sigmoid_",)),
    "reshaped": (lambda x: torch.sigmoid(x).view(3, 6).t().reshape(6, 3), ("sigmoid",)),
    "a part": (lambda x: torch.tanh(x)[:, :3].float(), ("tanh",)),
    "held within bounds": (lambda x: x.softmax(1).clamp(1e-6, 1), ("softmax",)),
    "one after the other": (lambda x: torch.log(x.softmax(1)), ("log", "softmax")),
    "twice": (lambda x: x.log_softmax(1).log_softmax(1), ("log_softmax", "log_softmax")),
    "scaled": (lambda x: 2 * torch.tanh(x), None),
    "nothing": (lambda x: x + 1, None),
}


@pytest.mark.parametrize("way", CHAINS)
def test_what_made_the_input_of_a_loss_is_known(way):
    make, chain = CHAINS[way]
    with LossCallRecorder() as recorder:
        functional.cross_entropy(make(LOGITS), LABELS)
    [call] = recorder.take()
    found = None if call.origin is None else call.origin.chain()
    assert found == chain


def test_the_dimension_and_what_went_in_are_kept():
    with LossCallRecorder() as recorder:
        functional.cross_entropy(torch.softmax(LOGITS, dim=0), LABELS)
        functional.cross_entropy(LOGITS.softmax(1), LABELS)
    along_the_batch, along_the_classes = recorder.take()
    assert along_the_batch.origin.dim == 0
    assert along_the_classes.origin.dim == 1
    assert torch.equal(along_the_batch.origin.input, LOGITS)


def test_a_step_knows_nothing_of_the_step_before():
    recorder = LossCallRecorder()
    with recorder:
        probabilities = LOGITS.softmax(1)
    recorder.take()
    with recorder:
        functional.cross_entropy(probabilities, LABELS)
    assert recorder.take()[0].origin is None
