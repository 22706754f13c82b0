"""EMAWeights in several processes: DDP, and FSDP2 by ModelParallelStrategy."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from lightning_tuning import EMAWeights, LRRangeTest
from tests.callbacks.ema_reference import Recursion, differing, fit, weights_of
from tests.processes import run_on_ranks
from tests.toys import Classifier, Manual

pytestmark = pytest.mark.processes


def on_ranks(rank):
    """Run on two ranks, which have warning filters of their own."""

    def quiet():
        warnings.simplefilter("ignore")
        return rank()

    return run_on_ranks(quiet)


class Normed(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class Unused(Classifier):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 3)


class Sharded(Classifier):
    def configure_model(self):
        if not hasattr(self.net[0], "unshard"):
            mesh = self.device_mesh["data_parallel"]
            for layer in (self.net[0], self.net[2]):
                fully_shard(layer, mesh=mesh)
            fully_shard(self.net, mesh=mesh)


class ShardedWhole(Classifier):
    def configure_model(self):
        if not hasattr(self.net, "unshard"):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def ddp(**settings):
    return lambda: DDPStrategy(**settings)


def fsdp(**settings):
    # as it comes, the strategy would shard over one rank: the others are for tensor parallelism
    settings = {"data_parallel_size": 2, "tensor_parallel_size": 1, **settings}
    settings = {"save_distributed_checkpoint": False, **settings}
    return lambda: ModelParallelStrategy(process_group_backend="gloo", **settings)


PROGRAMS = {
    "ddp": (Classifier, ddp()),
    "ddp batch norm": (Normed, ddp()),
    "ddp static graph": (Classifier, ddp(static_graph=True)),
    "ddp unused parameters": (Unused, ddp(find_unused_parameters=True)),
    "ddp bucket views": (Classifier, ddp(gradient_as_bucket_view=True)),
    "ddp manual": (lambda: Manual(every=2), ddp()),
    "fsdp2": (Sharded, fsdp()),
    "fsdp2 whole": (ShardedWhole, fsdp()),
}
FAST = ["ddp batch norm", "fsdp2"]


def run(name, *callbacks, **settings):
    """Fit in this process; without a sampler all ranks have the same data."""
    make, strategy = PROGRAMS[name]
    module = make()
    # FSDP2 leaves a fresh module's weights to its first use
    trainer = fit(module, *callbacks, strategy=strategy(), devices=2, **settings)
    return module, trainer


def numpy(values):
    return {name: value.float().numpy() for name, value in values.items()}


class Raw(Callback):
    """Notes the trained weights before the callbacks' ends of the fit, and what was logged."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append((weights_of(pl_module), dict(trainer.logged_metrics).get("train_loss")))


@pytest.mark.parametrize("name", PROGRAMS)
def test_recursion_and_training(name):
    def rank():
        ema, raw, other = EMAWeights(0.8), Raw(), Raw()
        recursion = Recursion(ema)
        _, trainer = run(name, ema, recursion, raw)
        assert recursion.compared > 10
        assert recursion.judged > 3
        run(name, other)
        torch.testing.assert_close(raw.seen, other.seen, rtol=0, atol=0)
        return numpy(ema.average), trainer.callback_metrics["val_loss"].item()

    (one, loss), (two, other_loss) = on_ranks(rank)
    assert loss == other_loss
    if "fsdp2" not in name:
        assert all((one[key] == two[key]).all() for key in one)


@pytest.mark.parametrize(
    "settings",
    [{"every_n_steps": 2}, {"buffers": "average"}, {"validate": "both"}, {"buffers": "skip"}],
    ids=["every 2", "average", "both", "skip"],
)
def test_ddp_keeps_the_buffers_of_all_ranks_alike(settings):
    """DDP broadcasts buffers in validation and not in the first training batch after it."""

    def rank():
        raw, other = Raw(), Raw()
        run("ddp batch norm", EMAWeights(0.8, **settings), raw)
        run("ddp batch norm", other)
        torch.testing.assert_close(raw.seen, other.seen, rtol=0, atol=0)

    on_ranks(rank)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize(
    "settings",
    [
        {"every_n_steps": 2, "device": "cpu"},
        {"update_after_step": 3, "buffers": "average"},
        {"half_life": "8 samples", "decay": 0.999},
    ],
    ids=["every and host", "delay", "samples"],
)
def test_settings(name, settings):
    def rank():
        ema = EMAWeights(**{"decay": 0.8, **settings})
        # 8 samples are one batch of 4 on each of two ranks
        decay = 0.5 if "half_life" in settings else ema.decay
        after = ema.update_after_step
        recursion = Recursion(ema, decay=decay, every=ema.every_n_steps, after=after)
        run(name, ema, recursion)
        return recursion.compared

    one, two = on_ranks(rank)
    assert one == two > 0


@pytest.mark.skipif(
    torch.__version__ < "2.8", reason="FSDP2 on a CPU sums gradients there, callback or not"
)
def test_fsdp2_against_one_process():
    """With the same data on both ranks, FSDP2 computes what one process does."""
    plain = EMAWeights(0.8)
    trainer = fit(module := Classifier(), plain)

    def rank():
        module = Sharded()
        ema = EMAWeights(0.8)
        trainer = fit(module, ema, strategy=fsdp()(), devices=2, use_distributed_sampler=False)
        whole = {name: value.full_tensor() for name, value in module.state_dict().items()}
        return numpy(whole), trainer.callback_metrics["val_loss"].item()

    for found, loss in on_ranks(rank):
        assert loss == pytest.approx(trainer.callback_metrics["val_loss"].item(), rel=1e-5)
        for name, value in weights_of(module).items():
            torch.testing.assert_close(torch.from_numpy(found[name]), value, rtol=1e-4, atol=1e-6)


class Save(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 3:
            trainer.save_checkpoint("saved.ckpt")


class SaveInValidation(Callback):
    def on_validation_end(self, trainer, pl_module):
        if trainer.global_step == 3:
            trainer.save_checkpoint("saved.ckpt")


class SaveWithinValidation(Callback):
    """The module holds the average then."""

    def on_validation_epoch_end(self, trainer, pl_module):
        if trainer.global_step == 3:
            trainer.save_checkpoint("saved.ckpt")


@pytest.mark.parametrize("save", [Save, SaveInValidation, SaveWithinValidation])
@pytest.mark.parametrize("kind", ["ddp", "full", "distributed"])
@pytest.mark.parametrize("settings", [{}, {"every_n_steps": 2}], ids=["every 1", "every 2"])
def test_resume(save, kind, settings):
    """Bit for bit, though the average is not what the module holds."""
    strategy = {
        "ddp": ddp(),
        "full": fsdp(),
        "distributed": fsdp(save_distributed_checkpoint=True),
    }[kind]

    def rank():
        def end(*callbacks, **others):
            module = Normed() if kind == "ddp" else Sharded()
            ema, raw = EMAWeights(0.8, **settings), Raw()
            fit(
                module, ema, raw, *callbacks, strategy=strategy(), devices=2, max_epochs=3, **others
            )
            return raw.seen[-6:], weights_of(module), ema.average

        whole, again = end(save()), end(ckpt_path="saved.ckpt")
        for one, other in zip(whole, again, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)

    on_ranks(rank)


@pytest.mark.parametrize("name", FAST)
def test_both(name):
    """One pass logs what two fits log, one judged by each set of weights."""

    def rank():
        logged = {}
        for validate in ("ema", "raw", "both"):
            _, trainer = run(name, EMAWeights(0.8, validate=validate))
            logged[validate] = {k: v.item() for k, v in trainer.callback_metrics.items()}
        return logged

    for logged in on_ranks(rank):
        assert logged["ema"]["val_loss"] != logged["raw"]["val_loss"]
        assert logged["both"]["val_loss"] == logged["ema"]["val_loss"]
        assert logged["both"]["val_loss_raw"] == logged["raw"]["val_loss"]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("hook", ["validation_step", "on_validation_end", "training_step"])
def test_error(name, hook):
    """The module holds its raw weights, and the average can be had still."""

    def rank():
        class Breaks(PROGRAMS[name][0]):
            pass

        def broken(self, *args):
            if self.trainer.global_step == 3:
                raise RuntimeError("broken here")
            return getattr(super(Breaks, self), hook)(*args)

        setattr(Breaks, hook, broken)
        ema, raw = EMAWeights(0.8), Raw()
        module, strategy = Breaks(), PROGRAMS[name][1]
        with pytest.raises(RuntimeError, match="broken here"):
            fit(module, ema, raw, strategy=strategy(), devices=2)
        average = ema.average
        own = {name: raw.seen[-1][0][name] for name in average}

        def held():
            return {name: weights_of(module)[name] for name in average}

        assert not differing(held(), own)
        with ema.averaged():
            assert not differing(held(), average)
            assert differing(held(), own)
        assert not differing(held(), own)

    on_ranks(rank)


@pytest.mark.parametrize("name", FAST)
def test_after_the_fit(name):
    def rank():
        ema = EMAWeights(0.8, after_fit="raw")
        module, _ = run(name, ema)
        raw, average = weights_of(module), ema.average
        with ema.averaged():
            assert not differing({k: weights_of(module)[k] for k in average}, average)
        assert not differing(weights_of(module), raw)
        return len(average)

    assert all(count >= 4 for count in on_ranks(rank))


@pytest.mark.parametrize("name", FAST)
def test_two_callbacks_and_a_range_test(name):
    def rank():
        first, second = EMAWeights(0.8), EMAWeights(0.5)
        references = [Recursion(first), Recursion(second, judges=False)]
        references[1].on_validation_batch_start = lambda *_: None
        test = LRRangeTest(num_steps=20, max_steps=120, apply=False)
        module, _ = run(name, first, test, second, *references)
        assert min(r.compared for r in references) > 10
        with second.averaged():
            held = weights_of(module)
            assert not differing({k: held[k] for k in second.average}, second.average)

    on_ranks(rank)


def test_batch_norm_is_recalibrated_alike_on_all_ranks():
    def rank():
        ema = EMAWeights(0.8, recalibrate_batch_norm=True)
        module, _ = run("ddp batch norm", ema)
        assert ema.findings[-1].code == "batch_norm_recalibrated"
        assert ema.findings[-1].verdict == "pass"
        return numpy(weights_of(module))

    one, two = on_ranks(rank)
    assert all((one[name] == two[name]).all() for name in one if "running" in name)
