import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring.wiring_future import TOPIC
from tests._trainer.topic_runs import integers, normal, verdict

TOKENS = integers(9, 64, 13)
SERIES = normal(64, 13, 2)


class Reader(nn.Module):
    """A GRU over tokens or values."""

    def __init__(self, both=False, values=False):
        super().__init__()
        self.embed = nn.Linear(2, 8) if values else nn.Embedding(10, 8)
        self.gru = nn.GRU(8, 8, batch_first=True, bidirectional=both)
        self.head = nn.Linear(16 if both else 8, 2 if values else 10)

    def forward(self, x):
        return self.head(self.gru(self.embed(x))[0])


class Conv(nn.Module):
    """A convolution over time, with statistics over all times."""

    def __init__(self, both):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(2, 8, 3), nn.GroupNorm(2, 8), nn.Conv1d(8, 2, 1)
        self.pad = (1, 1) if both else (2, 0)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(F.pad(x.transpose(1, 2), self.pad))))
        return self.head(h).transpose(1, 2)


def flat(net, batch):
    (t,) = batch
    return F.cross_entropy(net(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())


def time_first(net, batch):
    t = batch[0].T
    out = net(t[:-1].T).transpose(0, 1).log_softmax(-1)
    return F.nll_loss(out.reshape(-1, 10), t[1:].reshape(-1))


def rolled(net, batch):
    target = batch[0].roll(-1, 1).index_fill(1, torch.tensor([12]), -100)
    return F.cross_entropy(net(batch[0]).transpose(1, 2), target)


def start_token(net, batch):
    (t,) = batch
    shifted = torch.cat([torch.full_like(t[:, :1], 9), t[:, :-1]], 1)
    return F.cross_entropy(net(shifted).transpose(1, 2), t)


def two_tensors(net, batch):
    return F.cross_entropy(net(batch[0]).transpose(1, 2), batch[1])


@pytest.mark.parametrize("step", [flat, time_first, rolled, start_token])
@pytest.mark.parametrize("both", [True, False])
def test_language_models(step, both):
    expected = "fail" if both else "pass"
    assert verdict("future_leakage", TOPIC, lambda: Reader(both), step, TOKENS) == expected


@pytest.mark.parametrize("both", [True, False])
def test_inputs_and_targets_apart(both):
    apart = TOKENS[:, :-1], TOKENS[:, 1:]
    expected = "fail" if both else "pass"
    assert verdict("future_leakage", TOPIC, lambda: Reader(both), two_tensors, *apart) == expected


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("net", [Conv, lambda both: Reader(both, values=True)])
def test_forecasters(net, both):
    def step(net, batch):
        return F.mse_loss(net(batch[0][:, :-1]), batch[0][:, 1:])

    expected = "fail" if both else "pass"
    assert verdict("future_leakage", TOPIC, lambda: net(both), step, SERIES) == expected


class Translator(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)
        self.body = nn.Transformer(8, 2, 1, 1, 8, 0.0, batch_first=True)
        self.causal = causal

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        embedded = self.embed(source), self.embed(target)
        return self.head(self.body(*embedded, tgt_mask=mask if self.causal else None))


@pytest.mark.parametrize("causal", [True, False])
def test_a_decoder_with_the_source_as_target(causal):
    def step(net, batch):
        source, target = batch
        return F.cross_entropy(net(source, target[:, :-1]).transpose(1, 2), target[:, 1:])

    both = TOKENS, TOKENS.clone()
    found = verdict("future_leakage", TOPIC, lambda: Translator(causal), step, *both)
    assert found == ("pass" if causal else "fail")


def copies(net, batch):
    return F.cross_entropy(net(batch[0]).transpose(1, 2), batch[0])


def masked(net, batch):
    hidden = torch.rand(batch[0].shape) < 0.2
    out = net(batch[0].masked_fill(hidden, 9))
    return F.cross_entropy(out.transpose(1, 2), batch[0].masked_fill(~hidden, -100))


def denoises(net, batch):
    noisy = batch[0].masked_fill(torch.rand(batch[0].shape) < 0.2, 9)
    return F.cross_entropy(net(noisy).transpose(1, 2), batch[0])


def test_targets_that_were_not_shifted():
    assert verdict("future_leakage", TOPIC, Reader, copies, TOKENS) == "fail"


@pytest.mark.parametrize(
    ("both", "step"), [(True, copies), (True, masked), (True, denoises), (False, denoises)]
)
def test_what_gives_back_its_input_on_purpose(both, step):
    assert verdict("future_leakage", TOPIC, lambda: Reader(both), step, TOKENS) == "skip"


def test_a_filter_without_padding():
    def step(net, batch):
        x = batch[0].transpose(1, 2)
        return F.mse_loss(net(x), x[..., 1:-1])

    def smoother():
        return nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 1))

    assert verdict("future_leakage", TOPIC, smoother, step, SERIES) == "skip"
