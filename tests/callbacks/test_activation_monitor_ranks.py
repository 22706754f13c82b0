"""ActivationMonitor on two ranks: they say the same, train the same, and don't wait in vain."""

import os
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_tuning import ActivationMonitor
from tests.processes import run_on_ranks
from tests.toys import loader

pytestmark = pytest.mark.processes


class Net(LightningModule):
    def __init__(self, breaks_on=()):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.breaks_on = breaks_on

    def training_step(self, batch, batch_idx):
        if self.global_step == 3 and os.environ["LOCAL_RANK"] in self.breaks_on:
            raise BreaksError
        return nn.functional.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Sharded(Net):
    def configure_model(self):
        if not hasattr(self.head, "unshard"):
            for layer in (self.net[0], self.net[2], self.head):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class BreaksError(Exception):
    pass


def train(module, *callbacks):
    """Train on this rank; its part of the weights."""
    warnings.simplefilter("ignore")
    strategy = "ddp"
    if isinstance(module, Sharded):
        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        **quiet,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=5,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, loader(shuffle=True))
    parts = [p.to_local() if hasattr(p, "to_local") else p for p in module.parameters()]
    return torch.cat([p.detach().flatten() for p in parts]).numpy()


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize("make", [Net, Sharded])
def test_ranks_agree_and_train_as_without(make):
    def rank():
        weights = []
        monitor = ActivationMonitor(every_n_steps=2)
        for callbacks in ((), (monitor,)):
            seed_everything(3, verbose=False)
            module = make()
            before = hooks(module)
            weights.append(train(module, *callbacks))
            left = hooks(module) - before
        told = [finding.to_dict() for finding in monitor.findings]
        return weights, told, monitor.result.to_json(), left if make is Net else 0

    (weights, told, result, left), (_, *other) = run_on_ranks(rank)
    assert (weights[0] == weights[1]).all()
    assert [told, result, left] == other
    assert left == 0
    assert len(told) == 6
    assert '"name": "net.0.weight"' in result


@pytest.mark.skipif(
    torch.__version__ < "2.8", reason="FSDP2 on a CPU sums gradients there, callback or not"
)
def test_gradients_of_shards_are_those_of_the_whole():
    def rank():
        norms = []
        for make in (Net, Sharded):
            seed_everything(3, verbose=False)
            monitor = ActivationMonitor(every_n_steps=2)
            train(make(), monitor)
            norms.append([weight.norm for weight in monitor.result.weight_gradients])
        return norms

    whole, sharded = run_on_ranks(rank)[0]
    assert len(whole) == len(sharded) == 3
    for one, other in zip(whole, sharded, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_rank_may_hold_no_part_of_a_weight():
    class Narrow(Sharded):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*self.net, nn.Identity(), nn.Linear(8, 1), nn.Tanh())
            self.head = nn.Linear(1, 3)

        def configure_model(self):
            super().configure_model()
            if not hasattr(self.net[5], "unshard"):
                fully_shard(self.net[5], mesh=self.device_mesh["data_parallel"])

    def rank():
        seed_everything(3, verbose=False)
        monitor, module = ActivationMonitor(every_n_steps=2), Narrow()
        train(module, monitor)
        return module.net[5].weight.to_local().numel(), monitor.result.to_json()

    (whole, told), (empty, other) = run_on_ranks(rank)
    assert (whole, empty) == (8, 0)
    assert told == other
    assert '"name": "net.5.weight"' in told


def test_numbers_that_break_on_one_rank_are_told_by_all_as_that_one_sees_them():
    class Breaks(Net):
        def __init__(self):
            super().__init__()
            self.net.register_forward_hook(self.spoil)

        def spoil(self, module, args, output):
            if self.global_step >= 3 and os.environ["LOCAL_RANK"] == "1":
                return output / 0 * 0
            return output

    def rank():
        monitor = ActivationMonitor(every_n_steps=1)
        seed_everything(3, verbose=False)
        train(Breaks(), monitor)
        return [finding.to_dict() for finding in monitor.findings]

    told, other = run_on_ranks(rank)
    assert told == other
    first = told[0]
    assert (first["code"], first["verdict"]) == ("non_finite", "fail")
    assert (first["where"], first["step"]) == ("head", 3)


@pytest.mark.parametrize("breaks_on", ["1", "01"])
def test_no_rank_waits_for_one_that_broke(breaks_on):
    def rank():
        module, monitor = Net(breaks_on), ActivationMonitor(every_n_steps=1)
        # the rank that is left fails for want of the other
        with pytest.raises((BreaksError, RuntimeError)) as caught:
            train(module, monitor)
        return caught.type.__name__, hooks(module)

    errors = run_on_ranks(rank)
    assert [left for _, left in errors] == [0, 0]
    assert errors[1][0] == "BreaksError"
