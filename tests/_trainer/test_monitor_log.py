import io
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from lightning_tuning._trainer import event_batch
from lightning_tuning._trainer.logger import log_result
from lightning_tuning._trainer.monitor_log import (
    chart,
    log_figure,
    log_image,
    log_measured,
    log_scalars,
    tag_suffix,
    takes_figures,
)
from lightning_tuning._trainer.tensorboard_events import write_measured
from lightning_tuning.functional.histogram import Histogram
from tests.processes import run_on_ranks
from tests.toys import Classifier, loader

COUNTED = Histogram(
    limits=(1.0, 2.0, 3.0), counts=(0, 3, 1), min=1.5, max=3.0, num=4, sum=7.0, sum_squares=20.0
)
IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def trainer_with(logger, **settings):
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings = {**dict.fromkeys(quiet, False), "accelerator": "cpu", **settings}
    return Trainer(logger=logger, **settings)


def events(logger):
    logger.experiment.flush()
    return EventAccumulator(logger.log_dir, {"images": 0, "histograms": 0, "tensors": 0}).Reload()


def log_all(trainer, step):
    log_scalars(trainer, {"ratio/a": -3.0, "ratio/b": float("nan")}, step)
    log_measured(trainer, lambda: ({}, {"gradients/a": COUNTED, "gradients/b": COUNTED}), step)
    log_image(trainer, "filters/a b", IMAGE, step)
    log_figure(trainer, "map/a", lambda: Figure((2, 1)), step)


# ---------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_holds_what_was_logged():
    logger = TensorBoardLogger(".")
    trainer = trainer_with(logger)
    for step in (3, 7):
        log_all(trainer, step)
    found = events(logger)
    assert [(e.step, e.value) for e in found.Scalars("ratio/a")] == [(3, -3.0), (7, -3.0)]
    assert np.isnan(found.Scalars("ratio/b")[1].value)
    for tag in ("gradients/a", "gradients/b"):
        [first, second] = found.Histograms(tag)
        assert (first.step, second.step) == (3, 7)
        assert second.histogram_value.bucket_limit == list(COUNTED.limits)
        assert second.histogram_value.bucket == list(COUNTED.counts)
        assert second.histogram_value.sum_squares == 20.0
    [image, _] = found.Images("filters/a b")
    decoded = (imread(io.BytesIO(image.encoded_image_string), format="png") * 255).round()
    assert (decoded[..., :3] == IMAGE).all()
    assert [e.step for e in found.Images("map/a")] == [3, 7]


def written(logger):
    """Events that lie in the file now."""
    [file] = pathlib.Path(logger.log_dir).glob("events*")
    return list(EventFileLoader(str(file)).Load())


def test_all_values_of_a_step_are_one_event():
    logger = TensorBoardLogger(".")
    trainer = trainer_with(logger)
    scalars = {f"ratio/{i}": float(i) for i in range(100)}
    log_measured(trainer, lambda: (scalars, {f"gradients/{i}": COUNTED for i in range(50)}), 1)
    found = events(logger).Tags()
    assert (len(found["scalars"]), len(found["histograms"])) == (100, 50)
    assert [event.step for event in written(logger)] == [0, 1]


def test_events_wait_for_a_second_at_most_or_until_the_file_is_flushed(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(event_batch.time, "monotonic", lambda: clock[0])
    logger = TensorBoardLogger(".")
    trainer = trainer_with(logger)
    queue = logger.experiment.file_writer.event_writer._async_writer._byte_queue

    def steps():
        queue.join()
        return [event.step for event in written(logger) if event.step]

    def log(step):
        log_scalars(trainer, {"a": 1.0}, step)

    log(1)
    assert steps() == [1]
    clock[0] += 0.9
    log(2)
    logger.log_metrics({"own": 1.0}, 7)
    assert steps() == [1, 7]
    clock[0] += 0.2
    log(3)
    assert steps() == [1, 7, 2, 3]
    log(4)
    logger.experiment.flush()
    assert steps() == [1, 7, 2, 3, 4]
    log(5)
    logger.experiment.file_writer.close()
    assert steps() == [1, 7, 2, 3, 4, 5]
    logger.experiment.file_writer.close()
    times = [event.wall_time for event in written(logger) if event.step]
    assert [times[0], *times[2:]] == sorted([times[0], *times[2:]])


def test_a_fit_that_ends_with_an_exception_leaves_what_waited():
    class Ends(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            log_scalars(trainer, {"ratio": float(batch_idx)}, batch_idx)
            if batch_idx == 5:
                raise KeyError("ends")

    logger = TensorBoardLogger(".")
    with pytest.raises(KeyError):
        trainer_with(logger, callbacks=[Ends()], max_epochs=1, log_every_n_steps=1).fit(
            Classifier(), loader(), loader()
        )
    assert [e.step for e in events(logger).Scalars("ratio")] == list(range(6))


@pytest.mark.parametrize("bins", [1, 15, 16, 64, 3000])
def test_its_histograms_are_those_that_torch_writes(bins):
    values = np.random.default_rng(bins).normal(size=1000)
    counts, edges = np.histogram(values, bins)
    moments = {"min": values.min(), "max": values.max(), "num": 1000, "sum": values.sum()}
    moments["sum_squares"] = (values**2).sum()
    given = Histogram(limits=tuple(edges[1:]), counts=tuple(counts.tolist()), **moments)
    with SummaryWriter("ours") as ours, SummaryWriter("theirs") as theirs:
        logger = types.SimpleNamespace(experiment=ours)
        assert write_measured(logger, lambda: ({}, {"a": given}), 2)
        theirs.add_histogram_raw(
            "a", bucket_limits=edges[1:], bucket_counts=counts, global_step=2, **moments
        )
    first, second = (EventAccumulator(at).Reload().Histograms("a")[0] for at in ("ours", "theirs"))
    assert (first.step, first.histogram_value) == (second.step, second.histogram_value)


def test_names_have_the_prefix_of_the_loggers_metrics():
    logger = TensorBoardLogger(".", prefix="mine")
    trainer = trainer_with(logger)
    chart(trainer, {"update": {"ratio": ["Multiline", ["ratio/a"]]}})
    logger.log_metrics({"loss": 1.0}, 0)
    log_scalars(trainer, {"ratio/a": 1.0}, 0)
    assert events(logger).Tags()["scalars"] == ["mine-loss", "mine-ratio/a"]
    assert layout(logger) == {"update": {"ratio": ["mine-ratio/a"]}}


def test_a_writer_that_was_closed_is_opened_again():
    logger = TensorBoardLogger(".")
    trainer = trainer_with(logger)
    for step in (1, 2):
        log_scalars(trainer, {"a": 1.0}, step)
        log_measured(trainer, lambda: ({}, {"h": COUNTED}), step)
        logger.experiment.close()
        log_measured(trainer, lambda: ({}, {"h": COUNTED}), step + 10)
        logger.experiment.close()
    # files of one second are read by their names, where the tenth comes before the second
    assert {event.step for event in events(logger).Scalars("a")} == {1, 2}
    assert {event.step for event in events(logger).Histograms("h")} == {1, 2, 11, 12}


def layout(logger):
    [event] = events(logger).Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {
        category.title: {
            one.title: list(one.multiline.tag) or [str(series) for series in one.margin.series]
            for one in category.chart
        }
        for category in found.category
    }


def test_the_charts_of_all_are_one_layout():
    logger = TensorBoardLogger(".")
    trainer = trainer_with(logger)
    chart(trainer, {"update": {"ratio": ["Multiline", ["ratio/a", "line"]]}})
    chart(trainer, {"update": {"ratio": ["Multiline", ["line", "ratio_2/a"]]}})
    band = {"band": ["Margin", ["m", "low", "high"]]}
    chart(trainer, {"activations": band})
    chart(trainer, {"activations": band})
    chart(trainer, {"activations": {"band": ["Margin", ["m_2", "low_2", "high_2"]]}})
    log_scalars(trainer, {"ratio/a": 1.0}, 0)
    chart(trainer, {"too": {"late": ["Multiline", ["a"]]}})
    log_all(trainer, 1)
    found = layout(logger)
    assert found["update"] == {"ratio": ["ratio/a", "line", "ratio_2/a"]}
    assert list(found["activations"]) == ["band", "band (2)"]
    assert "too" not in found


def test_each_of_two_trainers_has_its_own_charts():
    loggers = [TensorBoardLogger(".", name) for name in ("a", "b")]
    for logger in loggers:
        trainer = trainer_with(logger)
        chart(trainer, {logger.name: {"ratio": ["Multiline", ["ratio"]]}})
        log_scalars(trainer, {"ratio": 1.0}, 0)
    assert [list(layout(logger)) for logger in loggers] == [["a"], ["b"]]


def test_a_result_is_drawn_once():
    drawn = []

    class Drawn(Figure):
        def draw(self, renderer):
            drawn.append(self)
            super().draw(renderer)

    result = types.SimpleNamespace(plot=lambda: Drawn((2, 1)), to_json=lambda: "{}")
    logger = TensorBoardLogger(".")
    log_result(trainer_with(logger), "check", result)
    [image] = events(logger).Images("check/curve")
    written = pathlib.Path(logger.log_dir, "check.png").read_bytes()
    assert image.encoded_image_string == written
    assert (image.width, image.height) == (240, 120)
    assert len(drawn) == 1


# ------------------------------------------------------------------- other loggers, and none


class Recorder(Logger):
    """A logger that writes to what it is given."""

    def __init__(self, experiment=None):
        super().__init__()
        self._written_to = experiment
        self.metrics = []

    name = version = "recorder"
    save_dir = "saved"

    @property
    def experiment(self):
        return self._written_to

    def log_metrics(self, metrics, step=None):
        self.metrics.append((metrics, step))

    def log_hyperparams(self, *args, **kwargs):
        pass


class WandB(Recorder):
    """``WandbLogger.log_image(key, images, step)`` puts its own axis beside each value."""

    def __init__(self):
        super().__init__(types.SimpleNamespace(log=lambda values: None))
        self.images = []

    def log_image(self, key, images, step=None, **kwargs):
        assert isinstance(images, list)
        self.images.append((key, images[0], step))


class Comet:
    """The signatures of ``comet_ml.CometExperiment`` 3.58."""

    def __init__(self):
        self.calls = []

    def log_histogram_3d(self, values, name=None, step=None, epoch=None, metadata=None, **kwargs):
        self.calls.append((name, np.asarray(values).tolist(), step))

    def log_image(self, image_data, name=None, overwrite=False, image_format="png", step=None):
        self.calls.append((name, image_data, step))

    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None):
        self.calls.append((figure_name, figure, step))


class MLflowClient:
    """The signatures of ``mlflow.MlflowClient`` 3.17, in part those of 1.0."""

    def __init__(self):
        self.calls = []

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None):
        assert key is None or artifact_file is None
        self.calls.append((run_id, image, artifact_file))

    def log_figure(self, run_id, figure, artifact_file, *, save_kwargs=None):
        self.calls.append((run_id, figure, artifact_file))


def test_wandb_gets_bins_images_and_figures(monkeypatch):
    fake = types.SimpleNamespace(Histogram=lambda np_histogram: np_histogram)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    logger = WandB()
    log_all(trainer_with(logger), 5)
    assert logger.metrics[0][1] == 5
    assert logger.metrics[0][0]["ratio/a"] == -3.0
    counts, edges = logger.metrics[1][0]["gradients/b"]
    assert (counts, edges) == ([0, 3, 1], [0.0, 1.0, 2.0, 3.0])
    [(tag, image, step), (_, figure, _)] = logger.images
    assert (tag, step) == ("filters/a b", 5)
    assert image is IMAGE
    assert isinstance(figure, Figure)


def test_wandb_gets_512_bins_at_most(monkeypatch):
    fake = types.SimpleNamespace(Histogram=lambda np_histogram: np_histogram)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    values = np.random.default_rng(0).normal(size=5000)
    counts, edges = np.histogram(values, 1025)
    fine = Histogram(
        limits=tuple(edges[1:]),
        counts=tuple(counts),
        min=edges[0],
        max=edges[-1],
        num=5000,
        sum=values.sum(),
        sum_squares=(values**2).sum(),
    )
    logger = WandB()
    log_measured(trainer_with(logger), lambda: ({}, {"a": fine}), 0)
    merged, bounds = logger.metrics[0][0]["a"]
    assert len(merged) == len(bounds) - 1 <= 512
    assert bounds[-1] == edges[-1]
    # a value on an edge may lie on either side of it
    np.testing.assert_allclose(merged, np.histogram(values, bounds)[0], atol=1)


def test_comet_gets_values_in_the_bins_images_and_figures():
    logger = Recorder(Comet())
    log_all(trainer_with(logger), 5)
    assert logger.metrics[0][1] == 5
    histogram, _, image, figure = logger.experiment.calls
    assert histogram == ("gradients/a", [1.5, 1.5, 1.5, 2.5], 5)
    assert (image[0], image[2]) == ("filters/a b", 5)
    assert image[1] is IMAGE
    assert (figure[0], figure[2]) == ("map/a", 5)


def test_comet_gets_a_sample_of_very_many():
    logger = Recorder(Comet())
    many = Histogram(
        limits=(1.0, 2.0), counts=(3_000_000, 1), min=0, max=2, num=3e6, sum=1, sum_squares=1
    )
    log_measured(trainer_with(logger), lambda: ({}, {"a": many}), 0)
    values = logger.experiment.calls[0][1]
    assert len(values) == 100_001
    assert values[-1] == 1.5


def test_mlflow_gets_images_and_figures_as_artifacts():
    logger = Recorder(MLflowClient())
    logger.run_id = "run"
    log_all(trainer_with(logger), 5)
    assert [call[2] for call in logger.experiment.calls] == [
        "filters/a b/000005.png",
        "map/a/000005.png",
    ]
    assert {call[0] for call in logger.experiment.calls} == {"run"}


def test_files_lie_where_the_checkpoints_of_such_a_logger_do(tmp_path):
    log_all(trainer_with(Recorder()), 5)
    folder = tmp_path / "saved" / "recorder" / "recorder"
    assert folder / "map_a.png" in list(folder.iterdir())


def test_a_logger_without_a_folder_gets_its_figures(tmp_path):
    logger = Recorder(MLflowClient())
    logger.run_id, logger.save_dir = "run", None
    log_all(trainer_with(logger), 5)
    assert [call[2] for call in logger.experiment.calls][-1] == "map/a/000005.png"
    assert not list(tmp_path.iterdir())


def test_where_no_logger_takes_pictures_they_become_files(tmp_path):
    logger = CSVLogger(".")
    trainer = trainer_with(logger)
    assert not takes_figures(trainer)
    for step in (5, 12):
        log_all(trainer, step)
    folder = tmp_path / logger.log_dir
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == ["filters_a_b_000005.png", "filters_a_b_000012.png", "map_a.png"]
    assert ((imread(folder / pictures[0]) * 255).round()[..., :3] == IMAGE).all()
    rows = logger.experiment.metrics
    assert [row["step"] for row in rows] == [5, 12]
    assert rows[0]["ratio/a"] == -3.0


def test_a_second_logger_that_takes_pictures_is_enough(tmp_path):
    board = TensorBoardLogger(".")
    trainer = trainer_with([CSVLogger("."), board])
    assert takes_figures(trainer)
    log_all(trainer, 1)
    assert len(events(board).Images("map/a")) == 1


def test_the_latest_pictures_lie_in_the_folder_too(tmp_path):
    board = TensorBoardLogger(".")
    trainer = trainer_with(board)
    log_all(trainer, 1)
    first = {path.name: path.read_bytes() for path in tmp_path.rglob("*.png")}
    log_all(trainer, 2)
    assert first.keys() == {path.name for path in tmp_path.rglob("*.png")}
    assert "map_a.png" in first
    board.experiment.close()


@pytest.mark.parametrize("settings", [{"logger": False}, {"logger": True, "fast_dev_run": True}])
def test_without_a_logger_nothing_is_written(settings, tmp_path):
    trainer = trainer_with(**settings)
    chart(trainer, {"a": {"b": ["Multiline", ["c"]]}})
    log_all(trainer, 1)
    assert not takes_figures(trainer)
    assert not list(tmp_path.rglob("*"))


def test_the_loggers_of_the_other_package_serve_as_well():
    others = pytest.importorskip("pytorch_lightning.loggers")
    logger = others.TensorBoardLogger(".")
    log_all(trainer_with(logger), 4)
    found = events(logger)
    assert found.Scalars("ratio/a")[0].step == 4
    assert found.Tags()["histograms"] == ["gradients/a", "gradients/b"]


def test_nothing_is_said_of_nothing():
    logger = WandB()
    trainer = trainer_with(logger)
    log_scalars(trainer, {}, 0)
    log_measured(trainer, lambda: ({}, {}), 0)
    assert logger.metrics == []


# ------------------------------------------------------------------------------- in a fit


class Writes(Callback):
    def on_train_start(self, trainer, pl_module):
        chart(trainer, {"update": {"ratio": ["Multiline", [f"ratio{tag_suffix(trainer, self)}"]]}})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        log_scalars(trainer, {f"ratio{tag_suffix(trainer, self)}": 1.0}, trainer.global_step)


def test_two_monitors_of_one_class_do_not_clash():
    logger = TensorBoardLogger(".")
    trainer = trainer_with(logger, callbacks=[Writes(), Callback(), Writes()], max_steps=2)
    trainer.fit(Classifier(), loader(), loader(8))
    found = events(logger)
    assert set(found.Tags()["scalars"]) == {"ratio", "ratio_2"}
    assert [event.step for event in found.Scalars("ratio_2")] == [1, 2]
    assert layout(logger) == {"update": {"ratio": ["ratio", "ratio_2"]}}


@pytest.mark.processes
def test_rank_zero_alone_writes():
    def rank():
        logger = Recorder()
        trainer = trainer_with(logger, strategy="ddp", devices=2, max_steps=2, callbacks=[Writes()])
        trainer.fit(Classifier(), loader(), loader(8))
        if trainer.global_rank == 1:
            log_all(trainer, 1)  # no rank waits for another
        return [step for metrics, step in logger.metrics if "ratio" in metrics]

    assert run_on_ranks(rank) == [[1, 2], []]


def test_logging_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    log_all(trainer_with([TensorBoardLogger("."), CSVLogger(".")]), 1)
    assert torch.equal(torch.get_rng_state(), before)
