"""The same run under each kind of logger: what arrives where, as docs/logged.md says.

W&B and MLflow are the real ones, offline; without them their cases are skipped.
"""

import json
import pathlib

import pytest
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import (
    CSVLogger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_tuning import recipe
from tests.toys import Classifier, loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
SCALARS = {
    *("update_ratio/net.1.weight", "update_ratio_summary/median", "gradient_norm/after_clipping"),
    *("activation_mean/net.1", "dead_fraction/net.2", "gradient_norm_by_layer/000_net.1"),
    "filter_smoothness/net.1",
}
HISTOGRAMS = {"activations/net.1", "gradients/net.1", "weight_gradients/net.4.weight"}
FIGURES = {
    *("lr_range_test", "one_cycle", "update_ratio", "activation_monitor"),
    "loss_curve_diagnosis",
}
"""How the names of their tags and files begin."""
CHOSEN = {"tuning/learning_rate", "tuning/max_lr", "tuning/total_steps", "tuning/ema_decay"}
CHECKS = {
    *("wiring_check", "initial_loss_check", "overfit_batch_check", "gradient_check"),
    *("lr_range_test", "one_cycle", "ema", "update_ratio_monitor", "activation_monitor"),
    *("filter_monitor", "loss_curve_diagnosis"),
}


class Images(Classifier):
    """Six numbers as an image of 2 x 3."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 8, 2), nn.ReLU(), nn.Flatten()),
            nn.Linear(16, 3),
        )


def run(logger):
    seed_everything(1, verbose=False)
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    callbacks = recipe(checks=True)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        log_every_n_steps=1,
        **dict.fromkeys(quiet, False),
    )
    trainer.fit(Images(), loader(samples=64, shuffle=True), loader())
    assert all(callback.findings for callback in callbacks)
    return trainer


def said(folder):
    """The checks whose findings lie in a folder."""
    return {f["check"] for f in json.loads((folder / "findings.json").read_text())}


def figures(names):
    """Those of the figures that some names of tags or files stand for."""
    return {figure for figure in FIGURES if any(name.startswith(figure) for name in names)}


def drawn(folder):
    """The figures whose files lie there."""
    return figures([path.name for path in folder.glob("*.png")])


def test_csv():
    trainer = run(CSVLogger("."))
    folder = pathlib.Path(trainer.logger.log_dir)
    header = (folder / "metrics.csv").read_text().split("\n")[0].split(",")
    assert set(header) >= SCALARS
    assert said(folder) == CHECKS
    assert drawn(folder) == FIGURES
    assert list(folder.glob("filters_net.1_*.png"))
    assert all(name in (folder / "hparams.yaml").read_text() for name in CHOSEN)


def test_tensorboard():
    trainer = run(TensorBoardLogger("."))
    folder = pathlib.Path(trainer.logger.log_dir)
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert set(tags["scalars"]) >= SCALARS | {"lr_range_test/loss", "overfit_batch/loss"}
    assert set(tags["histograms"]) >= HISTOGRAMS
    assert figures(tags["images"]) == FIGURES
    assert "filters/net.1" in tags["images"]
    texts = {tag.split("/")[0] for tag in tags["tensors"]}
    assert texts >= CHECKS | {"custom_scalars__config__"}
    assert said(folder) == CHECKS
    assert drawn(folder) == FIGURES
    assert (folder / "events.out.tfevents.0000000000.tuning").exists()


def test_no_logger():
    run(False)
    assert not list(pathlib.Path().rglob("*.png"))
    assert not list(pathlib.Path().rglob("findings.json"))


def test_wandb(monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = run(WandbLogger(save_dir="."))
    try:
        summary = dict(trainer.logger.experiment.summary)
        config = dict(trainer.logger.experiment.config)
    finally:
        wandb.finish()
        wandb.teardown()  # its service is a process of its own
    assert set(summary) >= SCALARS | HISTOGRAMS
    assert summary["activations/net.1"]["_type"] == "histogram"
    shown = [name for name, value in summary.items() if is_picture(value)]
    assert figures(shown) == FIGURES
    assert "filters/net.1" in shown
    assert set(config) >= CHOSEN
    folder = next(pathlib.Path().rglob("findings.json")).parent
    assert said(folder) == CHECKS
    assert drawn(folder) == FIGURES


def is_picture(value):
    return hasattr(value, "get") and "image" in str(value.get("_type", ""))


def test_mlflow(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trainer = run(MLFlowLogger(tracking_uri="file:./mlruns"))
    client, run_id = trainer.logger.experiment, trainer.logger.run_id
    stored = client.get_run(run_id).data
    assert set(stored.metrics) >= SCALARS
    assert set(stored.tags) >= CHOSEN
    artifacts = [artifact.path for artifact in client.list_artifacts(run_id)]
    assert figures(artifacts) == FIGURES
    assert "filters" in artifacts
    folder = next(pathlib.Path().rglob("findings.json")).parent
    assert said(folder) == CHECKS
    assert drawn(folder) == FIGURES
