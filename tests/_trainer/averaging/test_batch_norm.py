"""Recalibrated statistics are those of one pass over the data, and nothing else changes."""

import copy
import os
import re

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_tuning._trainer.averaging import batch_norm
from lightning_tuning._trainer.averaging.batch_norm import has_batch_norm, recalibrate
from lightning_tuning._trainer.errors import CannotProbeError
from tests._trainer.probing import differences, run_fit
from tests._trainer.programs import PROGRAMS, Gan
from tests.processes import run_on_ranks

STATISTICS = re.compile("running_mean|running_var|num_batches_tracked")


class Recalibrates(Callback):
    """Calls ``recalibrate`` when training ends, ``times`` times; catches ``expected`` errors."""

    def __init__(self, times=1, expected=()):
        self.times = times
        self.expected = expected
        self.batches = []
        self.before = None
        self.caught = None

    def on_train_end(self, trainer, pl_module):
        self.before = copy.deepcopy(pl_module.state_dict())
        pl_module.recalibrating = True
        try:
            self.batches += [recalibrate(trainer, pl_module) for _ in range(self.times)]
        except self.expected as error:
            self.caught = error
        pl_module.recalibrating = False


class Net(LightningModule):
    """Two BatchNorm layers, no dropout; the first layer's input is the data."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(
            nn.BatchNorm1d(3), nn.Linear(3, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Linear(5, 1)
        )
        self.recalibrating = False

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def inputs(batches=6, batch_size=4):
    """Batches whose means and deviations differ much."""
    generator = torch.Generator().manual_seed(3)
    scale = torch.linspace(1, 3, batches)[:, None, None]
    return scale * (torch.randn(batches, batch_size, 3, generator=generator) + scale)


def loader(data):
    return DataLoader(TensorDataset(data.flatten(0, 1)), data.shape[1])


def fit(module, data=None, *callbacks, train=None, **settings):
    """Fit and recalibrate; return the callback that did."""
    callback = callbacks[0] if callbacks else Recalibrates()
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [callback],
    }
    train = loader(inputs() if data is None else data) if train is None else train
    Trainer(**defaults | settings).fit(module, train)
    return callback


def statistics(module):
    return {k: v.clone() for k, v in module.state_dict().items() if STATISTICS.search(k)}


def by_update_bn(net, data):
    """Let torch do it, on a copy."""
    net = copy.deepcopy(net)
    update_bn(loader(data), net)
    return statistics(net)


def assert_close(one, other, **tolerance):
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=name, **tolerance)


def test_has_batch_norm():
    assert has_batch_norm(Net())
    assert has_batch_norm(nn.Sequential(nn.SyncBatchNorm(2)))
    assert has_batch_norm(nn.BatchNorm2d(2).eval())
    assert not has_batch_norm(Gan())
    assert not has_batch_norm(nn.InstanceNorm1d(2, track_running_stats=True))
    assert not has_batch_norm(nn.BatchNorm1d(2, track_running_stats=False))


@pytest.mark.parametrize(
    ("batches", "settings"),
    [(6, {}), (6, {"accumulate_grad_batches": 2}), (4, {"limit_train_batches": 4})],
)
def test_as_update_bn(batches, settings):
    module = Net()
    callback = fit(module, **settings)
    assert callback.batches == [batches]
    assert_close(statistics(module.net), by_update_bn(module.net, inputs()[:batches]))
    assert [module.net[0].momentum, module.net[2].momentum] == [0.1, 0.3]


def test_closed_form():
    module, data = Net(), inputs()
    fit(module, data)
    first = module.net[0]
    torch.testing.assert_close(first.running_mean, data.mean(1).mean(0))
    torch.testing.assert_close(first.running_var, data.var(1).mean(0))
    assert first.num_batches_tracked == len(data)


class Stops(Net):
    """Has weights that training does not move."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_the_order_of_batches_does_not_matter():
    one, other = Stops(), Stops()
    fit(one, inputs())
    fit(other, inputs().flip(0))
    assert_close(statistics(one), statistics(other))


def test_the_second_time_gives_the_same_bits():
    one, other = Net(), Net()
    fit(one)
    assert fit(other, None, Recalibrates(times=2)).batches == [6, 6]
    assert not differences(statistics(one), statistics(other))


class Rich(LightningModule):
    """Batches are dicts; dropout, attention, a recurrent layer and lists of what it saw."""

    def __init__(self):
        super().__init__()
        self.lift = nn.Linear(3, 4)
        self.one, self.two = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.recurrent = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.seen = []

    def features(self, x):
        x = self.dropout(self.one(self.lift(x)))[:, None]
        x = self.attention(x, x, x)[0]
        return self.two(self.recurrent(x)[0][:, 0])

    def training_step(self, batch, batch_idx):
        self.seen.append(batch_idx)
        x = batch["image"]
        loss = (self.features(x) + self.features(-x)).square().mean()
        self.log("loss", loss)
        return {"loss": loss, "extra": x}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def dicts(data):
    return DataLoader([{"image": sample} for sample in data.flatten(0, 1)], data.shape[1])


def test_layers_are_silent_and_each_call_counts():
    module, data = Rich(), inputs()
    fit(module, train=dicts(data))
    reference = copy.deepcopy(module).eval()
    for layer in (reference.one, reference.two):
        layer.train().reset_running_stats()
        layer.momentum = None
    for batch in data:
        reference.features(batch), reference.features(-batch)
    assert_close(statistics(module), statistics(reference))
    assert module.one.num_batches_tracked == 2 * len(data)
    assert module.seen == [*range(6), *range(6)]
    assert all(part.training for part in module.modules())
    assert module.recurrent.dropout == 0.5


def test_only_steps_of_the_last_epoch_run():
    # outside the module: what it holds itself is put back
    notes = []

    class Notes(Rich):
        recalibrating = False

        def note(self, *what):
            if self.recalibrating:
                notes.append(what)

        def on_train_epoch_start(self):
            self.note("epoch", self.current_epoch)

        def training_step(self, batch, batch_idx):
            dropouts = (self.dropout.training, self.attention.training, self.recurrent.dropout)
            self.note(batch_idx, self.training, self.recurrent.training, *dropouts)
            return super().training_step(batch, batch_idx)

        def on_before_zero_grad(self, optimizer):
            self.note("zero_grad")

        def on_before_backward(self, loss):
            self.note("backward")

        def optimizer_step(self, *args, **kwargs):
            self.note("optimizer_step")
            super().optimizer_step(*args, **kwargs)

    fit(Notes(), train=dicts(inputs()))
    assert notes == [("epoch", 1), *((i, True, True, False, False, 0.0) for i in range(6))]


UNCHANGED = [
    *("plain", "two_persistent_workers_random", "random_from_data_sets_own", "loader_generator"),
    *("sampler_with_state", "accumulation_and_clipping", "bf16_mixed", "fp16", "data_module"),
    *("manual", "manual_fp16", "attributes", "scheduler_per_step", "batches_of_none"),
    *("hooks_added_on_the_way", "epochs_that_end_early"),
]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
@pytest.mark.filterwarnings("ignore:train_dataloader yielded None:UserWarning")
@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`:UserWarning")
@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but:UserWarning")
@pytest.mark.parametrize("name", UNCHANGED)
def test_nothing_else_changes(name, tmp_path):
    _, plain = run_fit(PROGRAMS[name], tmp_path / "plain")
    callback = Recalibrates()
    _, probed = run_fit(PROGRAMS[name], tmp_path / "probed", callback)
    found = differences(plain, probed)
    changed = [where for where in found if STATISTICS.search(where)]
    assert changed
    assert found == changed
    assert callback.batches[0] > 0


class FailsError(Exception):
    pass


class Fails(Net):
    def training_step(self, batch, batch_idx):
        if self.recalibrating and batch_idx == 3:
            raise FailsError
        return super().training_step(batch, batch_idx)


def test_an_error_leaves_the_statistics_as_they_were():
    module = Fails()
    callback = fit(module, None, Recalibrates(expected=FailsError))
    assert isinstance(callback.caught, FailsError)
    assert not differences(callback.before, module.state_dict())
    assert [module.net[0].momentum, module.net[2].momentum] == [0.1, 0.3]
    # optimizers may step again
    module.net[0].weight.grad = torch.ones(3)
    torch.optim.SGD([module.net[0].weight], lr=1.0).step()
    assert torch.equal(module.net[0].weight, callback.before["net.0.weight"] - 1)


def test_mixed_precision():
    module = Net()
    fit(module, precision="bf16-mixed")
    expected = by_update_bn(module.net, inputs())
    assert_close(statistics(module.net), expected, rtol=2e-2, atol=2e-2)
    assert module.net[2].running_var.dtype == torch.float32


class Half(Stops):
    def training_step(self, batch, batch_idx):
        return self.net(batch[0].bfloat16()).square().mean()


def test_true_half_precision_rounds_once():
    """A cumulative average in bfloat16 would stop at about the 200th batch."""
    data = torch.linspace(0, 1, 600)[:, None, None] + inputs(600) / 10
    module = Half()
    fit(module, data, precision="bf16-true", max_epochs=1)
    mean = data.bfloat16().float().mean((0, 1))
    torch.testing.assert_close(module.net[0].running_mean.float(), mean, rtol=2**-8, atol=0.0)


class PartlyFrozen(Net):
    def __init__(self):
        super().__init__()
        self.net[0].eval()
        self.untracked = nn.BatchNorm1d(3, track_running_stats=False)
        self.unreached = nn.BatchNorm1d(3)
        with torch.no_grad():
            self.unreached.running_mean += 4.0
            self.net[0].running_mean += 2.0

    def training_step(self, batch, batch_idx):
        return super().training_step((self.untracked(batch[0]),), batch_idx)


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode:UserWarning")
def test_frozen_and_unreached_layers_keep_theirs():
    module = PartlyFrozen()
    callback = fit(module)
    found = differences(callback.before, module.state_dict())
    assert found == ["/net.2.running_mean", "/net.2.running_var", "/net.2.num_batches_tracked"]
    assert [layer.training for layer in module.net] == [False, True, True, True]
    with torch.no_grad():
        seen = torch.stack([module.net[:2](module.untracked(batch)) for batch in inputs()])
    torch.testing.assert_close(module.net[2].running_mean, seen.mean(1).mean(0))
    torch.testing.assert_close(module.net[2].running_var, seen.var(1).mean(0))


@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode:UserWarning")
def test_nothing_runs_if_all_are_frozen():
    module = Fails()
    module.net.eval()
    assert fit(module, None).batches == [0]


class Teacher(Net):
    """Moves some of its weights itself in every step."""

    def __init__(self):
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.teacher(batch[0])
            for slow, fast in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                slow.data = slow.data.lerp(fast, 0.5)
        return super().training_step(batch, batch_idx)


def test_a_teacher_stays_where_it_is():
    module = Teacher()
    fit(module)
    assert_close(statistics(module.teacher), by_update_bn(module.teacher, inputs()))


class ByHand(Net):
    """Manual optimization in one of the ways in which it is written."""

    def __init__(self, way):
        super().__init__()
        self.automatic_optimization = False
        self.way = way
        self.hidden = torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=self.way != "raw")
        if self.way == "closure":
            optimizer.step(lambda: self.send_back(batch, optimizer))
        elif self.way == "after":
            self.send_back(batch, optimizer)
            assert self.net[1].weight.grad is not None
            self.clip_gradients(optimizer, gradient_clip_val=0.1)
            optimizer.step()
            # sees weights that have moved, unless the step is kept from moving them
            self.net(batch[0])
        else:
            self.send_back(batch, optimizer)
            (self.hidden if self.way == "hidden" else optimizer).step()

    def send_back(self, batch, optimizer):
        optimizer.zero_grad()
        loss = super().training_step(batch, 0)
        if self.way == "raw":
            loss.backward()
        else:
            self.manual_backward(loss)
        return loss


@pytest.mark.parametrize("way", ["plain", "raw", "closure", "after"])
def test_manual_optimization(way):
    module = ByHand(way)
    callback = fit(module)
    expected = by_update_bn(module.net, inputs())
    calls = 12 if way == "after" else 6
    expected |= {k: v + calls - 6 for k, v in expected.items() if "num" in k}
    assert_close(statistics(module.net), expected)
    assert all(STATISTICS.search(d) for d in differences(callback.before, module.state_dict()))
    assert "step" not in vars(module.optimizers().optimizer)


def test_an_optimizer_that_the_trainer_does_not_know_is_refused():
    module = ByHand("hidden")
    callback = fit(module, None, Recalibrates(expected=CannotProbeError))
    assert "an optimizer of its own (SGD)" in str(callback.caught)
    assert not differences(callback.before, module.state_dict())


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield from inputs(1)[0]


def test_an_endless_loader_ends(monkeypatch):
    monkeypatch.setattr(batch_norm, "BATCHES_WITHOUT_END", 7)
    module = Rich()
    train = DataLoader(Endless(), 4, collate_fn=lambda rows: {"image": torch.stack(rows)})
    assert fit(module, train=train, max_epochs=-1, max_steps=3).batches == [7]
    assert module.one.num_batches_tracked == 14


def test_statistics_of_a_compiled_module():
    module = Net()
    module.compiled = torch.compile(module.net, backend="eager")
    module.training_step = lambda batch, batch_idx: module.compiled(batch[0]).square().mean()
    fit(module)
    assert_close(statistics(module.net), by_update_bn(module.net, inputs()))


def on_ranks(test):
    def rank():
        import warnings

        warnings.simplefilter("ignore")
        return test()

    return run_on_ranks(rank)


class TwoRanks(Net):
    """Sharded where the strategy asks for it."""

    def configure_model(self):
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            for layer in (self.net[1], self.net[3], self.net):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class TwoRanksByHand(TwoRanks):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def shard(rank):
    return inputs(12)[rank::2]


def fsdp2():
    return ModelParallelStrategy(2, 1, process_group_backend="gloo")


RANKS = {
    "ddp": (TwoRanks, DDPStrategy),
    "static graph": (TwoRanks, lambda: DDPStrategy(static_graph=True)),
    "unused": (TwoRanks, lambda: DDPStrategy(find_unused_parameters=True)),
    "manual": (TwoRanksByHand, DDPStrategy),
    "fsdp2": (TwoRanks, fsdp2),
    "fsdp2 manual": (TwoRanksByHand, fsdp2),
}


@pytest.mark.processes
@pytest.mark.parametrize("name", RANKS)
def test_ranks_agree(name):
    make, strategy = RANKS[name]

    def rank():
        module, data = make(), shard(int(os.environ["LOCAL_RANK"]))
        callback = fit(module, data, devices=2, strategy=strategy(), use_distributed_sampler=False)
        state = module.state_dict()
        whole = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in state.items()}
        return whole, module.training, callback.batches

    answers = on_ranks(rank)
    (one, *_), (other, *_) = answers
    assert not differences(one, other)
    assert [batches for *_, batches in answers] == [[6], [6]]
    assert all(training for _, training, _ in answers)
    module = Net()
    module.load_state_dict(one)
    expected = together([by_update_bn(module.net, shard(rank)) for rank in (0, 1)])
    assert_close(statistics(module.net), expected)


def together(parts):
    """Return what the statistics of equally many batches on each rank are in closed form."""
    found = {k: torch.stack([p[k].double() for p in parts]).mean(0) for k in parts[0]}
    for layer in ("0", "2"):
        squares = [p[f"{layer}.running_var"] + p[f"{layer}.running_mean"] ** 2 for p in parts]
        mean = found[f"{layer}.running_mean"]
        found[f"{layer}.running_var"] = torch.stack(squares).double().mean(0) - mean**2
    return {k: found[k].to(parts[0][k].dtype) for k in found}


@pytest.mark.processes
def test_what_ddp_remembers_stays():
    def rank():
        module, seen = TwoRanks(), []

        class Notes(Recalibrates):
            def on_train_end(self, trainer, pl_module):
                seen.append(own_flags(trainer.strategy.model))
                super().on_train_end(trainer, pl_module)
                seen.append(own_flags(trainer.strategy.model))

        data = shard(int(os.environ["LOCAL_RANK"]))
        fit(module, data, Notes(), devices=2, strategy="ddp", use_distributed_sampler=False)
        return seen

    for before, after in on_ranks(rank):
        assert before["require_forward_param_sync"]
        assert before == after


def own_flags(model):
    return {name: value for name, value in vars(model).items() if isinstance(value, bool)}
