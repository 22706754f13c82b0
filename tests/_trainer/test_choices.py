"""What callbacks chose, as hyperparameters of every logger; charts grouped by question."""

import json

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from lightning_tuning import (
    ActivationMonitor,
    EMAWeights,
    LRRangeTest,
    OneCycle,
    OverfitBatchCheck,
    UpdateRatioMonitor,
)
from tests.toys import Classifier, loader

QUIET = dict.fromkeys(
    ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)


def fit(*callbacks, logger, module=None):
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=logger, callbacks=list(callbacks), **QUIET
    )
    trainer.fit(Classifier() if module is None else module, loader(), loader())
    return trainer


def events(folder):
    return EventAccumulator(str(folder), {"tensors": 0}).Reload()


class WithSettings(Classifier):
    def __init__(self, width=8, name="small"):
        super().__init__()
        self.save_hyperparameters()


def session(folder):
    """What the tab "HParams" shows of a run: settings, and the metrics it asks for."""
    metadata = events(folder).summary_metadata
    read = plugin_data_pb2.HParamsPluginData.FromString
    start = read(metadata["_hparams_/session_start_info"].plugin_data.content).session_start_info
    told = read(metadata["_hparams_/experiment"].plugin_data.content).experiment
    settings = {k: v.string_value or v.number_value for k, v in start.hparams.items()}
    assert set(settings) == {info.name for info in told.hparam_infos}
    return settings, {info.name.tag for info in told.metric_infos}


def test_tensorboard_has_what_was_chosen_beside_the_modules_own():
    logger = TensorBoardLogger(".")
    fit(OneCycle(0.2), EMAWeights(0.9), logger=logger, module=WithSettings())
    settings, metrics = session(logger.log_dir)
    assert settings == {
        "width": 8.0,
        "name": "small",
        "tuning/max_lr": 0.2,
        "tuning/total_steps": 12.0,
        "tuning/ema_decay": 0.9,
    }
    assert "val_loss" in metrics
    # the figures themselves are those of the run
    assert "val_loss" in events(logger.log_dir).Tags()["scalars"]


def test_a_range_test_tells_the_rate_that_it_set():
    logger, test = TensorBoardLogger("."), LRRangeTest(num_steps=20, suggestion="valley")
    fit(test, logger=logger)
    if test.result.suggestion is not None:
        assert "tuning/learning_rate" in session(logger.log_dir)[0]


def test_a_csv_logger_has_it_among_its_hyperparameters():
    logger = CSVLogger(".")
    fit(OneCycle(0.2), logger=logger)
    with open(f"{logger.log_dir}/hparams.yaml") as file:
        assert yaml.safe_load(file) == {"tuning/max_lr": 0.2, "tuning/total_steps": 12}


class Tagged(Logger):
    """As MLflow: tags of a run, which may change."""

    name, version, run_id, save_dir = "tagged", 0, "run", None

    def __init__(self):
        super().__init__()
        self.experiment, self.tags = self, {}

    def set_tag(self, run_id, key, value):
        self.tags[run_id, key] = value

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        raise AssertionError("a parameter would be refused at the second fit")


def test_a_run_with_tags_is_tagged():
    logger = Tagged()
    fit(OneCycle(0.2), logger=logger)
    fit(OneCycle(0.3), logger=logger)
    assert logger.tags == {("run", "tuning/max_lr"): 0.3, ("run", "tuning/total_steps"): 12}


def test_nothing_chosen_nothing_told(tmp_path):
    logger = TensorBoardLogger(".")
    fit(UpdateRatioMonitor(), logger=logger)
    assert not list(tmp_path.rglob("*.tuning"))


def test_charts_are_grouped_by_question():
    logger = TensorBoardLogger(".")
    fit(
        ActivationMonitor(every_n_steps=2),
        OverfitBatchCheck(8, max_steps=20),
        UpdateRatioMonitor(2),
        LRRangeTest(num_steps=20, suggestion="valley", apply=False),
        logger=logger,
    )
    found = events(logger.log_dir)
    [event] = found.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == [
        "1. Is the program right?",
        "2. Which learning rate?",
        "3. Is it training well?",
    ]
    tags = set(found.Tags()["scalars"])
    assert {"overfit_batch/loss", "lr_range_test/loss", "lr_range_test/rate"} <= tags
    sweep = json.loads(_json(logger))
    measured = [value.value for value in found.Scalars("lr_range_test/loss")]
    assert measured == pytest.approx(sweep["losses"], rel=1e-6)


def _json(logger):
    with open(f"{logger.log_dir}/lr_range_test.json") as file:
        return file.read()
