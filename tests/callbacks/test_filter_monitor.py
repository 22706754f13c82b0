"""FilterMonitor in fits: what it reads, what it writes, and that it changes nothing."""

import copy
import io
import pathlib
import shutil
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import FilterMonitor, UpdateRatioMonitor
from lightning_tuning.functional.filters.filter_images import grid, smoothness
from tests.callbacks.ema_fits import rescue
from tests.processes import run_on_ranks
from tests.toys import Classifier, loader


def images(size=20, channels=1, count=24):
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear")
    labels = torch.randint(3, (count,), generator=generator)
    return DataLoader(TensorDataset(smooth, labels), 4, shuffle=True)


def conv(channels=1):
    return nn.Conv2d(channels, 6, 7, stride=3)


class Net(LightningModule):
    def __init__(self, first=None, lr=0.1):
        super().__init__()
        torch.manual_seed(5)
        self.first = conv() if first is None else first
        self.head = nn.LazyLinear(3)
        self.lr = lr

    def forward(self, inputs):
        return self.head(self.first(inputs).flatten(1).relu())

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class WeightsAtEpochEnds(Callback):
    """The reference: a copy of a parameter before the first step and at the end of each epoch."""

    def __init__(self, name="first.weight"):
        self.name = name
        self.seen = []

    def take(self, module):
        self.seen.append(module.get_parameter(self.name).detach().clone().float().numpy())

    def on_before_backward(self, trainer, pl_module, loss):
        if not self.seen:
            self.take(pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.take(pl_module)


def fit(module, *callbacks, data=None, **settings):
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings = {**dict.fromkeys(quiet, False), "max_epochs": 3, "accelerator": "cpu", **settings}
    trainer = Trainer(callbacks=list(callbacks), **settings)
    seed_everything(3, verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step`")
        warnings.filterwarnings("ignore", "Detected KeyboardInterrupt")
        trainer.fit(module, images() if data is None else data)
    return trainer


# ------------------------------------------------------------------------------ what it reads


def test_it_reads_the_weights_before_the_first_step_and_at_the_ends_of_epochs():
    monitor, reference = FilterMonitor(), WeightsAtEpochEnds()
    fit(Net(), monitor, reference)
    result = monitor.result
    assert result.layer == "first"
    assert result.shape == (6, 1, 7, 7)
    assert result.steps == (0, 6, 12, 18)
    assert result.smoothness == tuple(smoothness(weights) for weights in reference.seen)
    first = reference.seen[0]
    moved = [np.linalg.norm(w - first) / np.linalg.norm(first) for w in reference.seen]
    assert result.moved == pytest.approx(moved, rel=1e-6)
    for filters, weights in zip(result.filters, reference.seen, strict=True):
        np.testing.assert_array_equal(filters, weights)


def test_every_n_epochs_and_the_end():
    monitor = FilterMonitor(every_n_epochs=2)
    fit(Net(), monitor, max_epochs=5)
    assert monitor.result.steps == (0, 12, 24, 30)
    monitor = FilterMonitor()
    fit(Net(), monitor, max_steps=8)
    assert monitor.result.steps == (0, 6, 8)


@pytest.mark.parametrize(
    ("first", "data", "shape"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(400, 5)), images(), (5, 1, 20, 20)),
        (conv(3), images(channels=3), (6, 3, 7, 7)),
        (conv(5), images(channels=5), (6, 5, 7, 7)),
        (nn.Conv2d(3, 8, 5, stride=5), images(channels=3), (8, 3, 5, 5)),  # patches
        (nn.ConvTranspose2d(1, 2, 3), images(), (1, 2, 3, 3)),
        (nn.LazyConv2d(4, 5), images(), (4, 1, 5, 5)),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 4, 9)), images(), (4, 1, 9)),
        (nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 4, (1, 3, 3))), images(), None),
        (nn.utils.parametrizations.spectral_norm(conv()), images(), (6, 1, 7, 7)),
        (nn.utils.parametrizations.weight_norm(conv()), images(), (6, 1, 7, 7)),
    ],
    ids=["linear", "rgb", "5 channels", "patches", "transposed", "lazy", "1d", "3d", "sn", "wn"],
)
def test_each_kind_of_layer_is_shown_and_left_alone(first, data, shape):
    plain = Net(copy.deepcopy(first))
    fit(plain, data=data)
    random = torch.get_rng_state()
    watched, monitor = Net(first), FilterMonitor()
    fit(watched, monitor, data=data)
    assert monitor.result.shape == (shape or (4, 1, 1, 3, 3))
    assert monitor.result.image().ndim == 3
    expected = plain.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in watched.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in watched.modules())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(precision):
    monitor = FilterMonitor()
    fit(Net(), monitor, precision=precision, max_epochs=1)
    assert monitor.result.steps == (0, 6)
    assert all(np.isfinite(monitor.result.smoothness))


def test_manual_optimization_and_several_optimizers():
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                nn.functional.cross_entropy(self(batch[0]), batch[1]).backward()
                optimizer.step()

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.first.parameters(), lr=0.1),
                torch.optim.SGD(self.head.parameters(), lr=0.1),
            ]

    monitor = FilterMonitor()
    fit(Manual(), monitor, max_epochs=2)
    assert monitor.result.steps[1:] == (6, 12)
    assert monitor.findings[0].verdict == "skip"


def test_a_compiled_module_is_shown():
    net = Net()
    net.first.compile(backend="eager")
    monitor = FilterMonitor()
    fit(net, monitor)
    assert monitor.result.layer == "first"
    assert "not known to be images" in monitor.findings[0].message.replace("aren't", "not")


def test_a_compiled_method_is_compiled_once():
    counter = CompileCounter()
    net = Net(nn.Sequential(conv()))
    net.quick = torch.compile(net.first.forward, backend=counter)
    net.forward = lambda inputs: net.head(net.quick(inputs).flatten(1).relu())
    monitor = FilterMonitor()
    fit(net, monitor)
    assert counter.frame_count == 1
    assert monitor.result.layer == "first.0"


# TensorBoard's own thread may find its file gone
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("callback", [FilterMonitor, UpdateRatioMonitor])
def test_the_error_of_the_fit_is_the_one_that_is_raised(callback, tmp_path):
    """Also where the log folder is gone, and what comes later still saves its checkpoint."""

    class Breaks(Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if trainer.global_step == 3:
                # else Lightning's own end of the logger raises what its thread has met
                logger.experiment.flush()
                shutil.rmtree(logger.log_dir)
                pathlib.Path(logger.log_dir).write_text("a file")
                raise OSError("the error of the fit")

    logger = TensorBoardLogger(tmp_path / "logs")
    saving = rescue(tmp_path / "saved", "broken")
    monitor = callback(every_n_steps=1) if callback is UpdateRatioMonitor else callback()
    settings = {"logger": logger, "enable_checkpointing": True}
    with (
        pytest.warns(UserWarning, match=f"{callback.__name__} could not finish"),
        pytest.raises(OSError, match="the error of the fit"),
    ):
        fit(Net(), monitor, saving, Breaks(), **settings)
    assert list((tmp_path / "saved").iterdir())
    assert monitor.findings


def test_where_there_is_no_picture_it_says_so():
    monitor = FilterMonitor()
    fit(Classifier(), monitor, data=loader())
    assert monitor.result is None
    [finding] = monitor.findings
    assert finding.verdict == "skip"
    assert "no convolution" in finding.message
    assert "image_shape" in finding.hint


def test_a_wrong_name_or_shape_ends_the_fit_before_it_begins():
    with pytest.raises(ValueError, match="layer='frist' is no layer with weights; there are first"):
        fit(Net(), FilterMonitor("frist"))
    with pytest.raises(ValueError, match=r"image_shape=\(4, 4\) has 16 values.*6 inputs"):
        fit(Classifier(), FilterMonitor("net.0", image_shape=[4, 4]), data=loader())


# ---------------------------------------------------------------------------- what it writes


def test_tensorboard_holds_pictures_and_smoothness(monkeypatch):
    monkeypatch.setattr("lightning_tuning._trainer.drawing_pace.DrawingPace.allows", lambda _: True)
    logger = TensorBoardLogger(".")
    monitor = FilterMonitor()
    fit(
        Net(), monitor, FilterMonitor("first", every_n_epochs=3), logger=logger, log_every_n_steps=1
    )
    result = monitor.result
    found = EventAccumulator(logger.log_dir, {"images": 0}).Reload()
    read = found.Scalars("filter_smoothness/first")
    assert [event.step for event in read] == [0, 6, 12, 18]
    assert [event.value for event in read] == pytest.approx(result.smoothness)
    assert [event.step for event in found.Scalars("filter_smoothness_2/first")] == [0, 18]
    pictures = found.Images("filters/first")
    assert [picture.step for picture in pictures] == [0, 6, 12, 18]
    png = imread(io.BytesIO(pictures[-1].encoded_image_string), format="png")
    assert ((png[..., :3] * 255).round() == result.image()).all()
    assert (result.image() == grid(result.filters[-1], result.scale)).all()
    assert len(found.Images("filters_2/first")) == 2


def test_pictures_that_would_cost_too_much_are_left_out_but_the_first_and_the_last(monkeypatch):
    monkeypatch.setattr(
        "lightning_tuning._trainer.drawing_pace.DrawingPace.allows", lambda _: False
    )
    logger = TensorBoardLogger(".")
    fit(Net(), FilterMonitor(), logger=logger)
    found = EventAccumulator(logger.log_dir, {"images": 0}).Reload()
    assert [picture.step for picture in found.Images("filters/first")] == [0, 18]
    assert len(found.Scalars("filter_smoothness/first")) == 4


def test_without_such_a_logger_there_are_files(tmp_path):
    logger = CSVLogger(".")
    fit(Net(), FilterMonitor(), logger=logger)
    names = {path.name for path in tmp_path.rglob("*.png")}
    assert {"filters_first_000000.png", "filters_first_000018.png"} <= names


# -------------------------------------------------------------------------- when it goes wrong


class Break(Callback):
    def __init__(self, error, step):
        self.error = error
        self.step = step

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.global_step == self.step:
            raise self.error


@pytest.mark.parametrize("step", [0, 8])
@pytest.mark.parametrize("first", [True, False])
def test_after_an_exception_no_hook_is_left_and_what_is_known_is_said(step, first):
    monitor, broken = FilterMonitor(), Break(RuntimeError("broken"), step)
    net = Net()
    with pytest.raises(RuntimeError, match="broken"):
        fit(net, *((monitor, broken) if first else (broken, monitor)))
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert len(monitor.findings) == 1
    assert (monitor.result is None) == (step == 0)
    fit(net, monitor, max_epochs=1)
    assert monitor.result.steps == (0, 6)


def test_ctrl_c_shows_what_is_known():
    monitor = FilterMonitor()
    with pytest.raises(SystemExit):
        fit(Net(), monitor, Break(KeyboardInterrupt(), 8))
    assert monitor.result.steps == (0, 6)
    assert len(monitor.findings) == 1


# ------------------------------------------------------------------------------ several ranks


class Sharded(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(150, 3)

    def configure_model(self):
        if not hasattr(self.first, "unshard"):
            mesh = self.device_mesh["data_parallel"]
            for layer in (self.first, self.head):
                fully_shard(layer, mesh=mesh)


@pytest.mark.processes
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_agree(sharded):
    def rank():
        warnings.simplefilter("ignore")
        strategy = "ddp"
        net = Net(nn.Conv2d(1, 6, 7, stride=3))
        net.head = nn.Linear(150, 3)
        if sharded:
            net = Sharded()
            strategy = ModelParallelStrategy(
                data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
            )
        monitor = FilterMonitor()
        fit(net, monitor, strategy=strategy, devices=2)
        told = [finding.to_dict() for finding in monitor.findings]
        return monitor.result.steps, monitor.result.smoothness, monitor.result.shape, told

    first, second = run_on_ranks(rank)
    assert first == second
    assert first[0] == (0, 3, 6, 9)
    assert first[2] == (6, 1, 7, 7)
    assert first[3][0]["evidence"]["input_smoothness"] > 0.5


def test_a_hidden_layer_as_long_as_an_image_is_not_taken_for_the_first():
    class Rows(LightningModule):
        def __init__(self):
            super().__init__()
            self.rows, self.head = nn.GRU(8, 64, batch_first=True), nn.Linear(64, 3)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.head(self.rows(batch[0])[0][:, -1]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    data = TensorDataset(torch.randn(32, 8, 8), torch.randint(3, (32,)))
    callback = FilterMonitor()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(Rows(), DataLoader(data, 8))
    assert callback.result is None
    assert "No filters were shown" in callback.findings[0].message
