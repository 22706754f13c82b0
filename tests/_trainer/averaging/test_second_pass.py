"""A validation with other weights, beside the first one."""

import collections
import contextlib
import csv
import gc
import pickle
import random
import signal
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric, MetricCollection, MetricTracker, MinMaxMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision

from lightning_tuning import EMAWeights
from lightning_tuning._trainer.averaging import second_pass
from lightning_tuning._trainer.averaging.second_pass import SecondPass, why_not
from lightning_tuning._trainer.averaging.second_world import History
from tests._trainer.probing import differences, run_fit
from tests._trainer.programs import PROGRAMS
from tests.processes import run_on_ranks
from tests.toys import Classifier, loader


class Judge(Callback):
    """Validates with one set of weights ("raw", "average"), or with both in one pass.

    The average is the raw weights times 0.9. It goes in and out as pointers.
    """

    def __init__(self, which="both", suffix="_raw"):
        self.which = which
        self.suffix = suffix
        self.second = None
        self.history = History()
        self.raw = []

    @contextlib.contextmanager
    def raw_weights(self):
        average = [tensor.data for tensor in self.tensors]
        self._put(self.raw)
        try:
            yield
        finally:
            self._put(average)

    def _put(self, values):
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.data = value

    def on_validation_start(self, trainer, pl_module):
        if trainer.sanity_checking or self.which == "raw":
            return
        with torch.inference_mode(mode=False), torch.no_grad():
            found = [*pl_module.parameters(), *pl_module.buffers()]
            self.tensors = [t for t in found if t.is_floating_point() or t.is_complex()]
            self.raw = [t.data for t in self.tensors]
            self._put([value * 0.9 for value in self.raw])
        if self.which == "both":
            assert why_not(trainer, pl_module) is None
            self.second = SecondPass(
                *(trainer, pl_module),
                weights=self.raw_weights,
                history=self.history,
                suffix=self.suffix,
            )
            self.second.start()

    def on_validation_epoch_start(self, trainer, pl_module):
        if self.second:
            self.second.start_epoch()

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.second:
            self.second.keep_batch(batch)

    def on_validation_batch_end(
        self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0
    ):
        if self.second:
            self.second.run_batch(batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer, pl_module):
        if self.second:
            self.second.end_epoch()

    def on_validation_end(self, trainer, pl_module):
        self.put_back()

    def on_exception(self, trainer, pl_module, exception):
        self.put_back()

    def put_back(self):
        if self.second:
            self.second.close()
            self.second.close()
        if self.raw:
            self._put(self.raw)
        self.second, self.raw = None, []


class Base(Classifier):
    """Two layers with a norm; the validation is the subclass's own."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(8))

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.loss(batch))


class Logs(Base):
    """Logs in every hook, in every way; notes the hook that Lightning saw logging last."""

    def __init__(self):
        super().__init__()
        self.last_hooks = []

    def state_of_interest(self):
        return self.last_hooks

    def on_validation_start(self):
        self.log("start", self.net[0].bias.sum())

    def on_validation_epoch_start(self):
        self.log("epoch_start", self.net[0].bias.mean())

    def on_validation_batch_start(self, batch, batch_idx):
        self.log("batch_start", self.loss(batch) + batch_idx)

    def validation_step(self, batch):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log_dict({"worst": loss, "as_well": loss}, reduce_fx="max")
        self.log("sum", loss, reduce_fx="sum", logger=False)
        self.log("weighted", loss, batch_size=int(10 * loss))
        return {"loss": loss}

    def on_validation_batch_end(self, outputs, batch, batch_idx):
        self.last_hooks.append(self.trainer._logger_connector._current_fx)
        self.log("batch_end", outputs["loss"] * batch_idx)

    def on_validation_epoch_end(self):
        self.log("epoch_end", self.trainer.callback_metrics["loss"] + 1)


class Meter:
    __slots__ = ("__dict__", "lock", "values")

    def __init__(self):
        self.lock = threading.Lock()
        self.values = []
        self.sum = 0.0

    def update(self, value):
        self.values.append(value)
        self.sum += float(value)


class Keeps(Base):
    """Keeps results of its steps in all places that one can think of."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(3, average="micro")
        self.several = MetricCollection(
            [MulticlassAccuracy(3), MulticlassPrecision(3), MulticlassF1Score(3)], prefix="val_"
        )
        self.listed = nn.ModuleList([MeanMetric()])
        self.hidden = {"max": MaxMetric()}
        self.same_list = self.outputs = []
        self.meter = Meter()
        self.track = self.meter.update
        self.lock = threading.Lock()
        self.with_lock = {"lock": self.lock, "seen": []}
        self.net.calls = 0
        self.long = list(range(20_000))
        self.array = np.zeros(3)
        self.register_buffer("total", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.unregistered = torch.zeros(2)

    def on_validation_start(self):
        self.handle = self.net[0].register_forward_hook(self.on_forward)
        self.net[2].training = True

    def on_forward(self, module, args, output):
        self.net.calls += 1

    def on_validation_epoch_start(self):
        self.outputs.clear()

    def validation_step(self, batch, batch_idx):
        logits, labels = self(batch[0]), batch[1]
        value = nn.functional.cross_entropy(logits, labels)
        for metric in (self.listed[0], self.hidden["max"]):
            metric.update(value)
        self.accuracy(logits, labels)
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.several.update(logits, labels)
        self.log_dict(self.several)
        for values in (self.outputs, self.with_lock["seen"], self.long):
            values.append(value)
        self.track(value)
        for total in (self.total, self.unregistered):
            total.add_(value)
        self.count = self.count + 1
        self.array += float(value)
        self.last = value

    def on_validation_epoch_end(self):
        assert len(self.outputs) <= sum(self.trainer.num_val_batches)
        assert self.same_list is self.outputs
        self.log("listed", self.listed[0].compute())
        self.listed[0].reset()
        self.log("hidden", self.hidden.pop("max").compute())
        self.hidden["max"] = MaxMetric()
        self.log("mean", torch.stack(self.outputs).mean())
        self.log("meter", self.meter.sum + len(self.meter.values))
        self.log("locked", torch.stack(self.with_lock["seen"]).sum())
        self.log("calls", float(self.net.calls))
        self.log("long", torch.stack(self.long[20_000:]).sum())
        self.log("total", self.total.sum() + self.count)
        self.log("tensor", self.unregistered.sum() + self.last)
        self.log("array", self.array.sum())
        self.meter = Meter()
        self.track = self.meter.update
        self.with_lock["seen"].clear()
        del self.long[20_000:]
        for total in (self.total, self.unregistered, self.count):
            total.zero_()
        self.array[:] = 0
        self.handle.remove()

    def state_of_interest(self):
        modules = {name: vars(m) for name, m in self.named_modules() if name != "net.2"}
        owned = {n: {k: v for k, v in a.items() if is_data(v)} for n, a in modules.items()}
        return [owned, self.meter.values, self.meter.sum, len(self.net[0]._forward_hooks)]


def is_data(value):
    return isinstance(value, int | float | torch.Tensor | np.ndarray | list | tuple)


class Draws(Base):
    """Draws random numbers, of its own and from everybody's."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(1)

    def number(self):
        own = torch.rand(1, generator=self.generator) + self.numpy.random()
        return own + torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002

    def on_validation_start(self):
        self.log("start", self.number())

    def on_validation_epoch_start(self):
        self.log("epoch_start", self.number())

    def validation_step(self, batch, batch_idx):
        noise = torch.rand_like(batch[0])
        self.log("loss", self.loss((batch[0] + noise, batch[1])) + self.number())

    def on_validation_epoch_end(self):
        self.log("end", self.number() * self.net[0].bias.sum())

    def state_of_interest(self):
        return [self.generator.get_state(), self.numpy.random()]


class Point:
    """A batch of somebody's own kind."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        return self


class Spoils(Base):
    """Changes its batches."""

    def validation_step(self, batch, batch_idx):
        x = batch["x"]["deep"].mul_(0.5)
        point = batch.pop("point")
        point.x.add_(1)
        batch["x"]["deep"] = None
        point.x = point.x + self.net[:-1](x).sum(1)
        self.log("loss", point.x.mean(), batch_size=4)


def points():
    def collate(rows):
        x = torch.stack([row[0] for row in rows])
        return {"x": {"deep": x}, "point": Point(x.sum(1))}

    return DataLoader(loader().dataset, 4, collate_fn=collate)


class SeveralLoaders(Base):
    def validation_step(self, batch, batch_idx, dataloader_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log(f"own_{dataloader_idx}", loss, add_dataloader_idx=False)

    def on_validation_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
        self.log("end", self.net[0].bias.sum() * (dataloader_idx + 1))

    def on_validation_epoch_end(self):
        losses = [self.trainer.callback_metrics[f"loss/dataloader_idx_{i}"] for i in range(2)]
        self.log("difference", losses[0] - losses[1])


def fitted(module, val=None, **settings):
    """Return a program for ``run_fit``."""
    val = val or loader()

    def program():
        data = {"train_dataloaders": loader(shuffle=True), "val_dataloaders": val}
        return module(), data, settings

    return program


def judge(program, folder, which):
    """Fit with the judge; return what the fit left and what it logged, and the suffixed names."""
    trainer, left = run_fit(program, folder / which, Judge(which))
    assert trainer.state.finished
    rows = left.pop("log/metrics.csv")
    left["rows"] = [
        {name: entry for name, entry in row.items() if entry}
        for row in csv.DictReader(rows.splitlines())
    ]
    return left


def split(found):
    """Return (what was logged without suffix, what was logged with it, under plain names)."""
    plain, suffixed = {}, {}
    for name, value in found.items():
        (suffixed if "_raw" in name else plain)[name.replace("_raw", "")] = value
    return plain, suffixed


def without_raw(value):
    if isinstance(value, dict):
        return {k: without_raw(v) for k, v in value.items() if "_raw" not in str(k)}
    return [without_raw(v) for v in value] if isinstance(value, list | tuple) else value


METRICS = ("callback_metrics", "logged", "progress_bar_metrics")
MODULES = {
    "logs": fitted(Logs),
    "logs_of_steps": fitted(Logs, log_every_n_steps=1, val_check_interval=3),
    "keeps": fitted(Keeps),
    "keeps_without_inference_mode": fitted(Keeps, inference_mode=False),
    "draws": fitted(Draws),
    "spoils": fitted(Spoils, points()),
    "several_loaders": fitted(SeveralLoaders, [loader(), loader(10)], num_sanity_val_steps=0),
    "half_precision": fitted(Logs, precision="bf16-mixed"),
}
SHARED = ["attributes", "changes_validation_batches", "parametrized", "hooks_added_on_the_way"]


@pytest.mark.parametrize("name", [*MODULES, *SHARED])
def test_each_pass_equals_a_validation_of_its_own(name, tmp_path):
    program = MODULES.get(name) or PROGRAMS[name]
    average, raw, both = (judge(program, tmp_path, which) for which in ("average", "raw", "both"))
    for kind in METRICS:
        plain, suffixed = split(both[kind])
        assert not differences(dict(sorted(plain.items())), dict(sorted(average[kind].items())))
        expected = {k: raw[kind][k] for k in sorted(suffixed)}
        assert not differences(dict(sorted(suffixed.items())), expected)
        judged = {k for k in raw[kind] if not k.startswith("train") and k in suffixed}
        assert judged == set(suffixed)
    assert split(both["callback_metrics"])[1]
    assert not differences(without_raw(both), without_raw(average))


def test_logged_rows_hold_the_second_values_beside_the_first(tmp_path):
    rows = {w: judge(MODULES["logs"], tmp_path, w)["rows"] for w in ("average", "raw", "both")}
    second = [split(row)[1] for row in rows["both"]]
    assert {"loss_step", "loss_epoch", "batch_end"} <= set().union(*second)
    for row, values in zip(rows["raw"], second, strict=True):
        assert {k: row[k] for k in values} == values


def test_names_of_every_second_value(tmp_path):
    left = judge(MODULES["several_loaders"], tmp_path, "both")
    assert {name for name in left["callback_metrics"] if "_raw" in name} == {
        *(f"loss_raw/dataloader_idx_{i}" for i in range(2)),
        *(f"loss_raw_epoch/dataloader_idx_{i}" for i in range(2)),
        *(f"end_raw/dataloader_idx_{i}" for i in range(2)),
        *("own_0_raw", "own_1_raw", "difference_raw"),
    }


def trainer_for(*callbacks, **settings):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    return Trainer(callbacks=list(callbacks), **defaults | settings)


def test_a_checkpoint_can_watch_the_second_value(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}", monitor="loss_raw", mode="max")
    trainer = trainer_for(Judge(), checkpoint)
    trainer.fit(Base(), loader(), loader())
    assert checkpoint.best_model_score is not None
    assert "loss_raw" in trainer.callback_metrics


def test_a_validation_without_a_fit():
    logged = {}
    for which in ("raw", "both"):
        trainer = trainer_for(Judge(which))
        (logged[which],) = trainer.validate(Logs(), loader(), verbose=False)
    assert split(logged["both"])[1] == logged["raw"]


def test_other_callbacks_and_loggers_see_the_first_pass_alone():
    calls = []

    class Notes(DummyLogger):
        def log_metrics(self, metrics, step=None):
            calls.extend(name for name in metrics if name == "direct")

    class Watches(Callback):
        def on_validation_batch_end(self, trainer, pl_module, *args):
            calls.append("callback")

    class Writes(Base):
        def validation_step(self, batch, batch_idx):
            self.logger.log_metrics({"direct": 1.0})
            super().validation_step(batch, batch_idx)

    trainer = trainer_for(Judge(), Watches(), logger=Notes(), max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(Writes(), loader(), loader())
    assert calls == ["direct", "callback"] * 6


def test_a_name_that_the_module_logs_is_refused():
    trainer = trainer_for(Judge(suffix="s"))

    class Two(Base):
        def validation_step(self, batch, batch_idx):
            self.log_dict({"los": self.loss(batch), "loss": self.loss(batch)})

    with pytest.raises(MisconfigurationException, match=r"'loss'.*another suffix than 's'"):
        trainer.fit(Two(), loader(), loader())


class Remembers(Base):
    """Has a value to remember, in ``remember``, and logs what that returns."""

    def on_fit_start(self):
        self.values = MeanMetric()

    def validation_step(self, batch, batch_idx):
        self.values.update(self.loss(batch))

    def on_validation_epoch_end(self):
        value = self.values.compute()
        self.values.reset()
        self.log("now", value)
        self.log("known", float(self.remember(value)), prog_bar=True)


class Template(Base):
    """As lightning-hydra-template does it, and with the loss besides."""

    def __init__(self):
        super().__init__()
        self.val_loss, self.val_acc = MeanMetric(), MulticlassAccuracy(3)
        self.val_loss_worst, self.val_acc_best = MaxMetric(), MaxMetric()

    def on_train_start(self):
        for metric in (self.val_loss, self.val_acc, self.val_loss_worst, self.val_acc_best):
            metric.reset()

    def validation_step(self, batch, batch_idx):
        self.val_loss(self.loss(batch))
        self.val_acc(self(batch[0]), batch[1])
        self.log("now", self.val_loss, on_step=False, on_epoch=True)
        self.log("acc", self.val_acc, on_step=False, on_epoch=True)

    def on_validation_epoch_end(self):
        self.val_loss_worst(self.val_loss.compute())
        self.val_acc_best(self.val_acc.compute())
        self.log("known", self.val_loss_worst.compute(), sync_dist=True, prog_bar=True)
        self.log("acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)


class PlainBest(Remembers):
    worst = 0.0

    def on_train_start(self):
        self.worst = 0.0

    def remember(self, value):
        self.worst = max(self.worst, float(value))
        return self.worst


class TensorBest(Remembers):
    def __init__(self):
        super().__init__()
        self.worst, self.total = torch.zeros(()), torch.zeros(2)

    def remember(self, value):
        self.worst = torch.maximum(self.worst, value)
        self.total += value
        return self.worst + self.total.sum()


class ListHistory(Remembers):
    """A list, an alias of it, a list within a dictionary, and arrays."""

    def __init__(self):
        super().__init__()
        self.history = self.alias = []
        self.nested = {"values": collections.deque(maxlen=3), "sum": np.zeros(1)}

    def remember(self, value):
        assert self.alias is self.history
        self.history.append(float(value))
        self.nested["values"].append(value)
        self.nested["sum"] += float(value)
        return sum(self.alias) + sum(self.nested["values"]) + self.nested["sum"].item()


class OwnMeter(Remembers):
    """An object of one's own, reached in two ways, in a submodule."""

    def __init__(self):
        super().__init__()
        self.net.meter = Meter()
        self.net.track = self.net.meter.update

    def remember(self, value):
        self.net.track(value)
        return self.net.meter.sum + len(self.net.meter.values)


class Appears(Remembers):
    """Attributes and metrics that come into being and vanish, each pass at a time of its own."""

    def remember(self, value):
        if not hasattr(self, "first"):
            self.first, self.metric = float(value), MaxMetric()
        self.metric(value)
        known = self.first + self.metric.compute()
        if value < 0.9 * self.first:
            del self.first, self.metric
        return known


class Wrapped(Remembers):
    """Metrics that hold metrics; what they remember is no state of theirs."""

    def __init__(self):
        super().__init__()
        self.minmax = MinMaxMetric(MeanMetric())
        self.tracker = MetricTracker(MeanMetric(), maximize=True)

    def remember(self, value):
        self.tracker.increment()
        self.tracker(value)
        self.minmax.reset()
        self.minmax(value)
        return self.minmax.compute()["max"] + self.tracker.best_metric() * self.tracker.n_steps


class Remembering(MeanMetric):
    """Lightning resets its states after each validation, but not what it has of its own."""

    def __init__(self):
        super().__init__()
        self.worst = 0.0

    def compute(self):
        self.worst = max(self.worst, float(super().compute()))
        return torch.tensor(self.worst)


class LogsMetric(Remembers):
    def __init__(self):
        super().__init__()
        self.metric = Remembering()
        self.several = MetricCollection({"several": Remembering()})

    def remember(self, value):
        self.metric.update(value)
        self.log("metric", self.metric)
        self.several.update(value)
        self.log_dict(self.several)
        return value


class ResetsItself(Remembers):
    """Its metric begins anew every two validations."""

    def __init__(self):
        super().__init__()
        self.metric = MaxMetric()

    def remember(self, value):
        self.metric(value)
        known = self.metric.compute()
        if self.trainer.current_epoch % 2:
            self.metric.reset()
        return known


class TrainingChanges(Remembers):
    """Training sets what validation goes on from."""

    def __init__(self):
        super().__init__()
        self.scale, self.seen, self.tensor = 0.0, [0.0], torch.zeros(1)
        self.metric = MaxMetric()

    def on_train_batch_start(self, batch, batch_idx):
        self.scale = float(self.global_step)
        self.seen[:] = [self.scale] * (1 + self.global_step % 2)
        self.tensor = torch.ones(1) * self.global_step
        self.metric.reset()

    def training_step(self, batch, batch_idx):
        self.metric.update(float(batch_idx) / 4)
        return super().training_step(batch, batch_idx)

    def remember(self, value):
        self.scale += float(value)
        self.seen.append(self.scale)
        self.tensor = self.tensor + value
        self.metric.update(value)
        return self.scale + sum(self.seen) + self.tensor + self.metric.compute()


REMEMBER = [
    *(Template, PlainBest, TensorBest, ListHistory, OwnMeter, Appears, Wrapped, LogsMetric),
    *(ResetsItself, TrainingChanges),
]


def validated(module, callback, **settings):
    """Return what each validation of a fit logged."""
    logged = []

    class Notes(Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                logged.append({k: v.item() for k, v in trainer.callback_metrics.items()})

    torch.manual_seed(5)
    trainer = trainer_for(callback, Notes(), **{"max_epochs": 4, **settings})
    trainer.fit(module, loader(shuffle=True), loader())
    return logged


# MetricTracker copies a metric in the sanity check
@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training")
@pytest.mark.parametrize("make", REMEMBER)
@pytest.mark.parametrize(
    "settings",
    [{}, {"num_sanity_val_steps": 0, "inference_mode": False, "val_check_interval": 2}],
    ids=["each epoch", "three in an epoch"],
)
def test_the_second_pass_goes_on_with_its_own_history(make, settings):
    found = {
        which: validated(make(), EMAWeights(0.95, warmup=False, validate=which), **settings)
        for which in ("ema", "raw", "both")
    }
    assert len(found["both"]) == (12 if "val_check_interval" in settings else 4)
    for both, ema, raw in zip(*(found[w] for w in ("both", "ema", "raw")), strict=True):
        plain, suffixed = split(both)
        assert plain == ema
        assert suffixed == {name: raw[name] for name in suffixed}
        assert {"now", "known"} <= set(suffixed)
        assert both["now"] != both["now_raw"]


def test_what_cannot_be_compared_is_copied_anew():
    """Whatever holds a module, a generator, more than a few numbers."""
    seen = []

    class Holds(Remembers):
        def __init__(self):
            super().__init__()
            self.held = {
                "generator": [torch.Generator()],
                "random": [random.Random(1)],
                "module": [self.net],
                "callback": [Callback()],
                "closure": [lambda: self],
                "large": [torch.zeros(10_000_000)],
                "many": [0.0] * 200_000,
            }
            for name, value in self.held.items():
                setattr(self, name, value)
            self.kept = [0.0]

        def remember(self, value):
            seen.append([len(getattr(self, name)) for name in (*self.held, "kept")])
            for name in (*self.held, "kept"):
                # the passes differ in how many entries they add
                getattr(self, name).extend([0.0] * (1 + len(seen) % 2))
            return value

    validated(Holds(), EMAWeights(0.9, validate="both"), num_sanity_val_steps=0, max_epochs=2)
    # the second pass comes first: its first call is the 1st, the first pass's the 2nd
    second, first = seen[2], seen[3]
    assert second[:-1] == first[:-1]
    assert second[-1] != first[-1]


def test_a_history_keeps_no_module_and_ends_with_the_fit():
    ema, module = EMAWeights(0.9, validate="both"), OwnMeter()
    validated(module, ema)
    history = ema._history
    assert history._kept
    assert not pickle.loads(pickle.dumps(history))._kept
    ema.setup(trainer_for(), module, "fit")
    assert ema._history is not history
    gone = weakref.ref(module)
    del module, ema
    gc.collect()
    assert gone() is None
    assert history._kept


class StopError(Exception):
    pass


class Breaks(Keeps):
    """Raises in the given call of a hook, counted over both passes."""

    def __init__(self, hook, call, error):
        super().__init__()
        method, left = getattr(self, hook), [call]

        def broken(*args):
            left[0] -= 1
            if left[0] == 0 and not self.trainer.sanity_checking:
                raise error
            return method(*args)

        setattr(self, hook, broken)


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("on_validation_start", 1),
        ("on_validation_epoch_start", 1),
        ("validation_step", 3),
        ("validation_step", 4),
        ("on_validation_batch_end", 3),
        ("on_validation_batch_end", 4),
        ("on_validation_epoch_end", 1),
        ("on_validation_epoch_end", 2),
    ],
)
def test_an_error_leaves_everything_in_place(hook, call, error):
    class Looks(Callback):
        def on_exception(self, trainer, pl_module, exception):
            seen.append(vars(pl_module))

    module, seen = Breaks(hook, call, error), []
    trainer = trainer_for(Looks(), Judge(), num_sanity_val_steps=0)
    dicts = {name: vars(m) for name, m in module.named_modules()}
    memory = {name: p.data_ptr() for name, p in module.named_parameters()}
    memory |= {name: b.data_ptr() for name, b in module.named_buffers() if name != "count"}
    val_loop, loggers = trainer.fit_loop.epoch_loop.val_loop, trainer.loggers
    results = val_loop._results
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        trainer.fit(module, loader(), loader())
    assert all(vars(m) is dicts[name] for name, m in module.named_modules())
    assert seen[0] is vars(module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert all(tensors[name].data_ptr() == pointer for name, pointer in memory.items())
    assert val_loop._results is results
    assert trainer.loggers is loggers
    assert module.accuracy is module._modules["accuracy"]


@pytest.mark.parametrize("way", [1, 2], ids=["in", "out"])
def test_ctrl_c_while_pointers_are_exchanged_waits(way, monkeypatch):
    module, exchange, ways = Keeps(), second_pass._exchange, []

    def pressed(owner, name, value):
        if owner is module.net:
            ways.append(name)
            if len(ways) == way:
                signal.raise_signal(signal.SIGINT)
        return exchange(owner, name, value)

    monkeypatch.setattr(second_pass, "_exchange", pressed)
    dicts = [vars(m) for m in module.modules()]
    with pytest.raises(SystemExit):
        trainer_for(Judge()).fit(module, loader(), loader())
    assert ways == ["__dict__"] * 2
    assert all(vars(m) is own for m, own in zip(module.modules(), dicts, strict=True))


def test_batches_that_cannot_be_deep_copied_are_cloned():
    lock = threading.Lock()

    class Adds(Base):
        def validation_step(self, batch, batch_idx):
            self.log("sum", batch["x"].add_(1).sum(), batch_size=1)

    rows = DataLoader([torch.zeros(2)] * 2, collate_fn=lambda x: {"x": x[0].clone(), "lock": lock})
    trainer = trainer_for(Judge(), max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(Adds(), loader(), rows)
    assert trainer.callback_metrics["sum"] == trainer.callback_metrics["sum_raw"] == 2


def test_what_is_shared_and_what_is_not():
    """Data, networks in plain attributes and views of large tensors are not copied."""
    seen = []

    class Holds(Base):
        def __init__(self):
            super().__init__()
            self.teacher = [nn.Linear(2, 2)]
            self.data = {"loader": loader()}
            self.view = torch.zeros(10_000_000)[:2]
            self.graph = [torch.ones(1, requires_grad=True) * 2]

        def validation_step(self, batch, batch_idx):
            self.view += 1
            storage = self.view.untyped_storage().nbytes()
            objects = (self.teacher[0], self.data["loader"], self.graph[0])
            seen.append(([id(obj) for obj in objects], id(self.teacher), storage))

    trainer = trainer_for(Judge(), max_epochs=1, num_sanity_val_steps=0, limit_val_batches=1)
    module = Holds()
    trainer.fit(module, loader(), loader())
    first, second = seen
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert second[2] == 8
    assert (module.view == 1).all()


def test_why_not():
    class Iterates(LightningModule):
        def validation_step(self, dataloader_iter):
            pass

    trainer = trainer_for()
    assert why_not(trainer, Classifier()) is None
    assert "dataloader_iter" in why_not(trainer, Iterates())
    assert "no validation_step" in why_not(trainer, LightningModule())


class Synced(Keeps):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("loss", self.last, sync_dist=True, on_step=True, on_epoch=True)


@pytest.mark.processes
def test_two_processes():
    def rank():
        warnings.simplefilter("ignore")
        found = {}
        for which in ("average", "raw", "both"):
            torch.manual_seed(1)
            trainer = trainer_for(Judge(which), strategy="ddp", devices=2)
            module = Synced()
            trainer.fit(module, loader(), loader())
            metrics = {k: v.numpy() for k, v in trainer.callback_metrics.items()}
            weights = {k: v.numpy() for k, v in module.state_dict().items()}
            found[which] = metrics, weights
        return found

    for found in run_on_ranks(rank):
        plain, suffixed = split(found["both"][0])
        assert not differences(plain, found["average"][0])
        assert not differences(suffixed, {k: found["raw"][0][k] for k in suffixed})
        assert {"loss", "accuracy", "val_MulticlassF1Score", "mean", "total"} <= set(suffixed)
        assert not differences(found["both"][1], found["average"][1])
