import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring.wiring_inputs import TOPIC
from tests._trainer.topic_runs import findings, integers, mlp, normal, verdict

X, Y = normal(96, 12), integers(5, 96)


class Recurrent(nn.Module):
    """Classifies from the last state, or from the first."""

    def __init__(self, broken):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 5)
        self.broken = broken

    def forward(self, x):
        start = torch.zeros(1, len(x), 8)
        _, (state, _) = self.lstm(x.view(-1, 3, 4), (start, start))
        return self.head(start[-1] if self.broken else state[-1])


def classify(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


def by_hand(net, batch):
    return -net(batch[0]).log_softmax(1).gather(1, batch[1][:, None]).mean()


@pytest.mark.parametrize("step", [classify, by_hand])
@pytest.mark.parametrize("broken", [True, False])
def test_a_state_from_before(broken, step):
    found = verdict("input_ignored", TOPIC, lambda: Recurrent(broken), step, X, Y)
    assert found == ("fail" if broken else "pass")


@pytest.mark.parametrize("replace", [torch.zeros_like, torch.randn_like])
def test_another_input_than_the_batchs(replace):
    def step(net, batch):
        return classify(net, (replace(batch[0]), batch[1]))

    assert verdict("input_ignored", TOPIC, mlp, step, X, Y) == "fail"


def zero_head():
    net = mlp()
    nn.init.zeros_(net[2].weight)
    return net


def dead():
    net = mlp()
    nn.init.constant_(net[0].bias, -50.0)
    return net


@pytest.mark.parametrize("net", [zero_head, dead])
def test_weights_that_pass_nothing_yet(net):
    assert verdict("input_ignored", TOPIC, net, classify, X, Y) == "pass"


def autoencoder():
    return nn.ModuleDict({"encode": mlp(12, 4), "decode": mlp(4, 12)})


def vae(noise_only):
    def step(net, batch):
        mean = net["encode"](batch[0])
        z = torch.randn_like(mean) if noise_only else mean + torch.randn_like(mean)
        return F.mse_loss(net["decode"](z), batch[0]) + mean.pow(2).mean()

    return step


def test_a_decoder_of_nothing_but_noise():
    assert verdict("input_ignored", TOPIC, autoencoder, vae(True), X) == "fail"
    assert verdict("input_ignored", TOPIC, autoencoder, vae(False), X) == "pass"


def generator(net, batch):
    return F.mse_loss(net(torch.randn(len(batch[0]), 12)), batch[0])


def discriminator(net, batch):
    real = net(batch[0])
    return F.binary_cross_entropy_with_logits(real, torch.ones_like(real))


def own_points(net, batch):
    points = torch.linspace(0, 1, 12).expand(len(batch[0]), -1)
    return F.mse_loss(net(points), torch.zeros(len(points), 5))


@pytest.mark.parametrize(
    ("net", "step"), [(lambda: mlp(12, 12), generator), (mlp, discriminator), (mlp, own_points)]
)
def test_programs_without_inputs_or_targets(net, step):
    found = findings(TOPIC, net, step, X, Y)
    assert {finding.verdict for finding in found.values()} <= {"pass", "skip"}


@pytest.mark.parametrize("step", [classify, by_hand])
def test_one_input_for_all(step):
    same = X[:1].expand(96, -1)
    assert verdict("constant_input", TOPIC, mlp, step, same, Y) == "fail"
    assert verdict("constant_input", TOPIC, mlp, step, X, Y) == "pass"


def test_division_of_integers_in_the_step():
    def step(divide):
        return lambda net, batch: classify(net, (divide(batch[0]), batch[1]))

    pixels = integers(255, 96, 12).to(torch.uint8)
    broken, repaired = step(lambda x: (x // 255).float()), step(lambda x: x / 255)
    assert verdict("constant_input", TOPIC, mlp, broken, pixels, Y) == "fail"
    assert verdict("constant_input", TOPIC, mlp, repaired, pixels, Y) == "pass"


def test_a_mask_for_all_beside_an_input():
    def step(net, batch):
        return F.cross_entropy(net(batch[0] * batch[1]), batch[2])

    mask = (torch.arange(12) % 3 > 0).float().expand(96, -1)
    found = findings(TOPIC, mlp, step, X, mask, Y)
    assert {finding.verdict for finding in found.values()} == {"pass"}
