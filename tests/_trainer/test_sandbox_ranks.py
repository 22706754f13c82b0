"""Probes of programs that run in several processes."""

import contextlib
import copy
import pathlib

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.fsdp import fully_shard

from tests._trainer.probing import Probe, assert_same, dense, differences, run_fit, state_of
from tests._trainer.programs import Gan, Manual, Net, data, loader
from tests.processes import run_on_ranks

pytestmark = pytest.mark.processes


class StopError(Exception):
    pass


def quiet(test):
    """Ranks are processes of their own, with Python's own warning filters."""

    def rank():
        import warnings

        warnings.simplefilter("ignore")
        test()

    run_on_ranks(rank)


def rank_data(**settings):
    """Return 5 batches a rank, none of which is a single sample."""
    return data(val_length=16, length=40, noise="torch", **settings)


def ddp(module=Net, **settings):
    def program():
        fit = rank_data() if module is not Gan else {"train_dataloaders": loader(length=40)}
        return module(), fit, {"devices": 2, "strategy": DDPStrategy(**settings)}

    return program


def power_sgd():
    """A communication hook with a memory."""
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
    hook = powerSGD_hook.powerSGD_hook
    strategy = DDPStrategy(ddp_comm_state=state, ddp_comm_hook=hook)
    module = Net()
    module.layers[0] = nn.Sequential(nn.Linear(4, 32), nn.Linear(32, 8))
    return module, rank_data(), {"devices": 2, "strategy": strategy}


DDP = {
    "plain": ddp(),
    "workers": lambda: (
        Net(),
        rank_data(num_workers=2, persistent_workers=True),
        {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    ),
    "bucket views": ddp(gradient_as_bucket_view=True),
    "static graph": ddp(static_graph=True),
    "unused parameters": ddp(find_unused_parameters=True),
    "manual": ddp(Manual),
    "gan": ddp(Gan, find_unused_parameters=True),
    "powersgd": power_sgd,
}


@pytest.mark.parametrize("name", DDP)
def test_ddp(name, tmp_path):
    quiet(lambda: assert_same(DDP[name], tmp_path))


def fail_at_step_7(box):
    def after_step(step, loss):
        if step == 6:
            raise StopError

    box.run(9, after_step=after_step)


def fail_between_forward_and_backward(box):
    def fail(*_):
        raise StopError

    box.run(3, after_step=lambda *_: None)
    box.module.on_before_backward = fail
    box.run(3, after_step=lambda *_: None)


def fail_within_backward(box):
    def fail(*_):
        raise StopError

    box.run(3, after_step=lambda *_: None)
    box.module.layers[1].register_full_backward_hook(fail)
    box.run(3, after_step=lambda *_: None)


FAILURES = [fail_at_step_7, fail_between_forward_and_backward, fail_within_backward]


@pytest.mark.parametrize("act", FAILURES)
@pytest.mark.parametrize("name", ["plain", "bucket views"])
def test_ddp_error(name, act, tmp_path):
    def rank():
        probe = Probe(act, expected=StopError)
        assert_same(DDP[name], tmp_path, probe)
        assert probe.caught is not None

    quiet(rank)


class Sharded(Net):
    """Without BatchNorm, whose statistics FSDP2 leaves to each rank."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
        )

    def configure_model(self):
        if not hasattr(self.layers[0], "unshard"):
            for layer in (self.layers[0], self.layers[4]):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])


def fsdp(**settings):
    def program():
        # left to itself, the strategy takes all ranks for tensor parallelism and shards nothing
        strategy = ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            process_group_backend="gloo",
            save_distributed_checkpoint=False,
        )
        return Sharded(), rank_data(), {"devices": 2, "strategy": strategy} | settings

    return program


FSDP = {"plain": fsdp(), "accumulation": fsdp(accumulate_grad_batches=2)}


@pytest.mark.parametrize("name", FSDP)
def test_fsdp2(name, tmp_path):
    quiet(lambda: assert_same(FSDP[name], tmp_path))


@pytest.mark.parametrize("act", FAILURES[:2])
def test_fsdp2_error(act, tmp_path):
    def rank():
        probe = Probe(act, expected=StopError)
        assert_same(FSDP["plain"], tmp_path, probe)
        assert probe.caught is not None

    quiet(rank)


def test_fsdp2_error_within_backward_leaves_weights_and_optimizer(tmp_path):
    """FSDP2 itself cannot go on after half a backward pass; what it would save is as before."""

    def state(trainer, module):
        parts = [*module.parameters(), *module.buffers(), state_of(trainer.optimizers[0])]
        return copy.deepcopy([dense(p.detach()) if torch.is_tensor(p) else p for p in parts])

    class Compares(Probe):
        def on_train_start(self, trainer, pl_module):
            pl_module.layers.reshard()
            before = state(trainer, pl_module)
            super().on_train_start(trainer, pl_module)
            assert not differences(before, state(trainer, pl_module))

    def rank():
        probe = Compares(fail_within_backward, expected=StopError)
        with contextlib.suppress(Stop):
            run_fit(FSDP["plain"], tmp_path, probe, Stopper())
        assert probe.caught is not None

    quiet(rank)


class Stop(Exception):  # noqa: N818
    pass


class Stopper(Callback):
    def on_train_start(self, trainer, pl_module):
        raise Stop


@pytest.mark.parametrize("make", [DDP["plain"], FSDP["plain"]], ids=["ddp", "fsdp2"])
def test_resume(make, tmp_path):
    def rank():
        run_fit(make, tmp_path / "first", max_epochs=1, save_all=True)
        last = pathlib.Path(tmp_path, "first", "checkpoints", "last.ckpt")
        assert_same(make, tmp_path, ckpt_path=last, save_all=True)

    quiet(rank)


def test_ranks_see_the_same_losses_after_they_are_averaged(tmp_path):
    def act(box):
        losses = []
        box.run(4, after_step=lambda _, loss: losses.append(loss))
        mean = box.trainer.strategy.reduce(torch.stack(losses), reduce_op="mean")
        box.rewind()
        again = []
        box.run(4, after_step=lambda _, loss: again.append(loss))
        assert not differences(losses, again)
        return mean.tolist()

    def rank():
        probe = Probe(act)
        run_fit(DDP["plain"], tmp_path, probe, max_epochs=1)
        losses = [None, None]
        torch.distributed.all_gather_object(losses, probe.result)
        assert losses[0] == losses[1]

    quiet(rank)
