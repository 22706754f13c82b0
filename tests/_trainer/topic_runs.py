"""Small programs as a network and a step, and what a topic of the wiring check finds in one."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.topic import judge


class Program(LightningModule):
    def __init__(self, net, step):
        super().__init__()
        self.net, self.step = net, step

    def training_step(self, batch, batch_idx):
        return self.step(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Judge(Callback):
    """Applies a topic and ends the fit; weights, gradients and generators must be untouched."""

    def __init__(self, topic):
        self.topic = topic
        self.findings = ()

    def on_train_start(self, trainer, pl_module):
        weights = [p.clone() for p in pl_module.parameters()]
        modes = [m.training for m in pl_module.modules()]
        random = torch.get_rng_state()
        with Probe(trainer, pl_module) as probe:
            self.findings = judge(probe, [self.topic], self.topic.rules)
        assert all(map(torch.equal, weights, pl_module.parameters()))
        assert all(p.grad is None for p in pl_module.parameters())
        assert modes == [m.training for m in pl_module.modules()]
        assert torch.equal(random, torch.get_rng_state())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in pl_module.modules())
        trainer.should_stop = True
        trainer.limit_train_batches = 0


def findings(topic, net, step, *tensors, loader=None):
    """What a topic finds in a program of these examples, by code."""
    torch.manual_seed(0)
    check = Judge(topic)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        callbacks=[check],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = loader or DataLoader(TensorDataset(*tensors), 16, shuffle=True)
    trainer.fit(Program(net(), step), data)
    return {finding.code: finding for finding in check.findings}


def verdict(code, topic, net, step, *tensors, **more):
    """The verdict on one code."""
    return findings(topic, net, step, *tensors, **more)[code].verdict


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def mlp(inputs=12, outputs=5, width=16):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))
