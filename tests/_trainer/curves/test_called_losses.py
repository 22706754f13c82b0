"""Which loss functions a batch calls, seen without changing what it computes."""

import sys

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional
from torch.nn.functional import cross_entropy

from lightning_tuning import LossCurveDiagnosis
from lightning_tuning._trainer.curves.called_losses import CalledLosses
from lightning_tuning._trainer.loss_call_recorder import LossCallRecorder
from lightning_tuning.functional.loss_calls import LOSS_FUNCTIONS
from tests.test_contract import fit, trainer_for
from tests.toys import Classifier

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def seen(program):
    calls = CalledLosses()
    assert calls.begin()
    try:
        program()
    finally:
        found = calls.end()
    assert sys.getprofile() is None
    return found


def some_losses():
    values = LOGITS.clone().requires_grad_()
    nn.CrossEntropyLoss(weight=torch.ones(3))(values, LABELS)
    cross_entropy(values, LABELS, reduction="sum")  # under a name of one's own
    functional.mse_loss(values, LOGITS, reduce=False)
    functional.nll_loss(values.log_softmax(1), LABELS, ignore_index=1)
    functional.binary_cross_entropy_with_logits(input=values, target=LOGITS.sigmoid())
    functional.gaussian_nll_loss(values, LOGITS, torch.ones(6, 3))


@pytest.mark.filterwarnings("ignore:size_average and reduce")
def test_the_same_calls_are_seen_as_by_a_function_mode():
    found = seen(some_losses)
    with LossCallRecorder() as recorder:
        some_losses()
    expected = recorder.take()
    assert [call.name for call in found] == [call.name for call in expected]
    assert len(found) == 6
    for call, other in zip(found, expected, strict=True):
        assert call.reduction == other.reduction
        assert call.input.shape == other.input.shape
        assert torch.equal(call.value, other.value)
        assert torch.equal(call.target, other.target)
        assert call.trained
        assert torch.equal(call.replay(LOGITS * 0 + 0.5), other.replay(LOGITS * 0 + 0.5))


def test_every_loss_function_has_a_frame_to_be_seen():
    assert all(function.__code__.co_name == name for name, function in LOSS_FUNCTIONS.items())


def test_a_call_that_raises_is_no_call():
    def program():
        with pytest.raises(ValueError, match="batch_size"):
            functional.cross_entropy(LOGITS, LABELS[:2])
        functional.cross_entropy(LOGITS, LABELS)

    assert len(seen(program)) == 1


def test_a_call_that_stands_for_many_examples_is_left_out():
    def program():
        torch.func.vmap(torch.func.grad(functional.cross_entropy))(LOGITS, LABELS)

    assert seen(program) == []


def test_a_profiler_that_is_there_is_let_be():
    sys.setprofile(other := lambda *event: None)
    try:
        calls = CalledLosses()
        assert not calls.begin()
        assert calls.end() == []
        assert sys.getprofile() is other
    finally:
        sys.setprofile(None)


class Encoder(LightningModule):
    """A transformer whose padding mask makes its fast path give other numbers."""

    def __init__(self, *, teacher):
        super().__init__()
        torch.manual_seed(3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(8, 1)
        self.teacher = teacher
        self.seen = []

    def loss(self, batch):
        inputs = functional.pad(batch[0], (0, 2)).unsqueeze(1).repeat(1, 6, 1)
        padding = torch.zeros(len(inputs), 6, dtype=torch.bool)
        padding[1:, 3:] = True
        if self.teacher:
            self.encoder.eval()
            with torch.no_grad():
                states = self.encoder(inputs, src_key_padding_mask=padding)
        else:
            states = self.encoder(inputs, src_key_padding_mask=padding)
        value = functional.mse_loss(self.head(states.mean(1)), torch.ones(len(inputs), 1))
        self.seen.append(float(value.detach()))
        return value

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Found .* module.*in eval mode")
def test_the_fast_path_of_attention_is_taken_as_without(teacher):
    plain, watched = Encoder(teacher=teacher), Encoder(teacher=teacher)
    plain.encoder.requires_grad_(not teacher)
    watched.encoder.requires_grad_(not teacher)
    fit(trainer_for(), plain)
    fit(trainer_for(LossCurveDiagnosis()), watched)
    assert watched.seen == plain.seen


@pytest.mark.parametrize("whole_step", [False, True])
def test_nothing_is_compiled_twice(whole_step):
    graphs = []
    for callbacks in ([], [LossCurveDiagnosis()]):
        torch._dynamo.reset()
        counter = CompileCounter()

        def program(net, inputs, labels):
            return functional.cross_entropy(net(inputs), labels)

        forward = torch.compile(lambda net, inputs: net(inputs), backend=counter)
        compiled = torch.compile(program, backend=counter)

        class Compiled(Classifier):
            def training_step(self, batch, batch_idx, forward=forward, compiled=compiled):
                if whole_step:
                    return compiled(self.net, *batch)
                return functional.cross_entropy(forward(self.net, batch[0]), batch[1])

        fit(trainer_for(*callbacks, limit_val_batches=0), Compiled())
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1] > 0
    assert callbacks[0].result.curves.steps == 12


def test_the_hook_goes_when_the_fit_is_interrupted():
    class Breaks(Classifier):
        def training_step(self, batch, batch_idx):
            raise OSError("the program's own")

    with pytest.raises(OSError, match="the program's own"):
        fit(trainer_for(LossCurveDiagnosis()), Breaks())
    assert sys.getprofile() is None


def test_batches_that_do_not_come_to_their_end_leave_no_profiler():
    class Skips(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            return -1  # and Lightning goes on with the next epoch

    fit(trainer_for(LossCurveDiagnosis(), max_epochs=3), Skips())
    assert sys.getprofile() is None
