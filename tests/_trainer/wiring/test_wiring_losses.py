"""Each fault of a loss or an output in a minimal program, and its healthy twin beside it."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring import (
    wiring_loss_graph,
    wiring_loss_sign,
    wiring_loss_sum,
    wiring_losses,
    wiring_metrics,
    wiring_non_finite,
    wiring_outputs,
)
from lightning_tuning._trainer.wiring.topic import judge

TOPICS = (
    wiring_outputs.TOPIC,
    wiring_losses.TOPIC,
    wiring_loss_graph.TOPIC,
    wiring_loss_sign.TOPIC,
    wiring_loss_sum.TOPIC,
    wiring_metrics.TOPIC,
    wiring_non_finite.TOPIC,
)
ALL = {code for topic in TOPICS for code in topic.rules}


class Net(LightningModule):
    def __init__(self, step, outputs=3, end=(), val=None, lr=0.1, **optimizer):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, outputs), *end)
        self.step, self.val, self.settings = step, val, {"lr": lr} | optimizer

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.step(self, *batch)

    def validation_step(self, batch, batch_idx):
        if self.val is not None:
            self.log("metric", self.val(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.settings)


class Findings(Callback):
    def __init__(self, wanted):
        self.wanted = wanted
        self.findings = ()

    def on_train_start(self, trainer, pl_module):
        before = {k: v.clone() for k, v in pl_module.state_dict().items()}
        random = torch.get_rng_state()
        with Probe(trainer, pl_module) as probe:
            self.findings = judge(probe, TOPICS, self.wanted)
        for name, value in pl_module.state_dict().items():
            assert torch.equal(value, before[name])
        assert torch.equal(torch.get_rng_state(), random)
        assert "training_step" not in vars(pl_module)
        trainer.should_stop = True
        raise KeyboardInterrupt


def data(kind, size=256):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 4, generator=generator)
    y = {
        "classes": (x[:, 0] > 0.5).long() + (x[:, 0] > -0.5).long(),
        "binary": (x[:, 0] > 0).long(),
        "values": x[:, 0] - x[:, 1],
    }[kind]
    return TensorDataset(x, y)


def alarms(module, kind, wanted=ALL):
    callback = Findings(wanted)
    dataset = data(kind)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[callback],
    )
    loader, val = DataLoader(dataset, 16), DataLoader(dataset, 16)
    with pytest.raises(SystemExit):
        trainer.fit(module, loader, val)
    assert {finding.code for finding in callback.findings} == set(wanted)
    return {f.code for f in callback.findings if f.verdict in ("warn", "fail")}


def ce(s, x, y):
    return F.cross_entropy(s(x), y)


def mse(s, x, y):
    return F.mse_loss(s(x).squeeze(1), y)


def binary(s, x, y):
    return F.binary_cross_entropy_with_logits(s(x).squeeze(1), y.float())


def by_hand(s, x, y):
    chances = 1 / (1 + (-s(x).squeeze(1)).exp())
    return F.binary_cross_entropy_with_logits(chances, y.float())


def near_the_share(s, x, y):
    """Logits that do not learn, and that would be the share of a rare class as probabilities."""
    logits = 0.16 + 0.02 * s(x).squeeze(1)
    return F.binary_cross_entropy_with_logits(logits, (x[:, 0] > 1).float())


def item_of_a_part(s, x, y):
    out = s(x)
    return F.cross_entropy(out, y) + 0.1 * out.square().mean().item()


def swapped_value(s, x, y):
    loss = F.cross_entropy(s(x), y)
    return loss + (loss.exp() - loss).detach()


def weighted_by_value(s, x, y):
    out = s(x)
    loss, other = F.cross_entropy(out, y), out.square().mean()
    return loss * (1 + other.detach())


FAULTY = {
    "softmax_before_ce": (
        lambda: Net(ce, end=[nn.Softmax(1)]),
        lambda: Net(ce, end=[nn.LogSoftmax(1)]),
        "classes",
    ),
    "softmax_before_ce: nll of probabilities": (
        lambda: Net(lambda s, x, y: F.nll_loss(s(x).softmax(1), y)),
        lambda: Net(lambda s, x, y: F.nll_loss((s(x).softmax(1) + 1e-8).log(), y)),
        "classes",
    ),
    "sigmoid_before_bce_logits": (
        lambda: Net(binary, 1, [nn.Sigmoid()]),
        lambda: Net(binary, 1),
        "binary",
    ),
    "sigmoid_before_bce_logits: by hand": (
        lambda: Net(by_hand, 1),
        lambda: Net(near_the_share, 1, lr=1e-7),
        "binary",
    ),
    "single_logit_softmax": (
        lambda: Net(lambda s, x, y: F.cross_entropy(s(x), y[:, None].float()), 1),
        lambda: Net(ce, 2),
        "binary",
    ),
    "loss_detached": (
        lambda: Net(lambda s, x, y: ce(s, x, y).detach().requires_grad_()),
        lambda: Net(ce),
        "classes",
    ),
    "loss_detached: a part": (lambda: Net(item_of_a_part), lambda: Net(swapped_value), "classes"),
    "loss_sign_flipped": (
        lambda: Net(lambda s, x, y: -ce(s, x, y)),
        lambda: Net(lambda s, x, y: -ce(s, x, y), maximize=True),
        "classes",
    ),
    "loss_sign_flipped: by hand": (
        lambda: Net(lambda s, x, y: -((s(x).squeeze(1) - y) ** 2).mean(), 1),
        lambda: Net(lambda s, x, y: ((s(x).squeeze(1) - y) ** 2).mean(), 1),
        "values",
    ),
    "loss_reduction_sum": (
        lambda: Net(lambda s, x, y: ((s(x).squeeze(1) - y) ** 2).sum(), 1, lr=0.3),
        lambda: Net(lambda s, x, y: ((s(x).squeeze(1) - y) ** 2).sum(), 1, lr=0.005),
        "values",
    ),
    "broadcast_mismatch": (
        lambda: Net(lambda s, x, y: ((s(x) - y) ** 2).mean(), 1),
        lambda: Net(lambda s, x, y: (s(x) - y[:, None]).square().mean(), 3),
        "values",
    ),
    "metric_wrong": (
        lambda: Net(ce, val=lambda out, y: (out.softmax(0).argmax(1) == y).float().mean()),
        lambda: Net(ce, val=lambda out, y: (out.softmax(1).argmax(1) == y).float().mean()),
        "classes",
    ),
    "metric_wrong: pairs": (
        lambda: Net(binary, 1, val=lambda out, y: ((out > 0) == y).float().mean()),
        lambda: Net(binary, 1, val=lambda out, y: ((out > 0)[:, 0] == y).float().mean()),
        "binary",
    ),
    "metric_wrong: shares": (
        lambda: Net(ce, val=lambda out, y: (out.argmax(1) == y).sum() / out.numel()),
        lambda: Net(ce, val=lambda out, y: (out.argmax(1) == y).sum() / y.numel()),
        "classes",
    ),
    "wrong_num_classes": (lambda: Net(ce, 2), lambda: Net(ce, 4), "classes"),
    "wrong_num_classes: many": (lambda: Net(ce, 60), lambda: Net(ce, 3), "classes"),
    "output_range_mismatch": (
        lambda: Net(mse, 1, [nn.ReLU()]),
        lambda: Net(lambda s, x, y: F.mse_loss(s(x)[:, 0], y.abs()), 1, [nn.ReLU()]),
        "values",
    ),
    "non_finite": (
        lambda: Net(
            lambda s, x, y: ((s(x).squeeze(1) - y) * 0 + 0).sqrt().mean() + mse(s, x, y), 1
        ),
        lambda: Net(lambda s, x, y: (mse(s, x, y) + 1e-8).sqrt(), 1),
        "values",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_the_fault_is_named(name):
    broken, _, kind = FAULTY[name]
    assert alarms(broken(), kind, {name.split(":")[0]}) == {name.split(":")[0]}


@pytest.mark.parametrize("name", FAULTY)
def test_its_healthy_twin_is_silent(name):
    _, healthy, kind = FAULTY[name]
    assert alarms(healthy(), kind) == set()


class Attack(Net):
    """Learns a perturbation that a fixed network errs on."""

    def __init__(self):
        super().__init__(lambda s, x, y: -ce(s, x + s.shift, y))
        self.requires_grad_(False)
        self.shift = nn.Parameter(torch.zeros(4))


HEALTHY = {
    "attack on a frozen network": (Attack, "classes"),
    "weighted by a value": (lambda: Net(weighted_by_value), "classes"),
    "entropy bonus": (
        lambda: Net(lambda s, x, y: ce(s, x, y) - 0.01 * F.cross_entropy(s(x), s(x).softmax(1))),
        "classes",
    ),
    "ranking of all pairs": (
        lambda: Net(
            lambda s, x, y: F.relu(1 - (s(x) - s(x).T) * (y[:, None] - y).sign()).mean(), 1
        ),
        "values",
    ),
    "complementary labels": (
        lambda: Net(lambda s, x, y: -torch.log1p(-s(x).softmax(1).gather(1, y[:, None])).mean()),
        "classes",
    ),
    "masked infinities": (
        lambda: Net(lambda s, x, y: F.cross_entropy(s(x).masked_fill(y[:, None] > 9, -1e30), y)),
        "classes",
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_an_idiom_is_silent(name):
    make, kind = HEALTHY[name]
    assert alarms(make(), kind) == set()
