"""Schedulers and callbacks that wait for a metric to get worse."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_tuning import WiringCheck
from lightning_tuning._trainer.wiring.wiring_monitors import TOPIC
from tests._trainer.probing import assert_same
from tests._trainer.programs import PROGRAMS
from tests._trainer.small_programs import QUIET, Base, Judges, found, sectors

pytestmark = pytest.mark.filterwarnings("ignore")


class Plateau(Base):
    def __init__(self, monitor, mode):
        super().__init__()
        self.monitor, self.mode = monitor, mode

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        plateau = ReduceLROnPlateau(optimizer, mode=self.mode)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor},
        }


def test_a_plateau_of_the_other_way_is_found():
    finding = found(TOPIC, lambda: Plateau("val_loss", "max"))["lr_decayed_too_fast"]
    assert (finding.verdict, finding.where) == ("fail", "val_loss")
    assert found(TOPIC, lambda: Plateau("val_acc", "min"))["lr_decayed_too_fast"].verdict == "fail"


class Negates(Plateau):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(-metric)


@pytest.mark.parametrize(
    "make",
    [
        Base,
        lambda: Plateau("val_loss", "min"),
        lambda: Plateau("val_acc", "max"),
        lambda: Plateau("val_reward", "max"),
        lambda: Negates("val_loss", "max"),
    ],
)
def test_a_plateau_of_the_right_way_is_silent(make):
    verdicts = {code: f.verdict for code, f in found(TOPIC, make).items()}
    # without a scheduler that can be judged there is nothing to look at
    assert verdicts.pop("lr_decayed_too_fast") in ("pass", "skip")
    assert set(verdicts.values()) == {"pass"}


def said_of(*callbacks, **settings):
    """What a check of this rule says beside other callbacks, which the sandbox takes away."""
    check = WiringCheck(["metric_wrong"])
    trainer = Trainer(**QUIET | settings, callbacks=[check, *callbacks])
    trainer.fit(Base(), sectors(64), sectors(64))
    assert trainer.callbacks[1] is callbacks[0]
    return [f for f in check.findings if f.verdict in ("warn", "fail")]


def test_early_stopping_of_an_accuracy_has_the_wrong_default():
    [finding] = said_of(EarlyStopping("val_acc", strict=False))
    assert (finding.verdict, finding.code, finding.where) == ("fail", "metric_wrong", "val_acc")
    assert said_of(EarlyStopping("val_acc", mode="max", strict=False)) == []
    assert said_of(EarlyStopping("val_loss")) == []


def test_a_checkpoint_of_the_worst_is_found():
    saved = {"enable_checkpointing": True}
    [finding] = said_of(ModelCheckpoint(monitor="val_loss", mode="max"), **saved)
    assert "worst" in finding.message
    assert said_of(ModelCheckpoint(monitor="val_loss"), **saved) == []
    assert said_of(ModelCheckpoint(), **saved) == []
    # all are kept
    assert said_of(ModelCheckpoint(monitor="val_loss", mode="max", save_top_k=-1), **saved) == []


@pytest.mark.parametrize("name", ["attributes"])
def test_it_leaves_no_trace(name, tmp_path):
    assert_same(PROGRAMS[name], tmp_path, Judges((TOPIC,), ends=False))
